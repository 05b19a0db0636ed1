"""Each module of a program in an actor of its own, with the object and its calls unchanged."""

__all__: list[str] = []
