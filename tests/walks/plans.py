"""The configurations that a walk goes through: pools and programs with these names, and what their processes do."""

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

NAMES = ("a", "b", "c", "d")
ADDRESSES = 5
"""How many there are for the pools to have, to leave to each other, and to change."""
LEFT = "WALK_LEFT"
"""Environment variable of what a process may leave behind."""

# "deaf" heeds no signal; "leaves" has a child with a session of its own that heeds none.
DOES = {
    "sleeps": "exec sleep 1000",
    "deaf": 'trap "" TERM; while :; do sleep 1000; done',
    "dies": "exit 3",
    "dies soon": "sleep 0.1; exit 3",
    "ends": "exit 0",
    "leaves": f"""{LEFT}=1 setsid sh -c 'trap "" TERM; while :; do sleep 1000; done' & exec sleep 1000""",
}
ENDING = ("dies", "dies soon", "ends")
MISSING = "/no/such/command"

KEYS = """\
startsecs = {startsecs}
stopwaitsecs = 0.3
backoff_initial = 0.02
backoff_max = 0.1
startretries = {startretries}
"""
# Nobody asks these pools anything, and so nobody accepts.
POOL_KEYS = """\
ready = "startsecs"
reload_timeout = 2
reload_watch = 0.1
"""

BASE = """\
[program.base]
command = "sleep 1000"
startsecs = 0
"""
"""Always there and always well, so that no manager gives up because nothing at all could be started."""


@dataclass(frozen=True)
class Unit:
    """A pool or a program."""

    is_pool: bool
    does: str
    numprocs: int
    startsecs: float
    startretries: int
    on_fatal: str
    autorestart: bool
    autostart: bool
    is_job: bool
    colour: int
    several: bool
    depends_on: frozenset[str]

    def table(self, name: str, known: Sequence[str], addresses: Sequence[str]) -> str:
        """Its table. known: the others. addresses: which it is to listen at, if it is a pool."""
        command = f"['/bin/sh', '-c', '''{DOES[self.does]}''']" if self.does in DOES else f'"{self.does}"'
        lines = [
            f"[{'pool' if self.is_pool else 'program'}.{name}]",
            f"command = {command}",
            f"numprocs = {self.numprocs}",
            f'on_fatal = "{self.on_fatal}"',
            f"autorestart = {str(self.autorestart).lower()}",
            f"autostart = {str(self.autostart).lower()}",
            f'environment = {{ COLOUR = "{self.colour}" }}',
            KEYS.format(startsecs=self.startsecs, startretries=self.startretries),
        ]
        # A name waits only for names before it, so that there is no circle.
        others = sorted(other for other in self.depends_on if other in known and other < name)
        lines.append(f"depends_on = {others}".replace("'", '"'))
        if self.is_pool:
            lines.append(f"socket = {list(addresses)}".replace("'", '"') + "\n" + POOL_KEYS)
            if len(addresses) > 1:
                lines.append('socket_pass = "env"')
        elif self.is_job and self.does in ENDING:
            lines.append('ready = "exit"')
        return "\n".join(lines) + "\n"


units = st.builds(
    Unit,
    is_pool=st.booleans(),
    does=st.sampled_from(["sleeps", "sleeps", "sleeps", *DOES, MISSING]),
    numprocs=st.integers(1, 3),
    startsecs=st.sampled_from([0, 0.05]),
    startretries=st.sampled_from([0, 1, -1]),
    on_fatal=st.sampled_from(["close", "keep", "retry"]),
    autorestart=st.booleans(),
    autostart=st.sampled_from([True, True, False]),
    is_job=st.booleans(),
    colour=st.integers(0, 1),
    several=st.booleans(),
    depends_on=st.frozensets(st.sampled_from(NAMES), max_size=2),
)

Plan = tuple[dict[str, Unit], list[int]]
"""Who is there, and in which order the addresses are given out."""

plans = st.tuples(st.dictionaries(st.sampled_from(NAMES), units, min_size=1), st.permutations(range(ADDRESSES)))


def tables(plan: Plan, addresses: Sequence[str]) -> str:
    """The tables of this plan."""
    found, order = plan
    left = [addresses[index] for index in order]
    spare = len(left) - sum(unit.is_pool for unit in found.values())
    text = [BASE]
    for name in sorted(found):
        unit = found[name]
        its = [left.pop()] if unit.is_pool else []
        if unit.is_pool and unit.several and spare:
            its.append(left.pop())
            spare -= 1
        text.append(unit.table(name, sorted(found), its))
    return "\n".join(text)
