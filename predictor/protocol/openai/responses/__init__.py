"""OpenAI's API of responses: items in, items out, and a stream of named events."""
