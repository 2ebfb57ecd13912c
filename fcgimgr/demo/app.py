"""The WSGI application of `fcgimgr demo`: a small page that says which process of the pool answered.

    /           the process, and how many requests it has served
    /environ    what the web server sent with this request
    ?sleep=0.5  answer after so many seconds (10 at most), to see several processes at work at once

Plain text for curl, HTML for a browser (whoever accepts text/html). All that comes from outside is escaped.
Standard library only, Python 3.9 or later, like every module that a worker loads.
"""

from __future__ import annotations

import html
import itertools
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final
from urllib.parse import parse_qs

MAX_SLEEP: Final = 10.0

#: Requests of this process; `next` on it is one step for all threads.
_served: Final = itertools.count(1)
_started: Final = time.monotonic()

Rows = list[tuple[str, str]]


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    number = next(_served)
    method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO") or "/"
    if method not in ("GET", "HEAD"):
        status, headers, title, rows = (
            "405 Method Not Allowed",
            [("Allow", "GET, HEAD")],
            f"{method} is not for here",
            [],
        )
    elif path == "/":
        time.sleep(_asked_sleep(environ.get("QUERY_STRING", "")))
        status, headers, title, rows = "200 OK", [], _process_name(), _process(number)
    elif path == "/environ":
        status, headers, title, rows = "200 OK", [], "What came with the request", _environ(environ)
    else:
        status, headers, title, rows = "404 Not Found", [], f"Nothing at {_unicode(path)}; try / or /environ", []
    browser = "text/html" in environ.get("HTTP_ACCEPT", "")
    body = (_page(title, rows) if browser else _text(title, rows)).encode("utf-8", "backslashreplace")
    headers = [
        ("Content-Type", f"text/{'html' if browser else 'plain'}; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        ("Vary", "Accept"),
        ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'"),
        ("X-Content-Type-Options", "nosniff"),
        *headers,
    ]
    start_response(status, headers)
    return [] if method == "HEAD" else [body]


def _asked_sleep(query: str) -> float:
    """Seconds from `sleep=`, 0 where it is no sensible number."""
    try:
        seconds = float(parse_qs(query).get("sleep", ["0"])[0])
    except ValueError:
        return 0.0
    return min(max(seconds, 0.0), MAX_SLEEP) if math.isfinite(seconds) else 0.0


def _process_name() -> str:
    return os.environ.get("FCGIMGR_PROCESS", f"process {os.getpid()}")


def _process(number: int) -> Rows:
    return [
        ("pid", str(os.getpid())),
        ("process", os.environ.get("FCGIMGR_PROCESS", "(not under fcgimgr)")),
        ("pool", os.environ.get("FCGIMGR_POOL", "-")),
        ("thread", threading.current_thread().name),
        ("requests", f"{number} by this process"),
        ("up for", f"{time.monotonic() - _started:.1f} s"),
        ("python", sys.version.split()[0]),
    ]


def _environ(environ: dict[str, Any]) -> Rows:
    return [(_unicode(name), _unicode(value)) for name, value in sorted(environ.items()) if isinstance(value, str)]


def _unicode(text: str) -> str:
    """What a WSGI string means: its characters are bytes (PEP 3333), which are UTF-8 as a rule."""
    return text.encode("latin-1", "replace").decode("utf-8", "replace")


def _text(title: str, rows: Rows) -> str:
    width = max((len(name) for name, _ in rows), default=0)
    lines = [title, *(f"  {name:{width}}  {value}" for name, value in rows)]
    # One line a row, whatever came: a terminal must not take orders from a request.
    return "".join("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line) + "\n" for line in lines)


def _page(title: str, rows: Rows) -> str:
    table = "".join(f"<tr><th>{html.escape(name)}<td>{html.escape(value)}\n" for name, value in rows)
    return _PAGE.format(title=html.escape(title), table=table)


_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
  body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 46rem; margin: 3rem auto; padding: 0 1rem;
         color-scheme: light dark; background: Canvas; color: CanvasText }}
  h1 {{ font-size: 1.6rem }}
  table {{ border-collapse: collapse }}
  th {{ text-align: left; font-weight: 600; padding: .15rem 1.5rem .15rem 0; vertical-align: top }}
  td {{ font-family: ui-monospace, monospace; overflow-wrap: anywhere }}
  footer {{ margin-top: 2rem; opacity: .75 }}
</style>
<h1>{title}</h1>
<table>
{table}</table>
<footer>Served by a FastCGI worker under fcgimgr. <a href="/">Ask again</a>: another process may answer.
  <a href="/environ">What came with the request</a>.</footer>
"""
