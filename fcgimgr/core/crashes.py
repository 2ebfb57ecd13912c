"""How many early deaths a pool as a whole may have before its processes must wait.

Every process has its own back-off, but a hundred of them that each crash after becoming ready would still burn a
machine. So a pool has a budget, a token bucket: each early death (of a process younger than startsecs, or than one
second) that is to be replaced at once costs a token. With the bucket empty such a death counts as a failed start,
so that it backs off and in the end is FATAL, and tries that are due wait for a token. The bucket fills at one token
a second, and is full again as soon as any process has proved stable: then whatever was wrong is over.

One that asks to be recycled so early (X_RECYCLE) costs a token as well, and without one it is recycled when backoff_max
has passed. It serves meanwhile, so that this is no reason to give it up.

A process that ends as expected after some requests (php-cgi does) is none that crashes, however young it is: if it was
seen to accept, that costs nothing. One that lives some milliseconds between two ends may not have been looked at in
time. If its program is known to accept it is believed, for a token of a bucket of its own, which is full again as soon
as another ends that was seen to; but no more often than process.MOST_UNSEEN times in a row in one place, for others of
its pool may be seen while this one never is. Where nobody is seen at all, because each serves one request in no time,
the listener tells: what waited there and does no more was accepted by one of them. The bucket of the crashes takes no
part in this: those that recycle themselves say nothing for one that crashes beside them.
"""

from typing import Final

import msgspec

TOKENS_PER_SECOND: Final = 1.0
SMALLEST_BURST: Final = 10
# Waiting for the last fraction of a token must move the clock: 1.0 - tokens may be less than a float of now can tell.
SHORTEST_WAIT: Final = 0.01


class Budget(msgspec.Struct, frozen=True):
    """`tokens` as counted at `at` (monotonic seconds)."""

    tokens: float
    at: float


def full(numprocs: int, now: float) -> Budget:
    """A budget that nothing has been taken from: two deaths a process, and ten at least."""
    return Budget(tokens=float(max(SMALLEST_BURST, 2 * numprocs)), at=now)


def spend(budget: Budget, numprocs: int, now: float) -> tuple[bool, Budget]:
    """Take one token if there is one: (whether there was, the budget afterwards)."""
    ceiling = full(numprocs, now).tokens
    tokens = min(ceiling, budget.tokens + (now - budget.at) * TOKENS_PER_SECOND)
    if tokens < 1.0:
        return False, Budget(tokens=tokens, at=now)
    return True, Budget(tokens=tokens - 1.0, at=now)


def next_token(budget: Budget) -> float:
    """When (monotonic seconds) the bucket holds a token again."""
    return budget.at + max(SHORTEST_WAIT, (1.0 - budget.tokens) / TOKENS_PER_SECOND)
