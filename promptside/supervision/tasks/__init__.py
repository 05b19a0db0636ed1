"""Functions run as supervised actors: one by one, in the background, and over an iterable with backpressure."""

__all__: list[str] = []
