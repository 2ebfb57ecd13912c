"""nginx in front of a server, and wrk in front of nginx; all on 127.0.0.1."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from bench.proc import wait_until

# Below the range of outgoing connections (ip_local_port_range), and apart from the ports of the tests.
_PORTS: Final = range(30000, 32000)
PATIENCE: Final = 10  # seconds without an answer after which wrk counts a failure

# One request on one upstream server: nginx tries once, and what it answers is what happened. All else is its default,
# unless connections to the server are to be kept.
_NGINX: Final = """
daemon off;
pid nginx.pid;
error_log {directory}/error.log error;
worker_processes 1;
{user}
events {{ worker_connections 512; }}
http {{
    access_log off;
    keepalive_requests 10000000;
    client_body_temp_path temp;
    proxy_temp_path temp;
    fastcgi_temp_path temp;
    uwsgi_temp_path temp;
    scgi_temp_path temp;
    client_max_body_size 0;
    {upstream}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            {parameters}
            {keep}
            {protocol}_pass {address};
        }}
    }}
}}
"""

_PARAMETERS: Final = """
            {kind}_param REQUEST_METHOD $request_method;
            {kind}_param QUERY_STRING $query_string;
            {kind}_param REQUEST_URI $request_uri;
            {kind}_param PATH_INFO $document_uri;
            {kind}_param SERVER_PROTOCOL $server_protocol;
            {kind}_param SERVER_NAME $server_name;
            {kind}_param SERVER_PORT $server_port;
            {kind}_param CONTENT_TYPE $content_type;
            {kind}_param CONTENT_LENGTH $content_length;
            {kind}_param REMOTE_ADDR $remote_addr;
            {kind}_param SCRIPT_NAME "";
"""

_KEPT: Final = """
    upstream kept {{
        server {server};
        keepalive 128;
        keepalive_requests 100000;
    }}
"""

_KEEPING: Final = {
    "fastcgi": "fastcgi_keep_conn on;",
    "http": 'proxy_http_version 1.1; proxy_set_header Connection "";',
}

# wrk hands over what it has counted (its SCRIPTING file); times are microseconds.
_LUA: Final = """
done = function(summary, latency, requests)
    local errors = summary.errors
    io.write(string.format(
        'counted {"requests": %d, "seconds": %f, "longest": %f, "p99": %f, "status": %d, "sockets": %d}\\n',
        summary.requests, summary.duration / 1e6, latency.max / 1e6,
        latency:percentile(99) / 1e6, errors.status,
        errors.connect + errors.read + errors.write + errors.timeout))
end
"""

Cause = Literal["refused", "cut off", "other"]

_CAUSES: Final[dict[Cause, re.Pattern[str]]] = {
    "refused": re.compile(r"connect\(\) .*failed \((111: Connection refused|2: No such file)"),
    "cut off": re.compile(r"prematurely closed|\((104: Connection reset|32: Broken pipe|103: Software caused)"),
}


@dataclass(frozen=True)
class Counted:
    """By wrk: requests that came to an end, failed ones among them or besides, seconds of load; seconds of the longest
    answer, and of that which 99 of 100 do not exceed."""

    requests: int
    failed: int
    seconds: float
    longest: float
    p99: float

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return max(0, self.requests - self.failed) / self.seconds


def free_port() -> int:
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as trial:
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no free port in {_PORTS}")


class Front:
    """The nginx that runs on `port`, with its files in `directory`."""

    def __init__(self, directory: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/"
        self._directory = directory

    def wait_for_answer(self, within: float) -> None:
        """Until the server behind it answers well; what failed before that is forgotten."""

        def answers() -> bool:
            try:
                with urllib.request.urlopen(self.url, timeout=10) as answer:
                    return bool(answer.read() == b"Hello\n")
            except (urllib.error.URLError, OSError):
                return False

        wait_until(answers, within, 0.02, f"an answer from {self.url}")
        os.truncate(self._directory / "error.log", 0)

    def causes(self) -> Counter[Cause]:
        """Of its errors since: refused (nobody listened), cut off (connected, and closed without an answer), others."""
        found: Counter[Cause] = Counter()
        for line in (self._directory / "error.log").read_text(errors="replace").splitlines():
            found[next((cause for cause, form in _CAUSES.items() if form.search(line)), "other")] += 1
        return found


@contextmanager
def front(directory: Path, protocol: str, address: str, *, keep: bool = False) -> Iterator[Front]:
    """nginx, passing all to `address`, on connections that it keeps if it is to; on leaving it is ended."""
    directory.mkdir()
    port = free_port()
    if protocol == "http":
        parameters = ""
    else:
        parameters = _PARAMETERS.format(kind=protocol)
        if protocol == "fastcgi":
            parameters += f"fastcgi_param SCRIPT_FILENAME {directory.parent}/app.php;"
    upstream = keeping = ""
    if keep:
        upstream, address = _KEPT.format(server=address), "kept"
        keeping = _KEEPING[protocol]
    (directory / "nginx.conf").write_text(
        _NGINX.format(
            directory=directory,
            # As root it would serve as "nobody", who cannot enter our directory.
            user="user root;" if os.geteuid() == 0 else "",
            port=port,
            parameters=parameters,
            upstream=upstream,
            keep=keeping,
            protocol="proxy" if protocol == "http" else protocol,
            address=f"http://{address}" if protocol == "http" else address,
        )
    )
    with (directory / "output").open("wb") as output:
        process = subprocess.Popen(
            ["nginx", "-p", str(directory), "-c", str(directory / "nginx.conf"), "-e", str(directory / "error.log")],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield Front(directory, port)
    finally:
        process.terminate()
        try:
            process.wait(10)
        finally:
            process.kill()
            process.wait()


class Load:
    """wrk at work: `connections` clients, each asking again as soon as it has its answer. It ends with `end`.

    `request`: Lua that says what they ask for, if it is no plain GET.
    """

    def __init__(self, url: str, connections: int, directory: Path, at_most: int, request: str = "") -> None:
        script = directory / "counted.lua"
        script.write_text(request + _LUA)
        words = ["wrk", "-t", "1", "-c", str(connections), "-d", f"{at_most}s", "--timeout", f"{PATIENCE}s"]
        self._process = subprocess.Popen(
            [*words, "-s", str(script), url],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self) -> Counted:
        """wrk ends on SIGINT as at the end of its time."""
        self._process.send_signal(signal.SIGINT)
        return self.result(0)

    def result(self, seconds: float) -> Counted:
        """Wait for the end of its time, in so many seconds."""
        said, _ = self._process.communicate(timeout=seconds + 30)
        for line in said.splitlines():
            if line.startswith("counted "):
                told = json.loads(line.removeprefix("counted "))
                failed = told["status"] + told["sockets"]
                return Counted(told["requests"], failed, told["seconds"], told["longest"], told["p99"])
        raise RuntimeError(f"wrk: {said[-1000:]}")

    def kill(self) -> None:
        """However it goes: nothing is left of it."""
        self._process.kill()
        self._process.communicate()
