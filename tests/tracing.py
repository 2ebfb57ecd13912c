"""A process that another traces: only that other one hears when it dies (ptrace(2)), and its parent cannot reap it."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

TRACER = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
for pid in map(int, sys.argv[1:]):
    if libc.ptrace(0x4206, pid, None, None):  # PTRACE_SEIZE
        sys.exit(f"pid {pid} cannot be traced: error {ctypes.get_errno()}")
print("traced", flush=True)
sys.stdin.read()
"""


@contextmanager
def traced(*pids: int) -> Iterator[int]:
    """These processes are traced while this lasts, by the process that this answers with."""
    tracer = subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", TRACER, *map(str, pids)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert tracer.stdin is not None
    assert tracer.stdout is not None
    try:
        assert tracer.stdout.readline() == b"traced\n"
        yield tracer.pid
    finally:
        tracer.stdin.close()
        tracer.stdout.close()
        assert tracer.wait() == 0
