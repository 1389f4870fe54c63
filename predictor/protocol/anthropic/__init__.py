"""Anthropic's API of messages, on the typed request of OpenAI's chats."""
