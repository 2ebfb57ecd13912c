"""Going to the background: two forks, a session of its own, and a word to the starter about how it went.

The starter waits on a pipe. What it prints, and its exit code, are those that the manager sends when it is up or has
failed; so `fcgimgr run --daemon && …` means what it says. If the manager dies without a word, that is a failure too.
"""

from __future__ import annotations

import os
import sys


class Starter:
    """The process that waits to hear how the start went; without one (in the foreground) nobody hears."""

    def __init__(self, fd: int | None = None) -> None:
        self._fd = fd

    @property
    def waits(self) -> bool:
        """Whether there is one, and it has not been told yet."""
        return self._fd is not None

    def tell(self, code: int, message: str = "") -> None:
        """Let the starter print `message` and end with `code`. Only the first call counts."""
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        try:
            os.write(fd, f"{code}\n{message}".encode("utf-8", "backslashreplace"))
        except BrokenPipeError:
            return  # the starter was killed; the manager is not the worse for it
        finally:
            os.close(fd)

    def fail(self, code: int, message: str) -> None:
        """Say why there will be no manager: to the starter, or where there is none, on standard error."""
        if self._fd is None:
            print(message, file=sys.stderr)
        else:
            self.tell(code, message)


def daemonize() -> Starter:
    """Go on in the background. The caller's process waits in here, and ends here."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    if child := os.fork():
        os.close(write_end)
        os.waitpid(child, 0)  # it ends at once; not every init of a container would reap it
        _wait_and_end(read_end)
    os.close(read_end)
    os.setsid()
    if os.fork():
        os._exit(0)  # no session leader is left that could get a controlling terminal
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    return Starter(write_end)


def _wait_and_end(read_end: int) -> None:
    with os.fdopen(read_end, "rb") as pipe:
        said = pipe.read()
    code, _, message = said.decode().partition("\n")
    if not code:
        code, message = "1", "the manager ended before it was up, without saying why"
    if message:
        print(message, file=sys.stderr, flush=True)
    os._exit(int(code))
