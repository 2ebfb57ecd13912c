"""Traffic through a real front, every request of which is accounted for: answered rightly, failed, executed twice.

Each request has an id, which the application writes down when it is called and says back with the body. So a request
is *failed* when its client has no right answer, *executed* although failed when the application has it written down,
and *doubled* when it is written down twice. The clients keep their connections to the front; what the front keeps of
its own is what this is about.

`scripts/fronts` does it at length and prints a table; test_front_traffic.py briefly.
"""

import argparse
import contextlib
import http.client
import itertools
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fcgimgr.control.messages import NamesParams
from tests.integration.fronts import FRONTS, Front, open_directory, pool_of
from tests.integration.ports import free_address
from tests.integration.running import RunningManager
from tests.waiting import eventually

CLIENTS: Final = 8
PROCESSES: Final = 4
PATIENCE: Final = 30.0
"""Seconds that a client waits for an answer: a bound on a broken program."""


@dataclass(frozen=True)
class Plan:
    """How much. `recyclings`: about so many, by max_requests; `reloads`: a third of them while nobody asks."""

    requests: int
    recyclings: int
    reloads: int


@dataclass
class Outcome:
    """What came of it. `failures`: why, and whether the application had it; by id."""

    requests: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    executed: Counter[str] = field(default_factory=Counter)
    recyclings: int = 0
    reloads: int = 0
    seconds: float = 0.0

    @property
    def doubled(self) -> list[str]:
        return [name for name, times in self.executed.items() if times > 1]

    @property
    def executed_in_vain(self) -> list[str]:
        return [name for name in self.failures if self.executed[name]]

    def __str__(self) -> str:
        reasons = Counter(self.failures.values())
        why = "; ".join(f"{times} × {reason}" for reason, times in reasons.most_common(4))
        return (
            f"{self.requests} requests, {len(self.failures)} failed "
            f"({len(self.executed_in_vain)} of them executed), {len(self.doubled)} doubled, "
            f"{self.recyclings} recyclings, {self.reloads} reloads, {self.seconds:.0f} s" + (f": {why}" if why else "")
        )


class Traffic:
    """Requests of every kind to 127.0.0.1:`port`, by clients who are told how many; what failed is in `failures`."""

    def __init__(self, port: int) -> None:
        self.failures: dict[str, str] = {}
        self._port = port
        self._numbers = itertools.count(1)
        self.asked = 0

    @contextlib.contextmanager
    def client(self) -> Iterator["Client"]:
        client = Client(self._port, self)
        try:
            yield client
        finally:
            client.close()

    def next_number(self) -> int:
        self.asked = next(self._numbers)
        return self.asked

    def reaches(self, number: int) -> None:
        """Wait until so many have been asked in all."""
        eventually(lambda: self.asked >= number, within=60 + number / 50, every=0.002)


class Client:
    """One that asks one request after another on a connection that it keeps as long as the front lets it."""

    def __init__(self, port: int, traffic: Traffic) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        self._traffic = traffic

    def close(self) -> None:
        self._connection.close()

    def ask(self) -> None:
        """The next request: GET and POST in turn, some of them of an application that waits, some with a long body."""
        number = self._traffic.next_number()
        name = str(number)
        method = "POST" if number % 2 else "GET"
        pause = 10 if number % 7 == 0 else 2 if number % 3 == 0 else 0
        # Within the first read, within what is buffered, and beyond.
        size = 0 if method == "GET" else {1: 20_000, 5: 150_000}.get(number % 20, 20)
        body = (name.encode() * (size // len(name) + 1))[:size] if size else None
        try:
            self._connection.request(method, f"/?id={name}&pause={pause}", body)
            response = self._connection.getresponse()
            content = response.read()
            if response.status != 200:
                raise OSError(f"{method}: {response.status} {response.reason}")
            head, _, echoed = content.partition(b"\n")
            if head.split()[:2] != [method.encode(), name.encode()] or echoed != (body or b""):
                raise OSError(f"{method}: another answer, {len(content)} bytes")
        except (OSError, http.client.HTTPException) as error:
            why = str(error)
            self._traffic.failures[name] = why if why.startswith(method) else f"{method}: {type(error).__name__} {why}"
            self._connection.close()


def storm(front: Front, manager: RunningManager, counted: Path, plan: Plan) -> Outcome:
    """All of `plan` on a pool "app" that recycles its processes.

    One client alone; a crowd until enough processes were recycled; a crowd that goes on through reloads; and bursts,
    with reloads while nobody asks.
    """
    begun = time.monotonic()
    traffic = Traffic(front.port)
    at_rest = -(-plan.reloads // 3)

    def recyclings() -> int:
        return manager.output().count(": recycling: ")

    with contextlib.ExitStack() as open_, ThreadPoolExecutor(CLIENTS) as threads:
        clients = [open_.enter_context(traffic.client()) for _ in range(CLIENTS)]
        for _ in range(plan.requests // 10):
            clients[0].ask()
        with _crowd(clients, threads):
            traffic.reaches(plan.requests // 2)
            eventually(lambda: recyclings() >= plan.recyclings, within=60 + plan.recyclings, every=0.05)
        with _crowd(clients, threads):
            for _ in range(plan.reloads - at_rest):
                traffic.reaches(traffic.asked + plan.requests // 4 // plan.reloads)
                _reload(manager)
        for number in itertools.count(1):
            list(threads.map(_asks_five, clients))
            if number <= at_rest:
                _reload(manager)
            elif traffic.asked >= plan.requests:
                break
    executed = Counter(counted.read_text().split())
    return Outcome(traffic.asked, traffic.failures, executed, recyclings(), plan.reloads, time.monotonic() - begun)


@contextlib.contextmanager
def _crowd(clients: list[Client], threads: ThreadPoolExecutor) -> Iterator[None]:
    """All of them ask, one request after another, while this lasts."""
    over = threading.Event()

    def asks_on(client: Client) -> None:
        while not over.is_set():
            client.ask()

    asking = [threads.submit(asks_on, client) for client in clients]
    try:
        yield
    finally:
        over.set()
    for each in asking:
        each.result()


def _asks_five(client: Client) -> None:
    for _ in range(5):
        client.ask()


def _reload(manager: RunningManager) -> None:
    verdict = manager.command("reload", NamesParams(names=("app",)))
    assert verdict.ok, verdict


def run(name: str, transport: str, server: str, plan: Plan, variants: Sequence[str] = ()) -> Outcome:
    """`plan` behind the front of that name, on a pool of its own."""
    with open_directory() as directory:
        address = free_address(transport, directory)
        shutil.copy(Path(__file__).with_name("counting_app.py"), directory)
        each = max(1, plan.requests // (2 * plan.recyclings))
        manager = pool_of(
            directory,
            address,
            f'server = "{server}"',
            'wsgi = "counting_app:application"',
            f"numprocs = {PROCESSES}",
            f"max_requests = {each}",
            f"max_requests_jitter = {each // 10}",
        )
        with manager, FRONTS[name](directory, address, variants=variants) as front:
            return storm(front, manager, directory / "counted", plan)


def main() -> int:
    """Exit 1 when a request failed or was executed twice."""
    parser = argparse.ArgumentParser(prog="scripts/fronts", description=__doc__)
    parser.add_argument("fronts", nargs="*", metavar="FRONT", help=f"of {', '.join(FRONTS)} (default: all)")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--recyclings", type=int, default=100)
    parser.add_argument("--reloads", type=int, default=10)
    parser.add_argument("--sockets", nargs="+", default=["tcp", "unix"], choices=["tcp", "unix"])
    parser.add_argument("--servers", nargs="+", default=["native", "flup"], choices=["native", "flup"])
    arguments = parser.parse_args()
    if unknown := set(arguments.fronts) - set(FRONTS):
        parser.error(f"no such front: {', '.join(sorted(unknown))}")
    plan = Plan(arguments.requests, arguments.recyclings, arguments.reloads)
    print("| front | socket | server | requests | failed | executed | doubled | recyclings | reloads | seconds |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    good = True
    for name, transport, server in itertools.product(arguments.fronts or FRONTS, arguments.sockets, arguments.servers):
        outcome = run(name, transport, server, plan)
        good = good and not outcome.failures and not outcome.doubled
        cells = (
            name, transport, server, outcome.requests, len(outcome.failures), len(outcome.executed_in_vain),
            len(outcome.doubled), outcome.recyclings, outcome.reloads, round(outcome.seconds),
        )  # fmt: skip
        print("|", " | ".join(map(str, cells)), "|", flush=True)
        if outcome.failures:
            print(f"{name}: {outcome}", file=sys.stderr)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
