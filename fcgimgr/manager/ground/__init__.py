"""What the whole manager stands on: signals, history, helpers, and the sharing of time."""
