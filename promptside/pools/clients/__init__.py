"""What speaks to a provider: endpoints, credentials, DSPy's and litellm's clients, prices, an embedded model."""

__all__: list[str] = []
