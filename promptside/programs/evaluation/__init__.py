"""Programs scored over examples, with backpressure and through outages."""

__all__: list[str] = []
