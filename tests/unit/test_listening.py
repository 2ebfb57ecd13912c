"""The listeners of a generation take the traffic all together or not at all."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fcgimgr.config.address import TcpAddress, UnixAddress
from fcgimgr.config.settings import PoolSettings
from fcgimgr.linux.errors import LinuxError
from fcgimgr.manager.sockets.listening import Listening, open_listening
from tests.integration.ports import free_port


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def answers(listening: Listening, address: str | tuple[str, int]) -> bool:
    """Whether a client of this address comes to one of these listeners."""
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as client:
        client.connect(address)
        for place in listening.places:
            place.listener.set_blocking(False)
            try:
                place.listener.sock.accept()[0].close()
            except BlockingIOError:
                continue
            return True
    return False


def test_an_address_that_cannot_be_had_leaves_all_others_where_they_were(tmp_path: Path, stack: ExitStack) -> None:
    """Three sockets, and at the last somebody has put another file in the place of ours."""
    port, paths = free_port(), [str(tmp_path / name) for name in ("one", "two")]
    settings = PoolSettings(
        name="app", command=("true",), sockets=(TcpAddress("127.0.0.1", port), *map(UnixAddress, paths))
    )
    old = open_listening(settings, {})
    stack.callback(old.close)
    new = open_listening(settings, {}, old)
    os.rename(paths[1], tmp_path / "aside")
    Path(paths[1]).write_text("precious")
    for _ in range(2):
        with pytest.raises(LinuxError, match=r"two is not ours any more"):
            new.take_traffic()
        assert answers(old, ("127.0.0.1", port))
        assert answers(old, paths[0])
        assert answers(new, f"{paths[0]}.new")
    os.rename(tmp_path / "aside", paths[1])
    new.take_traffic()
    assert answers(new, ("127.0.0.1", port))
    assert all(answers(new, path) for path in paths)
    # Those before keep theirs beside, and can have the traffic back.
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["one", "one.new", "two", "two.new"]
    assert old.can_come_back(new)
    old.come_back(new)
    assert answers(old, ("127.0.0.1", port))
    assert all(answers(old, path) and answers(new, f"{path}.new") for path in paths)
    new.close()
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["one", "two"]
