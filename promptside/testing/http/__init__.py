"""The fake provider: `wire` is its HTTP, `provider` its endpoints, `formats` the bodies of each provider."""

__all__: list[str] = []
