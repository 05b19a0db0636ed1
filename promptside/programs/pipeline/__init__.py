"""Programs, functions and signatures composed: checked by field names, called, streamed and mapped over a source."""

__all__: list[str] = []
