"""Requests that fail because of reloads: five, one after the other, under load through nginx.

wrk asks on 32 connections without a pause, for 12 seconds: more than the workers can do at once, so the queue is never
empty. A reload begins every two seconds, or when the last one is over. It is over when its command has ended, no worker
of before is left and four new ones run; a signal has no command. Failed is what wrk counts as such: an answer that is
not 2xx or 3xx, a broken connection, no answer within ten seconds. The causes are counted in nginx's error log.
"""

import re
import shutil
import subprocess
from time import monotonic, sleep

from bench.figure import Figure, Setting, say
from bench.front import Load, free_port, front
from bench.peers import SETTLED, Process, start
from bench.proc import children, wait_until
from bench.servers import GO, PHP, TRANSPORTS, WORKERS, WSGI, Place, Server, Transport, find_servers

CONNECTIONS = 32
RELOADS = 5
EVERY = 2.0  # seconds
RELOAD_WITHIN = 60.0
AT_MOST = 120  # seconds of load, should reloads take for ever


class Figures:
    """What is told of each server: a column each."""

    def __init__(self, reloads: int) -> None:
        self.failed = Figure("failed requests", "", table="reload")
        self.refused = Figure("refused", "", table="reload")
        self.cut_off = Figure("cut off", "", table="reload")
        self.other = Figure("other cause", "", table="reload")
        self.taken = Figure("a reload takes", "s", table="reload")
        self.longest = Figure("longest answer", "s", table="reload")
        self.rate = Figure("good answers", "1/s", better="more", table="reload")
        # For the table of all figures: its columns' servers, each as it comes.
        self.budget = Figure(f"failed requests, {reloads} reloads at full load", "", budget=0.0, note="TCP")

    def all(self) -> list[Figure]:
        own = [self.failed, self.refused, self.cut_off, self.other, self.taken, self.longest, self.rate]
        return [self.budget, *own]


def measure(setting: Setting) -> list[Figure]:
    for program, package in {"nginx": "nginx-light", "wrk": "wrk"}.items():
        if shutil.which(program) is None:
            raise RuntimeError(f"{program} is not installed: apt-get install {package}")
    servers, missing = find_servers(lambda: go(setting))
    for line in missing:
        say(line)
    reloads = 2 if setting.quick else RELOADS
    figures = Figures(reloads)
    turns = [(server, transport) for server in servers for transport in TRANSPORTS if setting.wants(server.manager)]
    for run in range(setting.times(3, 1)):
        for server, transport in turns:
            say(f"reload: {server.title}, {transport}, run {run + 1}")
            try:
                measure_one(setting, figures, server, transport, run, reloads)
            except RuntimeError as error:
                # One of many: the others are worth having.
                say(f"  no sample of it: {error}")
                setting.failures.append(f"{server.title}, {transport}: {error}")
    if not figures.failed.samples:
        raise RuntimeError("no server could be measured")
    return figures.all()


def measure_one(
    setting: Setting, figures: Figures, server: Server, transport: Transport, run: int, reloads: int
) -> None:
    title = f"{server.title}, {transport}"
    # A plain name: PHP-FPM hands its listeners to its successor in a list with commas, and cannot read "=" in a path.
    directory = setting.place("reload", run, "-".join(re.findall(r"\w+", title)))
    place = Place(directory, transport, free_port())
    place.directory.mkdir(parents=True)
    (place.directory / "app.php").write_text(PHP)
    (place.directory / "app.py").write_text(WSGI)
    process = Process(title, place.directory, *start(server.configure(place), place.directory))
    try:
        process.wait_for_children(WORKERS)
        with front(place.directory / "nginx", server.protocol, place.address("unix:")) as nginx:
            nginx.wait_for_answer(30)
            sleep(SETTLED)
            load = Load(nginx.url, CONNECTIONS, place.directory, AT_MOST)
            try:
                begun = monotonic()
                for number in range(reloads):
                    sleep(max(0.2, begun + EVERY / 2 + number * EVERY - monotonic()))
                    figures.taken.add(title, reload(server, process))
                sleep(max(1.0, begun + EVERY * (reloads + 1) - monotonic()))
                counted = load.end()
            finally:
                load.kill()
            causes = nginx.causes()
    finally:
        process.end()
    say(f"  {counted.failed} of {counted.requests} failed; {dict(causes)}")
    figures.failed.add(title, counted.failed)
    figures.refused.add(title, causes["refused"])
    figures.cut_off.add(title, causes["cut off"])
    figures.other.add(title, causes["other"])
    figures.longest.add(title, counted.longest)
    figures.rate.add(title, counted.rate)
    if server.column is not None and transport == "TCP":
        figures.budget.add(server.column, counted.failed)


def reload(server: Server, process: Process) -> float:
    """Ask for it, and wait until it is over; seconds."""
    before = children(process.pid)
    begun = monotonic()
    server.reload(process)

    def over() -> bool:
        process.lives()
        now = children(process.pid)
        return not now & before and len(now) >= WORKERS

    return wait_until(over, RELOAD_WITHIN, 0.002, f"a reload of {process.name}") - begun


def go(setting: Setting) -> str:
    """The Go program, built once; its path."""
    program = setting.place("go", "answer")
    if not program.exists():
        program.parent.mkdir(exist_ok=True)
        (program.parent / "main.go").write_text(GO)
        words = ["go", "build", "-o", str(program), str(program.parent / "main.go")]
        built = subprocess.run(words, cwd=program.parent, capture_output=True, text=True, timeout=300)
        if built.returncode != 0:
            raise RuntimeError(f"go cannot build the program: {built.stderr.strip()}")
    return str(program)
