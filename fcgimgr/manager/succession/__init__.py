"""What outlives a manager: written down, handed over, taken back."""
