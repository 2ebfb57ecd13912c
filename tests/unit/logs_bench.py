"""What the tests of the logs stand on: a clock that is turned by hand, a pipe, a loop that runs until it is so."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from fcgimgr.manager.logs.target import Target


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


class Memory(Target):
    """A target that keeps what it is given, each write for itself."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.is_blocked = False
        self.callbacks: list[Callable[[], None]] = []

    def write(self, chunk: bytes | memoryview) -> None:
        self.chunks.append(bytes(chunk))

    @property
    def blocked(self) -> bool:
        return self.is_blocked

    def when_free(self, callback: Callable[[], None]) -> None:
        self.callbacks.append(callback)

    def free(self) -> None:
        self.is_blocked = False
        callbacks, self.callbacks = self.callbacks, []
        for callback in callbacks:
            callback()

    @property
    def text(self) -> bytes:
        return b"".join(self.chunks)


def child_pipe() -> tuple[int, int]:
    """(reading end, non-blocking; writing end, blocking)."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(reader, False)
    return reader, writer


def run_until(loop: asyncio.AbstractEventLoop, probe: Callable[[], object], within: float = 10.0) -> None:
    """Run `loop` until `probe` is true; looked at after every turn, so nothing is waited for longer than needed."""

    async def look() -> None:
        deadline = loop.time() + within
        while not probe():
            assert loop.time() < deadline, f"not so within {within} s"
            await asyncio.sleep(0.0005)

    loop.run_until_complete(look())


def run_once(loop: asyncio.AbstractEventLoop) -> None:
    """Let everything happen that can happen now."""

    async def turns() -> None:
        for _ in range(3):
            await asyncio.sleep(0)

    loop.run_until_complete(turns())


def all_lines(path: Path) -> list[bytes]:
    """Every line of a log and its backups, oldest first; an unfinished line fails the test."""
    backups = sorted(path.parent.glob(f"{path.name}.*"), key=lambda backup: -int(backup.suffix[1:]))
    lines: list[bytes] = []
    for file in [*backups, path]:
        text = file.read_bytes()
        assert text.endswith(b"\n") or not text, f"{file.name} ends in a cut line: {text[-60:]!r}"
        lines += text.splitlines()
    return lines
