"""What the requests of one web server have in common: runs of parameters that are the same to the byte.

A web server sends the parameters of all requests in one order. Many of them say what it is, and where; others say who
the client is, and one who asks again says the same again. So from two requests, far from each other, it is learnt which
pairs stand side by side in both. Where such a run is met it is compared as a whole, and its names and values are there
already. Nothing is taken for granted: where it is another by now, its pairs are read one by one.
"""

from __future__ import annotations

from typing import Final

#: Pairs from which on a run is worth it, and bytes of parameters beyond which nothing is learnt of them.
FEWEST: Final = 2
LONGEST: Final = 4096
#: Requests after which it is learnt anew: before there is one to compare with, and then.
SOON: Final = 8
LATER: Final = 256

#: As it is on the wire, and what it says.
Run = tuple[bytes, dict[str, str]]


class Common:
    """`runs`: each by the name of the parameter before it, "" at the beginning. `left`: requests until `learn` is due;
    who reads one takes it off.

    Holds the pairs of one request besides. Threads may share it.
    """

    __slots__ = ("_known", "left", "runs")

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.left = SOON
        self._known: frozenset[bytes] = frozenset()

    def learn(self, pairs: bytes) -> None:
        """From the parameters of a request, which have been read, and so are well-formed."""
        self.left = LATER if self._known else SOON
        if len(pairs) > LONGEST or not pairs.isascii():  # with a first bit set it may be a length of four bytes
            return
        seen: list[bytes] = []
        runs: dict[str, Run] = {}
        before, begun, run = "", 0, {}
        at = 0
        while at < len(pairs):
            middle = at + 2 + pairs[at]
            end = middle + pairs[at + 1]
            name = pairs[at + 2 : middle].decode("latin-1")
            pair = pairs[at:end]
            seen.append(pair)
            if pair in self._known:
                run[name] = pairs[middle:end].decode("latin-1")
            else:
                if len(run) >= FEWEST:
                    runs[before] = pairs[begun:at], run
                before, begun, run = name, end, {}
            at = end
        if len(run) >= FEWEST:
            runs[before] = pairs[begun:], run
        self._known = frozenset(seen)
        self.runs = runs
