"""From a request's FastCGI parameters to the environ that PEP 3333 promises; the same for every engine.

    promised = promises(threads=16)
    environ = template(promised).copy()
    environ.update(parameters)
    finish(environ, promised)
    environ["wsgi.input"] = ...

**Where the application is mounted** is for the web server to say: SCRIPT_NAME is the mount, PATH_INFO the path below
it. A missing PATH_INFO is an empty one (RFC 3875, section 4.1.5): lighttpd, HAProxy and Apache's SetHandler leave it
out when somebody asks for the mount itself. Two web servers give the whole path as SCRIPT_NAME where they know of no
mount, and can be told from these by what else they say:

- nginx, with the fastcgi_params that it comes with: the path is DOCUMENT_URI as well.
- Apache's ProxyPass: behind the address in SCRIPT_FILENAME stands what is left of the path when it has taken away what
  it is about, as it would pass it on to a server of HTTP.

HAProxy without `path-info` does so too and cannot be told; it needs that line (docs/fronts.md).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any, Final

from fcgimgr.worker.exchange import FileWrapper
from fcgimgr.worker.saying import error_stream

#: PEP 3333 wants these to be there, whatever the web server says; what is empty is found by `finish`.
DEFAULTS: Final[dict[str, Any]] = {
    "REQUEST_METHOD": "GET",
    "SCRIPT_NAME": "",
    "PATH_INFO": None,
    "QUERY_STRING": "",
    "SERVER_NAME": "",
    "SERVER_PORT": "",
    "SERVER_PROTOCOL": "HTTP/1.0",
}
#: With so many entries at first CPython makes the table of a dict large enough for the environ of most requests.
_ROOM: Final = 22

_ESCAPE: Final = re.compile("%([0-9A-Fa-f]{2})")
_PROXIED: Final = re.compile("proxy:fcgi://[^/]*")
_IP_ADDRESS: Final = re.compile(r"[0-9.]+|[0-9A-Fa-f:.]+")


def promises(threads: int) -> dict[str, Any]:
    """What the server says of itself, in every request to a process that serves `threads` at once."""
    return {
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.errors": error_stream(sys.stderr),
        "wsgi.multithread": threads > 1,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.file_wrapper": FileWrapper,
        # The input ends where the body does, also of one without a Content-Length (Werkzeug's name for that).
        "wsgi.input_terminated": True,
    }


def template(promised: Mapping[str, Any]) -> dict[str, Any]:
    """What to copy for each request."""
    made = {**DEFAULTS, **promised}
    # A copy has a table as large as its original, which need not grow while the parameters are put in.
    fillers = range(len(made), _ROOM)
    for filler in fillers:
        made[f"filler {filler}"] = None
    for _ in fillers:
        made.popitem()
    return made


def finish(environ: dict[str, Any], promised: Mapping[str, Any]) -> None:
    """What is left to do before these parameters are a WSGI environ."""
    # Once more: what the server says of itself is not the web server's to say. (To look for that first costs more.)
    environ.update(promised)
    if "HTTPS" in environ and environ["HTTPS"] in ("on", "1"):
        environ["wsgi.url_scheme"] = "https"
    # A web server repeats these two as headers of the client's; PEP 3333 has them without HTTP_ alone.
    if "HTTP_CONTENT_LENGTH" in environ:  # a look costs less than a call
        del environ["HTTP_CONTENT_LENGTH"]  # noqa: RUF051
    if "HTTP_CONTENT_TYPE" in environ:
        del environ["HTTP_CONTENT_TYPE"]  # noqa: RUF051
    if not environ["PATH_INFO"]:
        environ["SCRIPT_NAME"], environ["PATH_INFO"] = _place(environ)
    if not (environ["SERVER_NAME"] and environ["SERVER_PORT"]):
        _name_server(environ)


def _place(environ: Mapping[str, Any]) -> tuple[str, str]:
    """The mount and the path of a request of which the web server has not said both."""
    mount, path = environ["SCRIPT_NAME"], environ["PATH_INFO"]
    if path is None:
        mount, path = _split(mount, environ)
    if path:
        return mount, path
    if mount:
        # PEP 3333 leaves it open, but no mount that anybody has written ends with the slash.
        return (mount[:-1], "/") if mount.endswith("/") else (mount, "")
    asked = environ.get("REQUEST_URI", "").partition("?")[0]
    return "", environ.get("DOCUMENT_URI") or (_decoded(asked) if asked.startswith("/") else "/")


def _split(script: str, environ: Mapping[str, Any]) -> tuple[str, str]:
    """The same where PATH_INFO is missing."""
    document = environ.get("DOCUMENT_URI")
    if document:
        at = len(script)
        # Not so with a mount that is set beside it, or what fastcgi_split_path_info has found.
        return (script, document[at:]) if script and document.startswith(f"{script}/") else ("", document)
    file = environ.get("SCRIPT_FILENAME", "")
    found = _PROXIED.match(file)
    # With ProxyFCGIBackendType GENERIC, and of a balancer, Apache says the path alone.
    if found or environ.get("SERVER_SOFTWARE", "").startswith("Apache"):
        passed = _decoded((file[found.end() :] if found else file).partition("?")[0])
        if passed.startswith("/") and script.endswith(passed):
            return script[: -len(passed)], passed
    return script, ""


def _decoded(path: str) -> str:
    """Of what the client or Apache has written with escapes, the bytes, as PEP 3333 has them in text."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), path)


def _name_server(environ: dict[str, Any]) -> None:
    """What PEP 3333 has "never empty", and a URL is made of. nginx leaves the name empty in a server without
    server_name, and the port of a listener that is a Unix socket."""
    if not environ["SERVER_NAME"]:
        address = environ.get("SERVER_ADDR", "")
        if not (address and _IP_ADDRESS.fullmatch(address)):
            address = "localhost"
        environ["SERVER_NAME"] = f"[{address}]" if ":" in address else address
    if not environ["SERVER_PORT"]:
        environ["SERVER_PORT"] = "443" if environ["wsgi.url_scheme"] == "https" else "80"
