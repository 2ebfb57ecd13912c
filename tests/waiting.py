"""Waiting for a condition: what a test does in place of sleeping."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(probe: Callable[[], T], *, within: float = 10.0, every: float = 0.01) -> T:
    """Call `probe` until it answers something true, and return that.

    An AssertionError or OSError inside the probe counts as "not yet"; the last one is shown when `within` seconds
    (monotonic) are over. The deadline is a bound on a broken program, never what a passing test waits for.
    """
    deadline = time.monotonic() + within
    while True:
        failure: BaseException | None = None
        try:
            answer = probe()
            if answer:
                return answer
        except (AssertionError, OSError) as error:
            failure = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not true within {within} s: {failure or probe}") from failure
        time.sleep(every)
