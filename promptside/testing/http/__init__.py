"""The HTTP of the fake provider: the wire, the requests and the formats of the providers."""

__all__: list[str] = []
