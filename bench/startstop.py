"""Start and stop of a large fleet.

Start: from just before the exec of the manager (its own start is part of it) until that many children exist. Stop: from
SIGTERM to the manager until it has ended. The managers take turns, a start and a stop each.
"""

import json
import subprocess
from time import monotonic, sleep

from bench.figure import Figure, Setting, say
from bench.peers import SETTLED, Fleet, Running, running
from bench.proc import wait_until
from bench.programs import PAUSE


def measure(setting: Setting) -> list[Figure]:
    count = 200 if setting.quick else 1000
    share = count / 1000
    start = Figure(f"start {count} small children", "s", budget=0.9 * share if share == 1 else None)
    ready = Figure(f"… and all {count} are RUNNING", "s", note="startsecs (1 s) included; looked at every 100 ms")
    stop = Figure(f"stop {count}", "s", budget=0.4 if share == 1 else None)
    fleet = Fleet(count, setting.build(PAUSE, "pause"))
    for run in range(setting.times(5, 2)):
        for peer in setting.peers:
            say(f"start and stop {count}: {peer.name}, run {run + 1}")
            with running(peer, setting.place("startstop", run, peer.name), fleet) as manager:
                start.add(peer.name, manager.wait_for_children(count) - manager.begun)
                if peer.name == "fcgimgr":
                    ready.add(peer.name, all_running(manager, count) - manager.begun)
                sleep(SETTLED)
                begun = monotonic()
                manager.stop()
                stop.add(peer.name, monotonic() - begun)
    return [start, ready, stop]


def all_running(manager: Running, count: int) -> float:
    """Wait until it says so itself; the monotonic time."""
    command = manager.peer.status_commands(manager.directory)["json"]

    def reached() -> bool:
        answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=10)
        if answer.returncode not in (0, 3):
            return False
        pools = json.loads(answer.stdout)["pools"]
        states = [process["state"] for pool in pools for process in pool["processes"]]
        return states.count("RUNNING") == count

    return wait_until(reached, 30, 0.1, "all RUNNING")
