"""How long to wait after a failed start: exponential, bounded, with jitter."""


def backoff_delay(tries: int, initial: float, maximum: float, jitter: float) -> float:
    """Seconds before the next try after `tries` failures that went before this one.

    initial * 2**tries, at most `maximum`, of which the last fifth is jitter: `jitter` in [0, 1) takes off up to
    20 %, so that processes that failed together do not try together, and never later than the user was promised.
    """
    # 2**64 seconds is beyond any maximum: the exponent is bounded so that a pool that retries for ever cannot overflow.
    return min(maximum, initial * 2.0 ** min(tries, 64)) * (1.0 - 0.2 * jitter)
