"""The kept events: how one is written as text, the files that hold them, and how they are read again."""

__all__: list[str] = []
