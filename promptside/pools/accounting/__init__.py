"""What calls used: the last calls, the totals of usage and cost, and the budgets that end a caller's spending."""

__all__: list[str] = []
