"""What an application sees of a request, whatever the web server in front of it has left out."""

from typing import Any

import pytest

from fcgimgr.worker.environ import finish, promises, template
from fcgimgr.worker.exchange import FileWrapper


def environ_of(**parameters: str) -> dict[str, Any]:
    promised = promises(4)
    environ = template(promised).copy()
    environ.update(parameters)
    environ.update(promised)
    finish(environ)
    return environ


def place(**parameters: str) -> tuple[str, str]:
    environ = environ_of(**parameters)
    return environ["SCRIPT_NAME"], environ["PATH_INFO"]


# --- SCRIPT_NAME and PATH_INFO; the parameters are what these servers of Debian 12 send


@pytest.mark.parametrize("mount", ["", "/shop"])
@pytest.mark.parametrize("path", ["/x", "/", "/a b", "/caf\xc3\xa9", "/x//y", "/50%25"])
def test_what_the_web_server_says_of_both_is_left_as_it_is(mount: str, path: str) -> None:
    said = {"REQUEST_URI": "/another", "DOCUMENT_URI": "/one/more", "SCRIPT_FILENAME": "/srv/app"}
    assert place(SCRIPT_NAME=mount, PATH_INFO=path, **said) == (mount, path)


@pytest.mark.parametrize("path", ["/", "/x", "/x/", "/a b", "/caf\xc3\xa9", "/x//y", "/50%25"])
def test_with_nginxs_own_fastcgi_params_all_of_it_is_the_path(path: str) -> None:
    assert place(SCRIPT_NAME=path, DOCUMENT_URI=path, REQUEST_URI="/before/a/rewrite") == ("", path)


def test_with_nginxs_own_fastcgi_params_a_mount_that_is_said_is_one() -> None:
    assert place(SCRIPT_NAME="/shop", DOCUMENT_URI="/shop/x") == ("/shop", "/x")
    assert place(SCRIPT_NAME="/index.py", DOCUMENT_URI="/") == ("", "/")  # fastcgi_index
    assert place(SCRIPT_NAME="/shop", DOCUMENT_URI="/shopping") == ("", "/shopping")


@pytest.mark.parametrize(
    "said",
    [
        {"SERVER_SOFTWARE": "lighttpd/1.4.69", "SCRIPT_FILENAME": "/srv/www/shop"},
        {"SERVER_SOFTWARE": "HAProxy 2.6.12", "SCRIPT_FILENAME": "/shop"},  # docroot /
        {"SERVER_SOFTWARE": "Apache", "SCRIPT_FILENAME": "proxy:fcgi://127.0.0.1:9001/srv/www/shop"},  # SetHandler
        {"SERVER_SOFTWARE": "Apache", "SCRIPT_FILENAME": "/srv/www/shop"},  # ProxyFCGIBackendType GENERIC
        {"SERVER_SOFTWARE": "Apache", "SCRIPT_FILENAME": "proxy:fcgi://127.0.0.1:9001/"},  # ProxyFCGISetEnvIf
        {},
    ],
    ids=["lighttpd", "haproxy", "handler", "generic", "set", "unknown"],
)
def test_the_mount_itself_is_the_mount_where_an_empty_path_is_left_out(said: dict[str, str]) -> None:
    assert place(SCRIPT_NAME="/shop", REQUEST_URI="/shop", DOCUMENT_ROOT="/srv/www", **said) == ("/shop", "")
    assert place(SCRIPT_NAME="/shop", PATH_INFO="", REQUEST_URI="/shop", **said) == ("/shop", "")


@pytest.mark.parametrize(
    ("script", "passed", "expected"),
    [
        ("/x", "/x", ("", "/x")),  # ProxyPass / fcgi://…/
        ("/", "/", ("", "/")),
        ("/a b", "/a%20b", ("", "/a b")),
        ("/caf\xc3\xa9", "/caf%C3%A9", ("", "/caf\xc3\xa9")),
        ("/shop/x", "/x", ("/shop", "/x")),  # ProxyPass /shop/ fcgi://…/
        ("/shop/", "/", ("/shop", "/")),
        ("/shop", "/", ("/shop", "")),  # ProxyPass /shop fcgi://…/
        ("/shop/x", "/shop/x", ("", "/shop/x")),  # ProxyPass /shop fcgi://…/shop
        ("/x", "/x?a=/x", ("", "/x")),
    ],
)
@pytest.mark.parametrize("address", ["proxy:fcgi://127.0.0.1:9001", "proxy:fcgi://localhost", ""])
def test_what_proxypass_takes_away_is_the_mount(
    script: str, passed: str, expected: tuple[str, str], address: str
) -> None:
    said = {"SERVER_SOFTWARE": "Apache/2.4.71 (Debian)", "DOCUMENT_ROOT": "/var/www"}
    assert place(SCRIPT_NAME=script, SCRIPT_FILENAME=f"{address}{passed}", **said) == expected


def test_a_mount_has_no_slash_at_its_end() -> None:
    assert place(SCRIPT_NAME="/") == ("", "/")
    assert place(SCRIPT_NAME="/", PATH_INFO="") == ("", "/")
    assert place(SCRIPT_NAME="/shop/", PATH_INFO="") == ("/shop", "/")


@pytest.mark.parametrize(
    ("said", "path"),
    [
        ({"DOCUMENT_URI": "/a b", "REQUEST_URI": "/other"}, "/a b"),
        ({"REQUEST_URI": "/caf%C3%A9/%2f?q=/"}, "/caf\xc3\xa9//"),
        ({"REQUEST_URI": "/50%"}, "/50%"),
        ({"REQUEST_URI": "*"}, "/"),
        ({"REQUEST_URI": "http://shop.example/x"}, "/"),
        ({}, "/"),
    ],
)
def test_not_both_are_empty(said: dict[str, str], path: str) -> None:
    """PEP 3333: one of SCRIPT_NAME or PATH_INFO."""
    assert place(**said) == ("", path)
    assert place(SCRIPT_NAME="", PATH_INFO="", **said) == ("", path)


# --- the server's name


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, ("localhost", "80")),
        ({"SERVER_NAME": "", "SERVER_PORT": "", "SERVER_ADDR": ""}, ("localhost", "80")),
        ({"SERVER_NAME": "", "SERVER_PORT": "8080", "SERVER_ADDR": "10.0.0.1"}, ("10.0.0.1", "8080")),
        ({"SERVER_NAME": "", "SERVER_PORT": "8080", "SERVER_ADDR": "::1"}, ("[::1]", "8080")),
        ({"SERVER_NAME": "", "SERVER_PORT": "", "SERVER_ADDR": "unix:/run/nginx.sock"}, ("localhost", "80")),
        ({"SERVER_NAME": "shop.example", "SERVER_PORT": "", "HTTPS": "on"}, ("shop.example", "443")),
        ({"SERVER_NAME": "shop.example", "SERVER_PORT": "8443", "HTTPS": "on"}, ("shop.example", "8443")),
    ],
)
def test_the_servers_name_and_port_are_never_empty(said: dict[str, str], expected: tuple[str, str]) -> None:
    environ = environ_of(**said)
    assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == expected


# --- what the server says of itself


def test_no_parameter_passes_for_what_the_server_says_of_itself() -> None:
    forged = dict.fromkeys([*promises(4), "wsgi.input"], "forged")
    environ = environ_of(**forged)
    assert {**environ, "wsgi.input": "forged"} == {**environ_of(), "wsgi.input": "forged"}
    assert environ["wsgi.multithread"] is True
    assert environ["wsgi.file_wrapper"] is FileWrapper
    assert environ_of(**{"wsgi.url_scheme": "javascript", "HTTPS": "on"})["wsgi.url_scheme"] == "https"


def test_nothing_is_left_in_a_template_of_what_made_room_in_it() -> None:
    assert not [name for name in environ_of() if "filler" in name]
