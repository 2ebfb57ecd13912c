"""What systemd would hear: a stand-in listens on a real datagram socket."""

import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.sdnotify import Notifier


class Service:
    """A stand-in for systemd's end."""

    def __init__(self, sock: socket.socket, address: str) -> None:
        self.sock = sock
        self.notifier = Notifier(address)

    def heard(self) -> str:
        return self.sock.recv(65536).decode()


@pytest.fixture(params=["path", "abstract"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@fcgimgr-notify-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)
        yield Service(sock, address)


def test_each_message_in_systemds_words(service: Service) -> None:
    notifier = service.notifier
    for said, expected in (
        (notifier.ready(), "READY=1"),
        (notifier.ready("4 processes"), "READY=1\nSTATUS=4 processes"),
        (notifier.status("reloading app"), "STATUS=reloading app"),
        (notifier.stopping(), "STOPPING=1"),
        (notifier.alive(), "WATCHDOG=1"),
        (notifier.main_pid(42), "MAINPID=42"),
        (notifier.extend_timeout(1.5), "EXTEND_TIMEOUT_USEC=1500000"),
        (notifier.forget_fds("app"), "FDSTOREREMOVE=1\nFDNAME=app"),
    ):
        assert said
        assert service.heard() == expected


def test_a_reload_tells_its_moment(service: Service) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert service.notifier.reloading("reading pool.toml")
    told = re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=(\d+)\nSTATUS=reading pool.toml", service.heard())
    assert told
    assert before <= int(told[1]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_a_status_is_one_line_whatever_is_in_it(service: Service) -> None:
    assert service.notifier.status("broken\nREADY=1\r\n now")
    assert service.heard() == "STATUS=broken READY=1 now"


def test_descriptors_go_along_under_their_name(service: Service) -> None:
    with socket.socket() as one, socket.socket(socket.AF_UNIX) as two:
        assert service.notifier.store_fds("app", [one.fileno(), two.fileno()])
        message, fds, _, _ = socket.recv_fds(service.sock, 4096, 8)
        assert message == b"FDSTORE=1\nFDNAME=app\nFDPOLL=0"
        assert [os.fstat(fd).st_ino for fd in fds] == [os.fstat(one.fileno()).st_ino, os.fstat(two.fileno()).st_ino]
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize("name", ["", "with:colon", "new\nline", "ü", "x" * 256])
def test_a_name_systemd_would_refuse_is_a_mistake_of_the_caller(name: str) -> None:
    with pytest.raises(ValueError, match="is no name for an fd"):
        Notifier("/somewhere").store_fds(name, [0])


def test_too_many_descriptors_at_once_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="254 fds"):
        Notifier("/somewhere").store_fds("app", [0] * 254)


def test_nobody_there_and_nobody_listening_harm_nobody(tmp_path: Path) -> None:
    assert not Notifier(None).ready()
    assert not Notifier(str(tmp_path / "gone")).ready()
    assert not Notifier(f"@fcgimgr-gone-{os.getpid()}").ready()
    assert not Notifier("/" + "x" * 200).ready(), "too long for a socket"


def test_a_receiver_that_does_not_read_does_not_stop_us(service: Service) -> None:
    said = 0
    while service.notifier.alive():
        said += 1
        assert said < 100_000
    assert said > 0
    service.heard()
    assert service.notifier.alive()


def test_no_fd_is_left(service: Service) -> None:
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        service.notifier.ready()
        service.notifier.store_fds("app", [0])
    assert os.listdir("/proc/self/fd") == before


# --- the environment


def test_the_variables_are_taken_out_so_that_no_child_speaks_for_us() -> None:
    environ = {"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid()), "PATH": "/bin"}
    notifier = Notifier.from_environment(environ)
    assert (notifier.address, notifier.watchdog) == ("/run/n", 30.0)
    assert environ == {"PATH": "/bin"}


def test_without_the_variables_nothing_is_sent() -> None:
    notifier = Notifier.from_environment({})
    assert (notifier.address, notifier.watchdog) == (None, None)
    assert not notifier.ready()


def test_a_watchdog_that_is_meant_for_another_process_is_not_ours() -> None:
    environ = {"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}
    assert Notifier.from_environment(environ).watchdog is None
    assert Notifier.from_environment({"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "500000"}).watchdog == 0.5
    assert Notifier.from_environment({"WATCHDOG_USEC": "500000"}).watchdog is None, "nobody to tell"


@pytest.mark.parametrize("value", ["soon", "0", "-1", "1.5", "１"])
def test_a_malformed_watchdog_is_told(value: str) -> None:
    with pytest.raises(LinuxError, match=r"WATCHDOG_USEC: .* is not a positive number"):
        Notifier.from_environment({"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": value})


@pytest.mark.parametrize("value", ["relative", "vsock:2:1234"])
def test_a_socket_of_another_kind_is_refused(value: str) -> None:
    with pytest.raises(LinuxError, match=r"NOTIFY_SOCKET: .* neither an absolute path"):
        Notifier.from_environment({"NOTIFY_SOCKET": value})


def test_how_many_descriptors_are_kept_is_told_to_us_alone() -> None:
    environ = {"NOTIFY_SOCKET": "@n", "FDSTORE": "64"}
    notifier = Notifier.from_environment(environ)
    assert (notifier.room, environ) == (64, {})
    assert Notifier.from_environment({"FDSTORE": "64"}).room == 0, "nobody to send them to"
    assert Notifier.from_environment({"NOTIFY_SOCKET": "@n"}).room == 0


@pytest.mark.parametrize("value", ["many", "-1", "9" * 5000])
def test_a_malformed_number_of_descriptors_is_told(value: str) -> None:
    with pytest.raises(LinuxError, match=r"FDSTORE: .* is not a number"):
        Notifier.from_environment({"NOTIFY_SOCKET": "/n", "FDSTORE": value})


def test_the_same_process_after_an_exec_keeps_its_watchdog_whatever_its_pid() -> None:
    """A daemon is told the watchdog under its starter's pid, and executes newer code under its own."""
    environ = {"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid()), "FDSTORE": "9"}
    notifier = Notifier.from_environment(environ)
    assert notifier.environment == {"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "500000", "FDSTORE": "9"}
    others = Notifier.from_environment({"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"})
    assert others.environment == {"NOTIFY_SOCKET": "@n"}
