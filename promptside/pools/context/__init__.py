"""What travels with a call: labels, priority, batch, cancellation. The one place that touches DSPy's settings."""

__all__: list[str] = []
