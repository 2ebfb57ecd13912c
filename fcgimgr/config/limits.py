"""Resource limits: in the file each is a key of its own, `rlimit_NAME`; in the settings all are one table."""

import re
import resource
from typing import Final

from fcgimgr.config.kinds import Kind, Schema
from fcgimgr.config.place import Place
from fcgimgr.config.scalars import SIZE_MAX, size
from fcgimgr.config.values import refusal, text_of

LIMITS: Final = {
    "as": (True, "Address space of a process, in bytes."),
    "core": (True, "Size of a core dump, in bytes; 0 for none."),
    "cpu": (False, "CPU time of a process, in seconds."),
    "data": (True, "Data segment of a process, in bytes."),
    "fsize": (True, "Size of a file that a process may write, in bytes."),
    "memlock": (True, "Memory that a process may lock, in bytes."),
    "msgqueue": (True, "POSIX message queues of the user, in bytes."),
    "nice": (False, "Ceiling of the nice value, as 20 - nice."),
    "nofile": (False, "Open files of a process."),
    "nproc": (False, "Processes and threads of the user, over all of the system."),
    "rss": (True, "Resident memory, in bytes; Linux does not enforce it."),
    "rtprio": (False, "Ceiling of the real-time priority."),
    "rttime": (False, "CPU time under real-time scheduling without a blocking call, in microseconds."),
    "sigpending": (False, "Signals queued for the user."),
    "stack": (True, "Stack of a process, in bytes."),
}
"""By the name after "rlimit_": whether it counts bytes, and what it limits (getrlimit(2)). A test holds it complete."""


class Limit(Kind, frozen=True, kw_only=True):
    """One resource limit as (soft, hard), -1 for unlimited; written as a number for both, or as "soft:hard".

    sized: it counts bytes, so "512MB" will do; endless: it may be unlimited.
    """

    sized: bool
    endless: bool = True

    def read(self, value: object, place: Place) -> tuple[int, int]:
        if isinstance(value, int) and not isinstance(value, bool):
            both = size(value, place, wanted=self.wanted())
            return both, both
        text = self.expand(text_of(value, self.wanted()), place)
        soft, colon, hard = text.partition(":")
        pair = self._one(soft, place), self._one(hard if colon else soft, place)
        if pair[1] != resource.RLIM_INFINITY and (pair[0] == resource.RLIM_INFINITY or pair[0] > pair[1]):
            raise ValueError(f"the soft limit {soft} is above the hard limit {hard}; the order is soft:hard")
        return pair

    def _one(self, text: str, place: Place) -> int:
        if text.strip().lower() in ("unlimited", "infinity"):
            if not self.endless:
                raise refusal(self.wanted(), text, "the kernel has no unlimited here (fs.nr_open is the most)")
            return resource.RLIM_INFINITY
        if not self.sized and not re.fullmatch(r"\s*[0-9]{1,18}\s*", text):
            raise refusal(self.wanted(), text)
        return size(text, place, wanted=self.wanted())

    def wanted(self) -> str:
        number = 'a size, as in "512MB"' if self.sized else "a number"
        return f'{number}, "soft:hard"' + (' or "unlimited"' if self.endless else "")

    def schema(self) -> Schema:
        return {"anyOf": [{"type": "integer", "minimum": 0, "maximum": SIZE_MAX}, {"type": "string", "minLength": 1}]}


class Limits(Kind, frozen=True):
    """All resource limits of a process: stands for one key for each of `LIMITS`."""
