"""What a manager with four idle children does when nothing happens: wake-ups and system calls, a second.

Wake-ups are the voluntary context switches of all its threads, as /proc counts them. System calls are counted in
strace's trace, in a second look of its own, for strace itself makes a process wake up; without strace, or where it may
not attach, they are left out. All managers are looked at over the same seconds.
"""

import shutil
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path
from time import sleep

from bench.figure import Figure, Setting, say
from bench.peers import SETTLED, Fleet, Running, running
from bench.proc import sleeps
from bench.programs import PAUSE

ATTACHED_WITHIN = 2.0  # seconds until strace has attached


def measure(setting: Setting) -> list[Figure]:
    wakeups = Figure("wake-ups when idle", "1/s", budget=0.0)
    calls = Figure("system calls when idle", "1/s", budget=0.0, note="by strace")
    seconds = 3.0 if setting.quick else 10.0
    fleet = Fleet(4, setting.build(PAUSE, "pause"))
    with ExitStack() as stack:
        managers = [
            stack.enter_context(running(peer, setting.place("idle", peer.name), fleet)) for peer in setting.peers
        ]
        for manager in managers:
            manager.wait_for_children(4)
        sleep(SETTLED + 1)
        for run in range(setting.times(3, 1)):
            say(f"idle: {seconds:g} s, run {run + 1}")
            before = [sleeps(manager.pid) for manager in managers]
            sleep(seconds)
            for manager, then in zip(managers, before, strict=True):
                wakeups.add(manager.peer.name, (sleeps(manager.pid) - then) / seconds)
        if shutil.which("strace") is None:
            return [wakeups]
        for manager, count in zip(managers, count_calls(managers, seconds), strict=True):
            if count is not None:
                calls.add(manager.peer.name, count / seconds)
    return [wakeups, calls]


def count_calls(managers: list[Running], seconds: float) -> list[int | None]:
    """How many system calls each completes in this time; None where strace could not attach."""
    tracers = []
    for manager in managers:
        # What attaching itself causes is in the trace before the first look.
        command = ["strace", "-f", "-q", "-o", str(trace_of(manager)), "-p", str(manager.pid)]
        tracers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    try:
        sleep(ATTACHED_WITHIN)
        before = [lines_of(manager) for manager in managers]
        sleep(seconds)
        after = [lines_of(manager) for manager in managers]
        attached = [tracer.poll() is None for tracer in tracers]
    finally:
        for tracer in tracers:
            tracer.send_signal(signal.SIGINT)  # it detaches; nothing if it has ended
            tracer.wait(10)
    return [end - begin if well else None for begin, end, well in zip(before, after, attached, strict=True)]


def trace_of(manager: Running) -> Path:
    return manager.directory / "strace"


def lines_of(manager: Running) -> int:
    return trace_of(manager).read_bytes().count(b"\n") if trace_of(manager).exists() else 0
