"""The life of all pools together, as whoever supervises the manager sees it."""
