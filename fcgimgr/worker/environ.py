"""From a request's FastCGI parameters to the environ that PEP 3333 promises; the same for every engine.

environ = DEFAULTS.copy()
environ.update(parameters)
finish(environ, promises(threads=16))
environ["wsgi.input"] = ...
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Final

from fcgimgr.worker.exchange import FileWrapper

#: PEP 3333 wants these to be there, whatever the web server says.
DEFAULTS: Final[dict[str, Any]] = {
    "REQUEST_METHOD": "GET",
    "SCRIPT_NAME": "",
    "QUERY_STRING": "",
    "SERVER_NAME": "localhost",
    "SERVER_PORT": "80",
    "SERVER_PROTOCOL": "HTTP/1.0",
}


def promises(threads: int) -> dict[str, Any]:
    """What the server says of itself, in every request to a process that serves `threads` at once."""
    return {
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": threads > 1,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.file_wrapper": FileWrapper,
        # The input ends where the body does, also of one without a Content-Length (Werkzeug's name for that).
        "wsgi.input_terminated": True,
    }


def finish(environ: dict[str, Any], promised: Mapping[str, Any]) -> None:
    """What is left to do before these parameters are a WSGI environ."""
    environ.update(promised)  # last: what the server says of itself is not the web server's to say
    if environ.get("HTTPS") in ("on", "1"):
        environ["wsgi.url_scheme"] = "https"
    # A web server repeats these two as headers of the client's; PEP 3333 has them without HTTP_ alone.
    environ.pop("HTTP_CONTENT_LENGTH", None)
    environ.pop("HTTP_CONTENT_TYPE", None)
    if "PATH_INFO" not in environ:
        # It knows of no place where the application is mounted, and gives all of the path as the script's name.
        environ["PATH_INFO"] = environ["SCRIPT_NAME"]
        environ["SCRIPT_NAME"] = ""
