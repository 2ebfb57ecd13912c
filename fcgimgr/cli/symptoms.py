"""What somebody sees who is called at night (a state, what nginx answers, "hang", "leak"), and where that leads.

What it means, what to type, and the page that says more, for `fcgimgr help`: one table, and every state is in it.
"""

from collections.abc import Iterator
from textwrap import fill
from typing import Final, NamedTuple


class Symptom(NamedTuple):
    """`steps`: what to type, and what for; `pages`: of the documentation, or keys of the configuration."""

    words: str
    meaning: str
    steps: tuple[tuple[str, str], ...]
    pages: str


_WHO_HAS_WHAT: Final = ("fcgimgr status -v NAME", "what each process has in hand, and for how long; the queue")
_WHY: Final = ("fcgimgr status NAME", "why, below or behind each process")
_LAST_WORDS: Final = ("fcgimgr tail --stderr NAME", "what it said last")
_WHAT_HAPPENED: Final = ("fcgimgr events NAME", "what happened, why, and who has ordered it")
_START: Final = ("fcgimgr start NAME", "start it")
_MEND: Final = ("fcgimgr start NAME", "once it is mended")
_RELOAD: Final = ("fcgimgr reload NAME", "new processes; those serve who waits in the queue")
_RESTART_ONE: Final = ("fcgimgr restart NAME:NAME_00", "one process that hangs; what it has in hand is cut")
_MORE: Final = ("fcgimgr scale NAME +2", "two processes more, until the manager ends")
_ALONE: Final = ("fcgimgr request ADDRESS SCRIPT", "the same question without nginx")
_OF_NGINX: Final = ("tail /var/log/nginx/error.log", "nginx says which of its upstreams, and why")

SYMPTOMS: Final = (
    Symptom(
        "FATAL",
        "A process failed to start startretries times more, and is not tried again by itself, unless on_fatal is "
        '"retry". A pool is FATAL when nothing of it runs or will be tried, or when its socket could not be opened: '
        'clients are refused then, unless on_fatal is "keep".',
        (_WHY, _LAST_WORDS, _MEND),
        "troubleshooting.md on_fatal",
    ),
    Symptom(
        "BACKOFF",
        "A start has failed. It is tried again by itself, after a pause that grows; after startretries it is FATAL.",
        (_WHY, _LAST_WORDS, ("fcgimgr start NAME", "try at once")),
        "processes.md startretries",
    ),
    Symptom(
        "STARTING",
        "Started, and not ready yet; of a pool also: it waits for what it depends on. `ready` says what it waits for, "
        "and ready_timeout for how long.",
        (("fcgimgr status NAME", "what it waits for"), _LAST_WORDS),
        "ready ready_timeout troubleshooting.md",
    ),
    Symptom("RUNNING", "Ready: it serves, or does its work.", (_WHO_HAS_WHAT,), "processes.md"),
    Symptom(
        "DEGRADED",
        "Some processes of the pool run, others do not. It serves, with less room: one that has died is being "
        "replaced, or is FATAL.",
        (_WHY, _WHAT_HAPPENED),
        "processes.md monitoring.md",
    ),
    Symptom(
        "STOPPED",
        "It does not run, and nobody wants it to: it was stopped by hand, or has autostart = false. The socket "
        "of a pool that is STOPPED is closed: clients are refused.",
        (("fcgimgr events NAME", "who has stopped it"), _START),
        "processes.md autostart",
    ),
    Symptom(
        "STOPPING",
        "Told to end: it finishes what it has in hand. When stopwaitsecs is over, it is killed.",
        (_WHO_HAS_WHAT,),
        "stopwaitsecs processes.md",
    ),
    Symptom(
        "EXITED",
        'It has ended by itself, and that is right so: by autorestart, or as a job, by ready = "exit".',
        (_WHAT_HAPPENED, _LAST_WORDS, ("fcgimgr start NAME", "once more")),
        "autorestart processes.md",
    ),
    Symptom(
        "DRAINING HELD",
        "Of a generation: after a reload its old processes finish what they have in hand, or are held for a moment in "
        "case the new ones fail. Of the manager: somebody has ordered a drain, so that `probe ready` says no; it "
        "serves.",
        (_WHO_HAS_WHAT, ("fcgimgr drain --undo", "end the drain of the manager")),
        "reload.md stopwaitsecs",
    ),
    Symptom(
        "CANARY",
        "New processes that have a share of the connections, until somebody decides.",
        (("fcgimgr reload NAME --promote", "they get all"), ("fcgimgr reload NAME --abort", "they are discarded")),
        "reload.md",
    ),
    Symptom(
        "saturated EASED queue queued waiting full backlog overload busy",
        "BUSY is yes where a process has a connection in hand. When all have, who comes waits in the queue: "
        "`queue 3/4096` is three of at most 4096. Saturated: for five seconds no look has seen it empty; EASED: that "
        "is over. Either something hangs, or there are too few processes.",
        (_WHO_HAS_WHAT, _MORE, _RELOAD),
        "limits.md monitoring.md numprocs",
    ),
    Symptom(
        "hang hangs hung stuck frozen unresponsive deadlock blocked",
        "The processes do not come back from what they have in hand. Who waits in the queue is not lost by a reload.",
        (_WHO_HAS_WHAT, _RESTART_ONE, _RELOAD),
        "troubleshooting.md request_timeout slow_after",
    ),
    Symptom(
        "slow slowness latency performance",
        "Requests take long in the application, or wait before it. Of a wsgi pool slow_after logs where each slow one "
        "is just then, as a traceback.",
        (_WHO_HAS_WHAT, ("fcgimgr help slow_after", "the slow log")),
        "limits.md slow_after access_format",
    ),
    Symptom(
        "leak leaks memory rss oom swap",
        "RSS is the resident memory of a process. One that grows without end is replaced in time, behind a "
        "stand-in, by max_rss, or in a wsgi pool by max_requests. SIGKILL by nobody's order is, as a rule, the "
        "kernel's when memory ran out: journalctl -k says so.",
        (("fcgimgr status NAME", "RSS of each process"), ("fcgimgr reload NAME", "begin anew")),
        "limits.md max_rss max_requests",
    ),
    Symptom(
        "crash crashes crashed died killed segfault sigsegv sigkill sigabrt flapping loop restarts",
        "RESTARTS tells how often and why a process was started anew: 2c after crashes, 5r recycled, 1h by hand. "
        "SIGSEGV and SIGABRT are crashes in C, as a rule of an extension module; SIGKILL is somebody's, or the "
        "kernel's when memory ran out.",
        (_WHAT_HAPPENED, _LAST_WORDS, ("fcgimgr log -n 50", "the manager's own log")),
        "troubleshooting.md processes.md",
    ),
    Symptom(
        "permission permissions denied forbidden 13 eacces 403",
        "nginx may not write to the Unix socket or enter a directory above it (13 in its error log); or the user of "
        "the pool may not read or write what the application needs. 403 itself is nginx's or the application's.",
        (_OF_NGINX, ("sudo -u www-data fcgimgr request ADDRESS SCRIPT", "as the web server's user")),
        "troubleshooting.md socket_owner socket_mode user",
    ),
    Symptom(
        "502 gateway refused 111 2 104 premature prematurely",
        "nginx had no answer. 111 in its error log: nobody listens there, as the pool is STOPPED or FATAL or the "
        "address is another. 2: there is no such socket. 13: it may not. 11: the queue is full. `upstream prematurely "
        "closed`, 104: the process ended, or gave it up, before it had answered.",
        (_OF_NGINX, _WHY, _WHAT_HAPPENED, _ALONE),
        "troubleshooting.md fronts.md",
    ),
    Symptom(
        "504 timeout timeouts 110",
        "nginx has waited for fastcgi_read_timeout (60 s unless it is set) in vain: the request is in a process that "
        "hangs or is slow, or still in the queue.",
        (_OF_NGINX, _WHO_HAS_WHAT, _RELOAD),
        "troubleshooting.md request_timeout slow_after",
    ),
    Symptom(
        "503 11 eagain unavailable",
        "11 in nginx's error log: the queue of the Unix socket is full, which makes a 502. A 503 is not fcgimgr's: it "
        "is nginx's, by a limit of its own, or the application's.",
        (_OF_NGINX, _WHO_HAS_WHAT, _MORE),
        "troubleshooting.md socket_backlog",
    ),
    Symptom(
        "500 exception error",
        "The application was asked and has failed. Its traceback is on its standard error.",
        (_LAST_WORDS, _ALONE),
        "troubleshooting.md wsgi.md",
    ),
    Symptom(
        "499",
        "In nginx's access log: the client did not wait for the answer. Many of them: the application is slow.",
        (_WHO_HAS_WHAT,),
        "limits.md slow_after",
    ),
    Symptom(
        "404 413",
        "404 with `File not found.` is PHP's: SCRIPT_FILENAME leads nowhere, or the user may not read it; else it is "
        "the application's. 413 is client_max_body_size of nginx.",
        (_ALONE,),
        "troubleshooting.md fronts.md",
    ),
    Symptom(
        "port address in-use eaddrinuse bind",
        "Somebody else has the address of a pool; who, is said where it may be seen.",
        (("fcgimgr status NAME", "who has it"), ("ss -ltnp", "who listens where, as root"), _MEND),
        "troubleshooting.md socket",
    ),
    Symptom(
        "disk space enospc lost",
        "What cannot be written to a log is counted, and the processes go on. It is written again as soon as there is "
        "room.",
        (("fcgimgr status", "below the table: which logs, why, and how many lines are lost"), ("df -h", "where")),
        "logs.md",
    ),
    Symptom(
        "no-manager gone manager dead",
        "Without the manager its processes serve on, if it was killed. The next one takes them over.",
        (("fcgimgr ping", "is there one, and which"), ("fcgimgr run --daemon", "start it; or by systemctl")),
        "succession.md troubleshooting.md",
    ),
)

_BY_WORD: Final = {word.lower(): symptom for symptom in SYMPTOMS for word in symptom.words.split()}


def symptom(word: str) -> str | None:
    """What to tell somebody who sees `word`, in whatever case; None: nothing is known of it."""
    found = _BY_WORD.get(word.lower())
    return "\n".join(_told(word, found)) if found is not None else None


def _told(word: str, symptom: Symptom) -> Iterator[str]:
    yield fill(f"{word}: {symptom.meaning}", 100)
    yield ""
    width = max(len(line) for line, _ in symptom.steps)
    yield from (f"  {line:<{width}}  # {about}" for line, about in symptom.steps)
    yield ""
    yield f"More: {', '.join(f'fcgimgr help {page}' for page in symptom.pages.split())}"
