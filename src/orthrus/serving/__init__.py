"""The server: an OpenAI-compatible HTTP service over the engine."""
