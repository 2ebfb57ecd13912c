"""What a worker does to the scoreboard, which it shares with the manager, makes nobody wait for it."""

import ctypes
import mmap
import os
import signal
from pathlib import Path
from typing import NoReturn

from fcgimgr.fastcgi import scoreboard
from fcgimgr.linux import procfs
from fcgimgr.linux.sharedmem import shared_memory
from fcgimgr.manager.children.board import Board
from tests.hostile.stage import Fuse
from tests.hostile.users import need_root
from tests.integration.scenes import NOBODY
from tests.waiting import eventually


def test_the_manager_writes_to_a_board_while_its_worker_is_in_a_write_that_does_not_end(place: Path) -> None:
    need_root()
    board = Board(shared_memory("board", scoreboard.size(1)))
    with Fuse(place) as fuse:
        if (worker := os.fork()) == 0:
            write_what_never_comes(board.fd, fuse.file)
        eventually(lambda: procfs.system_calls(worker) == [(1, board.fd)])
        # Who waits for it cannot be killed: so it is another one.
        if (manager := os.fork()) == 0:
            try:
                board.ask_to_reopen()
            finally:
                os._exit(0)
        try:
            eventually(lambda: procfs.state(manager) == "Z")
        finally:
            fuse.end()
            os.kill(worker, signal.SIGKILL)
            os.waitpid(worker, 0)
            os.waitpid(manager, 0)
    assert scoreboard.REOPEN.unpack(os.pread(board.fd, 4, scoreboard.REOPEN_AT)) == (1,)
    board.close()


def write_what_never_comes(fd: int, file: Path) -> NoReturn:
    try:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        libc = ctypes.CDLL(None)
        libc.mmap.restype = ctypes.c_void_p
        opened = os.open(file, os.O_RDONLY)
        page = libc.mmap(None, ctypes.c_size_t(4096), mmap.PROT_READ, mmap.MAP_SHARED, opened, ctypes.c_long(0))
        libc.write(fd, ctypes.c_void_p(page), ctypes.c_size_t(scoreboard.HEAD_SIZE))
    finally:
        os._exit(0)
