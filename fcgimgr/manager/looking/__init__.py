"""What the kernel has no event for: looked at while somebody waits for it, and only then."""
