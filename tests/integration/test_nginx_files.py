"""The files in nginx/ work as they are."""

import re
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.ports import free_address, free_port
from tests.integration.running import copy_example, running_example
from tests.integration.servers import CHECKOUT, Nginx, as_user, need, run, which
from tests.waiting import eventually

SNIPPETS = ["fastcgi-tcp.conf", "fastcgi-unix.conf", "php.conf", "asgi.conf"]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet_is_taken_by_nginx_unchanged(snippet: str, tmp_path: Path) -> None:
    need("nginx")
    shutil.copytree(CHECKOUT / "nginx" / "fcgimgr", tmp_path / "fcgimgr")
    conf = tmp_path / "nginx.conf"
    conf.write_text(
        f"pid nginx.pid; error_log stderr; {as_user()} events {{}}\n"
        "http { access_log off; client_body_temp_path temp; proxy_temp_path temp; fastcgi_temp_path temp;\n"
        "uwsgi_temp_path temp; scgi_temp_path temp;\n"
        f"server {{ listen 127.0.0.1:{free_port()}; include fcgimgr/{snippet}; }} }}\n"
    )
    said = run([which("nginx") or "nginx", "-t", "-p", str(tmp_path), "-c", str(conf)], tmp_path)
    assert "test is successful" in said
    assert "[warn]" not in said


def test_site_conf_serves_a_pool_on_kept_connections(tmp_path: Path) -> None:
    address = free_address("tcp", tmp_path)
    port = free_port()
    shutil.copytree(CHECKOUT / "nginx" / "fcgimgr", tmp_path / "fcgimgr")
    site = (CHECKOUT / "nginx" / "site.conf").read_text()
    assert site.count("127.0.0.1:9001;") == site.count("listen 80;") == 1
    site = site.replace("127.0.0.1:9001;", f"{address};").replace("listen 80;", f"listen 127.0.0.1:{port};")
    conf = tmp_path / "nginx.conf"
    conf.write_text(
        f"daemon off; pid nginx.pid; error_log stderr; {as_user()} events {{}}\n"
        "http { access_log off; client_body_temp_path temp; proxy_temp_path temp; fastcgi_temp_path temp;\n"
        f"uwsgi_temp_path temp; scgi_temp_path temp;\n{site}}}\n"
    )
    with running_example("flask", tmp_path, address) as manager, Nginx(tmp_path, conf, port) as nginx:
        for _ in range(5):  # on a connection to the pool that nginx keeps from one to the next
            assert nginx.get("/").status == 200

        def served() -> int:  # counted once the answer is on its way
            return sum(process.requests or 0 for process in manager.status(detail=True).pools[0].processes)

        eventually(lambda: served() == 5)


def test_demo_conf_serves_the_examples(tmp_path: Path) -> None:
    need("php-cgi", "nginx")
    conf, port_for = demo_with_free_ports(tmp_path)
    with ExitStack() as running:
        for name, port in {"flup": 9001, "php": 9004, "asgi": 9007}.items():
            address = f"127.0.0.1:{port_for[port]}"
            running.enter_context(running_example(name, tmp_path, address))
        nginx = running.enter_context(Nginx(tmp_path, conf, port_for[8080]))
        assert nginx.get("/").text.split() == ["/flup/", "/wsgi/", "/go/", "/php/", "/c/", "/perl/", "/asgi/"]
        assert nginx.get("/flup/x").says("Hello") == "from Python"
        assert nginx.get("/php/").says("Hello") == "from PHP"
        assert nginx.get("/asgi/x").says("asked") == "GET /asgi/x?"
        assert nginx.get("/go/").status == 502  # Not started.


def demo_with_free_ports(prefix: Path) -> tuple[Path, dict[int, int]]:
    """A copy of demo.conf and the snippets on free ports: (the file, which port stands for which).

    Below `prefix`, where the examples are copied to as well, so that `root examples/php` finds its page.
    """
    copy_example("flask", prefix)  # all are: three of them have a site of their own
    shutil.copytree(CHECKOUT / "nginx", prefix / "nginx", ignore=shutil.ignore_patterns(".temp", "demo.pid"))
    port_for: dict[int, int] = {}

    def exchange(found: re.Match[str]) -> str:
        port = port_for.setdefault(int(found[1]), 0) or free_port()
        port_for[int(found[1])] = port
        return f"127.0.0.1:{port}"

    conf = prefix / "nginx" / "demo.conf"
    sites = (prefix / "examples").glob("*/nginx.conf")
    for file in [conf, *sites, *(prefix / "nginx" / "fcgimgr").iterdir()]:
        file.write_text(re.sub(r"127\.0\.0\.1:(\d+)", exchange, file.read_text()))
    conf.write_text(f"{as_user()}\n{conf.read_text()}")
    return conf, port_for
