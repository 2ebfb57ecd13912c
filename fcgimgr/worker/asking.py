"""`GET /path?query`: how a log names the request that it is about, in one line that no client can forge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

#: Characters of a URI that are shown; nginx takes 8 KB of it, and a log is read by people.
SHOWN: Final = 1024


def asked(params: Mapping[str, Any]) -> str:
    """The method and URI of a request with these FastCGI parameters (or of the WSGI environ made of them).

    REQUEST_URI is what the client sent, and is preferred; PATH_INFO is decoded (PEP 3333), so that `%0A` in a path is
    a line feed in it. Whatever is not printable is written as an escape.
    """
    uri = str(params.get("REQUEST_URI", ""))
    if not uri:
        uri = f"{params.get('SCRIPT_NAME', '')}{params.get('PATH_INFO', '')}"
        if params.get("QUERY_STRING"):
            uri += f"?{params['QUERY_STRING']}"
    if len(uri) > SHOWN:
        uri = f"{uri[:SHOWN]}..."
    return _printable(f"{params.get('REQUEST_METHOD', '-')} {uri or '-'}")


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
