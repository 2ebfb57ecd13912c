"""What `preload` saves: a Django application's memory a worker, and the time from a kill to the next answer.

Memory is PSS, which counts a page that n processes share as 1/n, after requests to every worker; what all of the pool
takes has the zygote in it. For the time there is one worker, killed when it is older than startsecs; the request is
sent at once, waits in the socket's queue and is answered by the replacement, so that nothing needs to be polled. The
application answers a request of its own while it is imported, for half of Django is loaded at the first one.
"""

import importlib.util
import os
import signal
from pathlib import Path
from time import monotonic, sleep
from typing import Final

from bench.figure import OURS, Figure, Setting, say
from bench.peers import SETTLED, Fcgimgr, Process, start
from bench.proc import children, memory, wait_until
from fcgimgr.fastcgi.client import fetch

MB: Final = 1024 * 1024
WORKERS: Final = 4
REQUESTS: Final = 200
OLD_ENOUGH: Final = 1.3  # seconds: a death before may cost a pause
TABLE: Final = "preload"

APP: Final = """
from django.conf import settings

settings.configure(
    SECRET_KEY="bench",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF="app",
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    INSTALLED_APPS=[f"django.contrib.{name}" for name in ("admin", "auth", "contenttypes", "sessions", "messages")],
    MIDDLEWARE=[
        "django.middleware.security.SecurityMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
    LOGGING_CONFIG=None,
)
import django

django.setup()
from django.contrib import admin
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.template import engines
from django.urls import path

page = engines["django"].from_string("Hello {{ request.META.PATH_INFO }}\\n")
urlpatterns = [path("admin/", admin.site.urls), path("", lambda request: HttpResponse(page.render({}, request)))]
application = get_wsgi_application()
"""

PARAMETERS: Final = {
    "REQUEST_METHOD": "GET",
    "SCRIPT_NAME": "",
    "PATH_INFO": "/",
    "QUERY_STRING": "",
    "SERVER_NAME": "bench",
    "SERVER_PORT": "80",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "CONTENT_LENGTH": "0",
}


def measure(setting: Setting) -> list[Figure]:
    if importlib.util.find_spec("django") is None:
        raise RuntimeError("Django is not installed (scripts/bench installs it)")
    each = Figure("a worker, PSS", "MB", table=TABLE)
    whole = Figure(f"{WORKERS} workers, zygote and spare, PSS", "MB", table=TABLE)
    answer = Figure("from a kill to the next answer", "ms", table=TABLE)
    budget = Figure("a preloaded Django worker that is killed answers again in", "ms", budget=10.0)
    for run in range(setting.times(3, 1)):
        for preload in (False, True):
            row = f"Django {'with' if preload else 'without'} preload"
            say(f"preload: memory, {row}, run {run + 1}")
            for pss, figure in zip(
                memory_of(setting.place("preload", run, preload), preload), (each, whole), strict=True
            ):
                figure.add(row, pss)
    for preload in (False, True):
        row = f"Django {'with' if preload else 'without'} preload"
        say(f"preload: kills, {row}")
        for sample in kills(setting.place("preload", "kills", preload), preload, setting.times(20, 4)):
            answer.add(row, sample)
            if preload:
                budget.add(OURS, sample)
    return [budget, each, whole, answer]


def memory_of(directory: Path, preload: bool) -> tuple[float, float]:
    """MB of one worker, on average, and of all that is not the manager itself."""
    manager = running(directory, preload, WORKERS)
    try:
        for _ in range(REQUESTS):
            ask(directory)
        workers = children(manager.pid)
        zygote = {pid for pid in workers if Path(f"/proc/{pid}/comm").read_text().startswith("zygote:")}
        pss = {pid: memory(pid).pss / MB for pid in workers}
        return sum(pss[pid] for pid in workers - zygote) / WORKERS, sum(pss.values())
    finally:
        manager.end()


def kills(directory: Path, preload: bool, count: int) -> list[float]:
    """Milliseconds from each kill of the only worker to the answer of the next."""
    manager = running(directory, preload, 1)
    samples = []
    try:
        for _ in range(count):
            sleep(OLD_ENOUGH)
            pid = ask(directory)
            begun = monotonic()
            os.kill(pid, signal.SIGKILL)
            following = ask(directory)
            samples.append((monotonic() - begun) * 1000)
            if following == pid:
                raise RuntimeError("the killed worker has answered")
    finally:
        manager.end()
    return samples


def running(directory: Path, preload: bool, workers: int) -> Process:
    """A manager of so many Django workers, all of which have started."""
    directory.mkdir(parents=True)
    (directory / "app.py").write_text(APP)
    (directory / "who.py").write_text(
        "import io, os, sys\n"
        "from app import application\n"
        "def app(environ, start_response):\n"
        "    def start(status, headers, exc_info=None):\n"
        "        return start_response(status, [*headers, ('X-Pid', str(os.getpid()))], exc_info)\n"
        "    return application(environ, start)\n"
        # What Django loads at the first request only, every worker would have to load for itself.
        "PARTS = {'wsgi.input': io.BytesIO(), 'wsgi.errors': sys.stderr, 'wsgi.url_scheme': 'http'}\n"
        f"app({{**{PARAMETERS!r}, **PARTS}}, lambda *words: None).close()\n"
    )
    (directory / "fcgimgr.toml").write_text(f"""
[manager]
control = "{directory}/control.sock"
logfile = "{directory}/manager.log"

[pool.app]
socket = "unix:{directory}/app.sock"
wsgi = "who:app"
server = "native"
directory = "{directory}"
numprocs = {workers}
preload = {str(preload).lower()}
""")
    program = Fcgimgr().program
    process = Process("fcgimgr", directory, *start([program, "-c", str(directory / "fcgimgr.toml")], directory))
    try:
        process.wait_for_children(workers + preload)
        wait_until(lambda: (directory / "app.sock").exists(), 30, 0.01, "the socket")
        ask(directory)
        sleep(SETTLED)
    except BaseException:
        process.end()
        raise
    return process


def ask(directory: Path) -> int:
    """The pid of the worker that has answered."""
    response = fetch(f"unix:{directory}/app.sock", PARAMETERS, b"", timeout=30)
    if response.status != 200:
        raise RuntimeError(f"Django has answered with {response.status}: {response.body[:200]!r}")
    return int(dict(response.headers)["X-Pid"])
