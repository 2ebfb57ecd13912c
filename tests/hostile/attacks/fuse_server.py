"""A FUSE server with one file, which can be opened and mapped; but whoever reads it waits for ever. fd 0 is /dev/fuse.

With the word `closed` as an argument whoever closes it waits for ever, too.

See linux/fuse.h for what it is asked, and what it answers.
"""

import errno
import os
import struct
import sys

HEADER = struct.Struct("=IIQQIIII")  # length, what, number of the question, node, uid, gid, pid, -
LOOKUP, FORGET, GETATTR, OPEN, READ, FLUSH, INIT, INTERRUPT = 1, 2, 3, 14, 15, 25, 26, 36
DIRECTORY, FILE = 1, 2
KEEP_CACHE = 2
UNANSWERED = {READ, FORGET, INTERRUPT} | ({FLUSH} if "closed" in sys.argv else set())


def attributes(node: int) -> bytes:
    mode = 0o040755 if node == DIRECTORY else 0o100644
    return struct.pack(
        "=QQQQQQIIIIIIIIII", node, 65536, 128, 0, 0, 0, 0, 0, 0, mode, 1, os.getuid(), os.getgid(), 0, 4096, 0
    )


def answer(what: int, node: int) -> bytes | None:
    if what == INIT:
        return struct.pack("=IIIIHHIIHHIIIIII", 7, 31, 65536, 0, 0, 0, 65536, 1, 0, 0, 0, 0, 0, 0, 0, 0)[:64]
    if what == LOOKUP:
        return struct.pack("=QQQQII", FILE, 0, 1000, 1000, 0, 0) + attributes(FILE)
    if what == GETATTR:
        return struct.pack("=QII", 1000, 0, 0) + attributes(node)
    if what == OPEN:
        return struct.pack("=QII", 1, KEEP_CACHE, 0)  # else who opens it waits for who reads it
    return None


while True:
    try:
        asked = os.read(0, 1 << 20)
    except InterruptedError:
        continue
    _, what, number, node, _, _, _, _ = HEADER.unpack_from(asked)
    if what in UNANSWERED:
        continue
    content = answer(what, node)
    error = 0 if content is not None else -errno.ENOSYS
    os.write(0, struct.pack("=IiQ", 16 + len(content or b""), error, number) + (content or b""))
