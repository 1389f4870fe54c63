"""OpenAI's API, and the embedding and rerank APIs that go with it."""
