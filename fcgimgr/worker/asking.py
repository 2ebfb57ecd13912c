"""`GET /path?query`: how a log names the request that it is about, in one line that no client can forge; and its URI
as it is, for whoever has a form of his own for that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

#: Characters of a URI that are shown; nginx takes 8 KB of it, and a log is read by people.
SHOWN: Final = 1024


def request_uri(params: Mapping[str, Any]) -> str:
    """The URI of a request with these FastCGI parameters (or of the WSGI environ made of them): as the client has sent
    it, if the web server says so (REQUEST_URI), else put together of what is decoded."""
    uri = params.get("REQUEST_URI")
    if uri:
        return str(uri)
    query = params.get("QUERY_STRING")
    path = f"{params.get('SCRIPT_NAME', '')}{params.get('PATH_INFO', '')}"
    return f"{path}?{query}" if query else path


def asked(params: Mapping[str, Any]) -> str:
    """Its method and URI. PATH_INFO is decoded (PEP 3333), so that `%0A` in a path is a line feed in it: whatever is
    not printable is written as an escape.
    """
    uri = request_uri(params)
    if len(uri) > SHOWN:
        uri = f"{uri[:SHOWN]}..."
    return _printable(f"{params.get('REQUEST_METHOD', '-')} {uri or '-'}")


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
