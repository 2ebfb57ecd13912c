"""Log throughput: one child writes lines of 100 bytes to its stdout as fast as it can, the manager puts them in a file.

From the child's first write to the moment when the file has all of them; nothing is rotated. The file is on the file
system of the temporary directory and is removed after each run. The managers take turns. PHP-FPM has no such log.
"""

from pathlib import Path
from time import sleep

from bench.figure import Figure, Setting, say
from bench.peers import SETTLED, Fleet, running
from bench.proc import wait_until
from bench.programs import WRITER

MB = 1_000_000


def measure(setting: Setting) -> list[Figure]:
    size = 200 * MB if setting.quick else 1000 * MB
    figure = Figure(f"log lines to a file, {size // MB} MB", "MB/s", budget=800.0, better="more")
    writer = setting.build(WRITER, "writer")
    for run in range(setting.times(5, 3)):
        for peer in setting.peers:
            if peer.own_children:
                continue
            say(f"logs: {peer.name}, run {run + 1}")
            directory = setting.place("logs", run, peer.name)
            logfile, begun = directory / "child.log", directory / "begun"
            with running(peer, directory, Fleet(1, f"{writer} {size} {begun}", logfile)) as manager:
                manager.wait_for_children(1)
                start = wait_until(begun.exists, 30, 0.0005, "the child's first write")
                end = wait_until(lambda at=logfile: size_of(at) >= size, 120, 0.001, "the whole log")  # type: ignore[misc]
                figure.add(peer.name, size / MB / (end - start))
                sleep(SETTLED)
            logfile.unlink()
    return [figure]


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
