"""A file system that does not answer: who asks it for anything sleeps uninterruptibly (state D) until it has gone.

It is FUSE (fuse(4), linux/fuse.h) with this process as its server, which takes each request and answers none but the
first. Only root may mount it, and not in every container: then the test is skipped.
"""

import ctypes
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_IN = struct.Struct("=IIQQIIII")  # struct fuse_in_header
_OUT = struct.Struct("=IiQ")  # struct fuse_out_header
_INIT_OUT = struct.Struct("=IIIIHHIIHHI7I")  # struct fuse_init_out, of 7.31
_FUSE_INIT = 26
_MNT_FORCE, _MNT_DETACH = 1, 2


@contextmanager
def silence(directory: Path) -> Iterator[threading.Event]:
    """Such a file system at this new directory; the event is set as soon as somebody waits for an answer."""
    libc = ctypes.CDLL(None, use_errno=True)
    directory.mkdir()
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"/dev/fuse: {error.strerror}")
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0"
    if libc.mount(b"silence", os.fsencode(directory), b"fuse", 0, options.encode()):
        os.close(fd)
        pytest.skip(f"no FUSE can be mounted: {os.strerror(ctypes.get_errno())}")
    waits = threading.Event()
    server = threading.Thread(target=_serve, args=(fd, waits))
    server.start()
    try:
        yield waits
    finally:
        for how in (_MNT_FORCE, _MNT_DETACH):  # the first ends the connection, and lets go of all who wait
            libc.umount2(os.fsencode(directory), how)
        server.join()
        os.close(fd)


def _serve(fd: int, waits: threading.Event) -> None:
    try:
        while True:
            _, operation, unique, *_ = _IN.unpack_from(os.read(fd, 1 << 18))
            if operation == _FUSE_INIT:
                answer = _INIT_OUT.pack(7, 31, 65536, 0, 12, 9, 65536, 1, 0, 0, 0, *[0] * 7)
                os.write(fd, _OUT.pack(_OUT.size + len(answer), 0, unique) + answer)
            else:
                waits.set()
    except OSError:
        return  # ENODEV: it is unmounted
