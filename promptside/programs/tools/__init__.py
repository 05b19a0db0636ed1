"""The tools of agents: functions with a timeout and a breaker, and the sessions of MCP servers."""

__all__: list[str] = []
