"""`request`: one FastCGI request from the command line, as a web server would make it."""

import os
import sys
from urllib.parse import unquote

import click

from fcgimgr import __version__

from .failure import Failure
from .options import Command


@click.command("request", cls=Command, short_help="Send one FastCGI request and show the answer.")
@click.argument("address", metavar="ADDRESS")
@click.argument("script_filename", metavar="SCRIPT_FILENAME", type=click.Path())
@click.option("-X", "--request", "method", metavar="METHOD", help="[default: GET, or POST with -d]")
@click.option(
    "-p", "--param", "params", metavar="NAME=VALUE", multiple=True, help="A FastCGI parameter more, or another value."
)
@click.option("-d", "--data", metavar="DATA|@FILE|-", help="The request's body: text, a file, or stdin.")
@click.option("-i", "--include", is_flag=True, help="Show the status and the headers too.")
@click.option(
    "--timeout", metavar="SECONDS", type=click.FloatRange(min=0, min_open=True), default=30.0, show_default=True
)
def request_(
    address: str,
    script_filename: str,
    method: str | None,
    params: tuple[str, ...],
    data: str | None,
    include: bool,
    timeout: float,
) -> None:
    """Send one FastCGI request to ADDRESS (127.0.0.1:9001, /run/app.sock) and show the answer.

    SCRIPT_FILENAME may end in ?QUERY. The parameters are those of nginx's fastcgi_params; -p SCRIPT_NAME= makes the
    whole path the PATH_INFO of a WSGI application, -p SCRIPT_NAME=/shop what is below /shop. What the program writes
    to its error stream goes to stderr.
    """
    from fcgimgr.fastcgi.client import fetch

    body = _body(data)
    response = fetch(
        address,
        request_params(script_filename, method or ("GET" if data is None else "POST"), body, params),
        body,
        timeout,
    )
    sys.stderr.write(response.stderr.decode("utf-8", "replace"))
    if include and response.status is not None:
        print(f"Status: {response.status}")
        for name, value in response.headers:
            print(f"{name}: {value}")
        print()
    sys.stdout.flush()
    sys.stdout.buffer.write(response.body)
    sys.stdout.buffer.flush()
    if response.protocol_status:
        raise Failure(
            f"{address}: {_REFUSALS.get(response.protocol_status, f'protocol status {response.protocol_status}')}"
        )
    if response.status is None:
        raise Failure(
            f"{address}: the program ended the request without any output (exit status {response.app_status})"
        )


# FastCGI 1.0, section 5.5
_REFUSALS = {
    1: "it takes only one request on a connection (FCGI_CANT_MPX_CONN)",
    2: "it is overloaded (FCGI_OVERLOADED)",
    3: "it does not know the role of a responder (FCGI_UNKNOWN_ROLE)",
}


def request_params(script: str, method: str, body: bytes, given: tuple[str, ...]) -> dict[str, str]:
    """The parameters of nginx's fastcgi_params file for this request, with `given` (NAME=VALUE) above them."""
    path, _, query = script.partition("?")
    asked = unquote(path, errors="surrogateescape")  # as nginx has it in $fastcgi_script_name and $document_uri
    params = {
        "GATEWAY_INTERFACE": "CGI/1.1",
        "SERVER_SOFTWARE": f"fcgimgr/{__version__}",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "localhost",
        "SERVER_ADDR": "127.0.0.1",
        "SERVER_PORT": "80",
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": "0",
        "REQUEST_SCHEME": "http",
        "REQUEST_METHOD": method,
        "REQUEST_URI": script,
        "QUERY_STRING": query,
        "DOCUMENT_ROOT": os.path.dirname(path) or "/",
        "DOCUMENT_URI": asked,
        "SCRIPT_FILENAME": path,
        "SCRIPT_NAME": asked,
        "HTTP_HOST": "localhost",
        "CONTENT_TYPE": "application/x-www-form-urlencoded" if body else "",
        "CONTENT_LENGTH": str(len(body)) if body else "",
        # php-cgi, when built to insist on a redirect, refuses to run without it.
        "REDIRECT_STATUS": "200",
    }
    named: dict[str, str] = {}
    for parameter in given:
        name, equals, value = parameter.partition("=")
        if not name or not equals:
            raise click.UsageError(f"-p {parameter}: give NAME=VALUE")
        named[name] = value
    mount = named.get("SCRIPT_NAME")
    if mount is not None and (path == mount or path.startswith(f"{mount}/")):
        # What is left of the path below it, decoded as a web server does it (RFC 3875, section 4.1.5).
        params["PATH_INFO"] = unquote(path[len(mount) :], errors="surrogateescape")
    return params | named


def _body(data: str | None) -> bytes:
    if data is None:
        return b""
    if data == "-":
        return sys.stdin.buffer.read()
    if not data.startswith("@"):
        return os.fsencode(data)
    try:
        with open(data[1:], "rb") as file:
            return file.read()
    except OSError as error:
        raise click.UsageError(f"-d {data}: {error.strerror or error}") from error
