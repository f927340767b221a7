"""Time, order, reduction and state. Knows no family by name."""
