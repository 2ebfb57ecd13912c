"""`status` of a large fleet, the whole command from exec to exit, its output into a pipe; the managers take turns."""

import subprocess
from contextlib import ExitStack
from time import monotonic, sleep

from bench.figure import Figure, Setting, say
from bench.peers import SETTLED, SHOWN, Fleet, running
from bench.programs import PAUSE


def measure(setting: Setting) -> list[Figure]:
    count = 200 if setting.quick else 1000
    figures = {kind: Figure(f"status of {count}: {what}", "s", budget=0.2) for kind, what in SHOWN.items()}
    fleet = Fleet(count, setting.build(PAUSE, "pause"))
    peers = [peer for peer in setting.peers if not peer.own_children]  # PHP-FPM has no such command
    with ExitStack() as stack:
        managers = [stack.enter_context(running(peer, setting.place("status", peer.name), fleet)) for peer in peers]
        for manager in managers:
            manager.wait_for_children(count)
        sleep(SETTLED + 1)
        say(f"status of {count}")
        for _ in range(setting.times(11, 3)):
            for manager in managers:
                for kind, words in manager.peer.status_commands(manager.directory).items():
                    figures[kind].add(manager.peer.name, time_of(words, 1 if kind == "summary" else count))
    return list(figures.values())


def time_of(words: list[str], count: int) -> float:
    """Seconds that the command takes; RuntimeError when it shows fewer than `count` as running."""
    begun = monotonic()
    answer = subprocess.run(words, capture_output=True, timeout=60)
    taken = monotonic() - begun
    shown = answer.stdout.count(b"RUNNING")
    if shown < count:
        raise RuntimeError(f"{' '.join(words)} shows {shown} RUNNING of {count}: {answer.stderr.decode()[:500]}")
    return taken
