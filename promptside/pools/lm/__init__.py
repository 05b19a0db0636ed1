"""Endpoints and workers as one `dspy.LM`: routes, queues, attempts, retries, outages, streams and embeddings."""

__all__: list[str] = []
