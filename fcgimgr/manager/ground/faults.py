"""What is said of a fault of our own (an exception that nobody foresaw) to whoever waits for what it has cut short."""


def fault_of_ours(error: BaseException) -> str:
    """In words; where it was, is in the log."""
    return f"internal error in the manager: {error!r}; how far it came is shown by: fcgimgr status"
