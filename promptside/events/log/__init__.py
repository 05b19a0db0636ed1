"""Logs: files of events, which sinks write and `read` reads.

- `codec`: events as text. `log_file`: which kind of log is at a path. `sqlite_layout`: tables of a SQLite log.
- `read`: reads a log. `command`: prints one, ``python -m promptside events FILE``.

`promptside.events.sinks` imports this room; nothing here imports that one.
"""

__all__: list[str] = []
