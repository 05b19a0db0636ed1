"""Circuit breaker, rate limiter, retries and their wait queue: pure cores that know no DSPy client."""

__all__: list[str] = []
