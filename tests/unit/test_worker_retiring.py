"""When a worker asks to be replaced: after its number of requests, not twice at once, and never without being heard."""

import socket
from pathlib import Path

import pytest

from fcgimgr.worker.retiring import ASK_AGAIN, Retirement


@pytest.fixture
def manager(tmp_path: Path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        yield receiver


def heard(manager: socket.socket) -> list[bytes]:
    said = []
    while True:
        try:
            said.append(manager.recv(1000))
        except BlockingIOError:
            return said


def test_it_asks_once_and_serves_on(manager: socket.socket):
    retirement = Retirement(3, 0, manager.getsockname())
    assert [retirement.one_more(100.0) for _ in range(2)] == [True, True]
    assert heard(manager) == []
    assert [retirement.one_more(100.0) for _ in range(5)] == [True] * 5
    assert heard(manager) == [b"X_RECYCLE=3 requests served (max_requests)"]


def test_it_asks_again_when_nothing_has_come_of_it(manager: socket.socket):
    retirement = Retirement(1, 0, manager.getsockname())
    for now in (100.0, 100.0 + ASK_AGAIN - 1, 100.0 + ASK_AGAIN):
        assert retirement.one_more(now)
    assert len(heard(manager)) == 2


def test_without_a_manager_it_ends():
    retirement = Retirement(2, 0, None)
    assert [retirement.one_more(1.0) for _ in range(2)] == [True, False]


def test_with_a_manager_that_is_gone_it_serves_on_and_says_so_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    retirement = Retirement(1, 0, str(tmp_path / "nobody"))
    assert all(retirement.one_more(100.0 * number) for number in range(1, 6))
    assert capfd.readouterr().err.count("nobody to replace it") == 1


def test_a_manager_that_does_not_read_is_not_waited_for(manager: socket.socket):
    retirement = Retirement(1, 0, manager.getsockname())
    assert all(retirement.one_more(1000.0 * number) for number in range(1, 2000))
    assert 0 < len(heard(manager)) < 2000


def test_a_manager_that_is_behind_is_asked_again_after_the_next_request(
    manager: socket.socket, capfd: pytest.CaptureFixture[str]
):
    crowd = Retirement(1, 0, manager.getsockname())
    for number in range(1, 2000):  # its queue is full
        crowd.one_more(1000.0 * number)
    retirement = Retirement(1, 0, manager.getsockname())
    assert all(retirement.one_more(100.0) for _ in range(3))
    heard(manager)
    assert retirement.one_more(100.0)
    assert heard(manager) == [b"X_RECYCLE=4 requests served (max_requests)"]
    assert retirement.one_more(100.0)
    assert heard(manager) == []
    assert capfd.readouterr().err == ""


def test_jitter_lets_workers_differ_and_never_comes_early():
    limits = {Retirement(100, 20, None).after for _ in range(500)}
    assert limits == set(range(100, 121))
