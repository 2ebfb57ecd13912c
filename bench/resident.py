"""The manager's own memory with few and with many idle children: RSS, and PSS, which counts shared pages by share.

PHP-FPM's workers are forks of its master and share its pages with it: its PSS falls with the number of workers, but it
is the workers that have the rest.
"""

from time import sleep

from bench.figure import Figure, Setting, say
from bench.peers import SETTLED, Fleet, running
from bench.proc import memory
from bench.programs import PAUSE

MB = 1024 * 1024
BUDGET = {4: 22.0, 1000: 28.0}


def measure(setting: Setting) -> list[Figure]:
    figures = []
    for count in (4, 100) if setting.quick else (4, 100, 1000):
        rss = Figure(f"memory with {count} children, RSS", "MB", budget=BUDGET.get(count))
        pss = Figure(f"memory with {count} children, PSS", "MB")
        fleet = Fleet(count, setting.build(PAUSE, "pause"))
        for run in range(setting.times(3, 1)):
            for peer in setting.peers:
                say(f"memory with {count}: {peer.name}, run {run + 1}")
                with running(peer, setting.place("memory", count, run, peer.name), fleet) as manager:
                    manager.wait_for_children(count)
                    sleep(SETTLED + 1)
                    taken = memory(manager.pid)
                    rss.add(peer.name, taken.rss / MB)
                    pss.add(peer.name, taken.pss / MB)
        figures += [rss, pss]
    return figures
