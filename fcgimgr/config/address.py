"""Where a pool listens: the ways to write an address, and the one way to show it.

`parse_address` takes every form that people bring along from nginx, Supervisor and PHP-FPM; `str(address)` gives the
canonical text, so that two addresses are the same place exactly when their texts are equal. Nothing is resolved or
opened here: a host name that does not exist, or a port in use, is that pool's trouble when it binds.
"""

import os
import re
import socket
from typing import Final

import msgspec

UNIX_PATH_MAX: Final = 107
"""Bytes of a Unix socket's path: sun_path holds 108, the last of them for the final NUL (unix(7))."""

FORMS: Final = "127.0.0.1:9001, [::1]:9001, *:9001 (every interface), /run/app.sock, systemd:NAME or fd:3"


class TcpAddress(msgspec.Struct, frozen=True, tag="tcp"):
    """A TCP port. `host` is a name, an IPv4 or IPv6 address without brackets, or "*": any interface, IPv4 and IPv6."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class UnixAddress(msgspec.Struct, frozen=True, tag="unix"):
    """A Unix stream socket: an absolute path, or "@name" in Linux's abstract namespace."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


class SystemdAddress(msgspec.Struct, frozen=True, tag="systemd"):
    """A socket passed by systemd socket activation under this name (`FileDescriptorName=`)."""

    name: str

    def __str__(self) -> str:
        return f"systemd:{self.name}"


class InheritedAddress(msgspec.Struct, frozen=True, tag="fd"):
    """A listening socket that the manager's starter left open as this file descriptor."""

    fd: int

    def __str__(self) -> str:
        return f"fd:{self.fd}"


Address = TcpAddress | UnixAddress | SystemdAddress | InheritedAddress


def parse_address(text: str) -> Address:
    """The address written as `text`; ValueError says what is wrong with it and what to write instead."""
    text = text.strip()
    if "\0" in text:
        raise ValueError("an address cannot hold a NUL character")
    scheme, colon, rest = text.partition(":")
    if text.startswith("/"):
        return UnixAddress(unix_path(text))
    if text.startswith("@"):
        raise ValueError(f"for an abstract socket write unix:{text}")
    if scheme == "unix" and colon:
        return UnixAddress(unix_path(rest.removeprefix("//"), slashes=rest.startswith("//")))
    if scheme == "systemd" and colon:
        return SystemdAddress(_systemd_name(rest))
    if scheme == "fd" and colon:
        return InheritedAddress(_fd_number(rest))
    if text.startswith("tcp://"):
        text = rest[2:]
    elif "://" in text:
        raise ValueError(f'"{text}": no such kind of address; write {FORMS}')
    elif "/" in text or text.endswith(".sock"):
        raise ValueError(f'"{text}": give an absolute path, as in /run/app.sock or %(here)s/app.sock')
    return _tcp(text)


def unix_path(path: str, *, slashes: bool = False) -> str:
    """`path` made plain, fit for a Unix socket; ValueError when it is relative, too long or names a directory.

    slashes: the path came after "unix://", where one slash more is often forgotten.
    """
    if path.startswith("@"):
        if len(path) == 1:
            raise ValueError("an abstract socket needs a name: unix:@NAME")
    elif not path.startswith("/"):
        mend = f"unix:///{path}" if slashes and path else "unix:/run/app.sock or unix:%(here)s/app.sock"
        raise ValueError(f'"{path}": give an absolute path, as in {mend}')
    elif path.endswith(("/", "/.", "/..")):
        raise ValueError(f'"{path}" is a directory; give the path of the socket itself')
    else:
        path = "/" + os.path.normpath(path).lstrip("/")
    length = len(path.encode("utf-8", "surrogateescape"))
    if length > UNIX_PATH_MAX:
        raise ValueError(f'"{path}" is {length} bytes long; the path of a Unix socket takes at most {UNIX_PATH_MAX}')
    return path


def numeric(family: int, host: str) -> str | None:
    """The canonical text of a numeric address (family: socket.AF_INET or AF_INET6), or None when it is not one."""
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, host))
    except (OSError, ValueError):  # ValueError: a character that no address holds
        return None


def _tcp(text: str) -> TcpAddress:
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise ValueError(f'"{text}": an IPv6 address is written [::1]:9001')
        return TcpAddress(_ipv6(host), _port(port.removeprefix(":"), text))
    host, colon, port = text.rpartition(":")
    if not colon:
        if port.isdecimal():
            raise ValueError(f'"{text}" is only a port; write 127.0.0.1:{port}, or *:{port} for every interface')
        raise ValueError(f'"{text}": the port is missing; write {FORMS}')
    if ":" in host:
        raise ValueError(f'"{text}": an IPv6 address goes in brackets, as in [{host}]:{port}')
    if not host:
        raise ValueError(f'"{text}": the host is missing; write 127.0.0.1:{port}, or *:{port} for every interface')
    if re.fullmatch(r"[0-9.]+", host):
        if numeric(socket.AF_INET, host) is None:
            raise ValueError(f'"{host}" is not an IPv4 address')
    elif host != "*" and not re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})", host):
        raise ValueError(f'"{host}" is not a host name; write {FORMS}')
    return TcpAddress(host.lower(), _port(port, text))


def _ipv6(host: str) -> str:
    # A zone ("fe80::1%eth0") is kept as it is: it names an interface, and only the kernel knows those.
    number, percent, zone = host.partition("%")
    canonical = numeric(socket.AF_INET6, number)
    if canonical is None or (percent and not re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", zone)):
        raise ValueError(f'"{host}" is not an IPv6 address')
    if (ipv4 := canonical.removeprefix("::ffff:")) != canonical and "." in ipv4:
        raise ValueError(f'"{host}" is an IPv4 address in the form of an IPv6 one, which cannot be bound; write {ipv4}')
    return canonical + percent + zone


def _port(port: str, text: str) -> int:
    if not port:
        raise ValueError(f'"{text}": the port is missing, as in 127.0.0.1:9001')
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise ValueError(f'"{text}": the port must be a number from 1 to 65535')
    return int(port)


def _systemd_name(name: str) -> str:
    # The rule is systemd's own for FileDescriptorName=: printable ASCII without ":", at most 255 (sd_listen_fds(3)).
    if not re.fullmatch(r"[!-9;-~]{1,255}", name):
        raise ValueError(
            f'"systemd:{name}": give the name set by FileDescriptorName= (else the .socket unit\'s own name)'
        )
    return name


def _fd_number(number: str) -> int:
    if not (number.isascii() and number.isdecimal() and len(number) <= 7):
        raise ValueError(f'"fd:{number}": give a file descriptor\'s number, as in fd:3')
    if int(number) in (1, 2):
        raise ValueError(f'"fd:{number}" is the manager\'s own output; an inherited listener is fd:0 or fd:3 and above')
    return int(number)
