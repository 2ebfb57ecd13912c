"""Every way of writing an address is understood, and every near miss says what to write."""

import pytest

from fcgimgr.config.address import (
    InheritedAddress,
    SystemdAddress,
    TcpAddress,
    UnixAddress,
    parse_address,
)


@pytest.mark.parametrize(
    ("text", "address", "canonical"),
    [
        ("127.0.0.1:9001", TcpAddress("127.0.0.1", 9001), "127.0.0.1:9001"),
        ("tcp://127.0.0.1:9001", TcpAddress("127.0.0.1", 9001), "127.0.0.1:9001"),
        (" localhost:80 ", TcpAddress("localhost", 80), "localhost:80"),
        ("Db-1.example.ORG:65535", TcpAddress("db-1.example.org", 65535), "db-1.example.org:65535"),
        ("[::1]:9001", TcpAddress("::1", 9001), "[::1]:9001"),
        ("tcp://[0:0:0:0:0:0:0:1]:9001", TcpAddress("::1", 9001), "[::1]:9001"),
        ("[fe80::1%eth0]:9001", TcpAddress("fe80::1%eth0", 9001), "[fe80::1%eth0]:9001"),
        ("*:9001", TcpAddress("*", 9001), "*:9001"),
        ("/run/app.sock", UnixAddress("/run/app.sock"), "unix:/run/app.sock"),
        ("//run//x/../app.sock", UnixAddress("/run/app.sock"), "unix:/run/app.sock"),
        ("unix:/run/app.sock", UnixAddress("/run/app.sock"), "unix:/run/app.sock"),
        ("unix:///run/app.sock", UnixAddress("/run/app.sock"), "unix:/run/app.sock"),
        ("unix:@app", UnixAddress("@app"), "unix:@app"),
        ("systemd:web", SystemdAddress("web"), "systemd:web"),
        ("fd:3", InheritedAddress(3), "fd:3"),
    ],
)
def test_every_form_is_read_and_shown_in_one_way(text: str, address: object, canonical: str):
    assert parse_address(text) == address
    assert str(parse_address(text)) == canonical
    assert parse_address(canonical) == address


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        ("", "the port is missing"),
        ("9001", "write 127.0.0.1:9001, or *:9001"),
        (":9001", "write 127.0.0.1:9001, or *:9001"),
        ("127.0.0.1", "the port is missing"),
        ("127.0.0.1:", "the port is missing"),
        ("127.0.0.1:http", "a number from 1 to 65535"),
        ("127.0.0.1:0", "a number from 1 to 65535"),
        ("127.0.0.1:65536", "a number from 1 to 65535"),
        ("127.0.0.1:٣", "a number from 1 to 65535"),
        ("127.0.0.999:9001", "not an IPv4 address"),
        ("::1:9001", "[::1]:9001"),
        ("[::1]", "the port is missing"),
        ("[::1", "written [::1]:9001"),
        ("[::g]:9001", "not an IPv6 address"),
        ("a host:9001", "not a host name"),
        ("http://127.0.0.1:9001", "no such kind of address"),
        ("run/app.sock", "give an absolute path"),
        ("app.sock", "give an absolute path"),
        ("unix:app.sock", "give an absolute path"),
        ("unix://run/app.sock", "unix:///run/app.sock"),
        ("unix:", "give an absolute path"),
        ("/run/", "is a directory"),
        ("/run/..", "is a directory"),
        ("unix:@", "needs a name"),
        ("@app", "write unix:@app"),
        ("fd:", "file descriptor's number"),
        ("fd:x", "file descriptor's number"),
        ("fd:1", "the manager's own output"),
        ("systemd:", "FileDescriptorName="),
        ("systemd:a:b", "FileDescriptorName="),
        ("127.0.0.1:9001\0", "NUL"),
    ],
)
def test_a_near_miss_says_what_to_write(text: str, mend: str):
    with pytest.raises(ValueError) as caught:
        parse_address(text)
    assert mend in str(caught.value)


def test_a_unix_path_holds_at_most_107_bytes():
    longest = "/" + "é" * 53
    assert parse_address(longest) == UnixAddress(longest)
    with pytest.raises(ValueError) as caught:
        parse_address("/x" + "é" * 53)
    assert "108 bytes long" in str(caught.value)
    assert "at most 107" in str(caught.value)
