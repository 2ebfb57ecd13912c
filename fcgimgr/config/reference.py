"""docs/configuration.md: every key, taken from the settings. Write it again with

    python -m fcgimgr.config.reference > docs/configuration.md

A test fails while the file in the repository says something else.
"""

import json
import sys
from collections.abc import Iterable
from typing import Any, Final

from fcgimgr.config.compounds import AccessFormat, Addresses, Codes, Command, Environment, Names, Paths, Wsgi
from fcgimgr.config.keys import Key, keys
from fcgimgr.config.kinds import Kind
from fcgimgr.config.limits import Limit
from fcgimgr.config.pools import PoolSettings, ProcessSettings
from fcgimgr.config.scalars import (
    Account,
    Choice,
    Flag,
    Octal,
    Path,
    Percent,
    Readiness,
    Restart,
    Seconds,
    Signal,
    Size,
    Text,
    Whole,
)
from fcgimgr.config.settings import GroupSettings, ManagerSettings

# Each topic goes from its first key to the next topic's.
TOPICS: Final = {
    "command": "What runs",
    "user": "As whom",
    "rlimit_as": "Resource limits",
    "autostart": "When",
    "ready": "Ready",
    "stopsignal": "Stopping",
    "max_lifetime": "Recycling",
    "stdout_logfile": "Logs",
}
POOL_TOPICS: Final = {
    "socket": "Sockets",
    "wsgi": "WSGI",
    "max_requests": "Requests of a WSGI application",
    "drain": "Reloading",
}

OPENING: Final = """\
# Configuration

<!-- Made from fcgimgr/config by `python -m fcgimgr.config.reference > docs/configuration.md`; do not edit. -->

A configuration is a [TOML](https://toml.io) file. It is checked whole before any of it is used: `fcgimgr check` shows
every problem at once, each as `FILE: pool.app.socket_mode: what is wrong`. `fcgimgr schema` prints the JSON Schema, for
completion and checks in an editor.

```toml
include = ["conf.d/*.toml"]

[defaults]                     # for every pool and program
user = "www-data"

[pool.app]                     # processes that share a listening socket
socket   = "127.0.0.1:9001"
command  = "python3 app.py"
numprocs = 4

[program.mailer]               # processes without a socket
command = ["python", "mailer.py", "--queue=%(process_num)d"]
```

| table | what it holds |
|---|---|
| `[manager]` | [the manager itself](#manager); everything in it is optional |
| `[defaults]` | keys for every pool and program that does not say them itself; what only a pool has is for pools |
| `[pool.NAME]` | [processes that share listening sockets](#poolname) |
| `[program.NAME]` | [processes without a socket](#poolname-and-programname) |
| `[group.NAME]` | [several of them under one name](#groupname), for commands |

A NAME is one word without `:`, `/`, `*`, `,` or `%`; it does not begin with `-`, is not `all`, and names one thing
only. An `environment` in `[defaults]` is completed, not replaced, by the table's own.

`include` stands above the first table and takes a file or a list of files, each perhaps a pattern (`*`, `?`, `[...]`).
They are relative to the file that includes them, may include others, and are read in the order of the list, those of
one pattern by name. No table may be in two files.

## Values

- **Times** are seconds, as numbers; fractions are allowed: `0.5`.
- **Sizes** are bytes: `1048576`, or with KB, MB or GB (of 1024) as text: `"50MB"`.
- **Modes** are octal: `"0660"` or `0o660`. A plain `660` is refused: TOML reads it as decimal.
- **Paths** that are relative start at the directory of the file they stand in.
- **Signals** are names or numbers: `"TERM"`, `"SIGTERM"`, `15`.
- **Resource limits** are a number or a size for both the soft and the hard limit, or a pair: `"1024:4096"`.
- **Users** are names or numbers: `"www-data"`, `"www-data:adm"`, `33`.
- Where a list is expected, a single value will do.

### Expansions

As in Supervisor, texts may hold these; `%%` is a plain percent sign. A number or a flag may be written so too:
`numprocs = "%(ENV_WORKERS)s"`.

| expansion | value |
|---|---|
| `%(here)s` | directory of the file it stands in |
| `%(ENV_X)s` | environment variable X, the manager's or one of `[manager].environment` or `environment_file` |
| `%(host_node_name)s` | host name |
| `%(program_name)s` | name of the pool or program |
| `%(group_name)s` | name of its (first) group, else its own |
| `%(process_num)d`, `%(process_num)02d` | number of the process, from `numprocs_start` on |
| `%(numprocs)d` | `numprocs` |

The last two only where each process may differ: in `command`, `process_name`, `directory`, `environment`, `pythonpath`
and the log files. There (but in `environment` itself) `%(ENV_X)s` knows the variables of `environment` too.
A `command` line is split into words first: an expansion with blanks in it stays one word.
"""


def markdown() -> str:
    """The whole document."""
    shared = keys(ProcessSettings)
    own = {name: key for name, key in keys(PoolSettings).items() if name not in shared}
    parts = [
        OPENING,
        "## [manager]\n",
        _table(keys(ManagerSettings).values()),
        "## [pool.NAME]\n\nProcesses that share listening sockets. On top of these keys, those of"
        " [the next section](#poolname-and-programname).\n",
        *_topics(own, POOL_TOPICS),
        "## [pool.NAME] and [program.NAME]\n",
        *_topics(shared, TOPICS),
        "## [group.NAME]\n",
        _table(keys(GroupSettings).values()),
    ]
    return "\n".join(parts)


def _topics(known: dict[str, Key], topics: dict[str, str]) -> Iterable[str]:
    rows: dict[str, list[Key]] = {}
    topic = ""
    for name, key in known.items():
        topic = topics.get(name, topic)
        rows.setdefault(topic, []).append(key)
    for title, members in rows.items():
        yield f"### {title}\n"
        yield _table(members)


def _table(known: Iterable[Key]) -> str:
    rows = ["| key | value | default | description |", "|---|---|---|---|"]
    for key in known:
        cells = f"`{key.name}`", values_of(key.kind), default_of(key), key.description
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def default_of(key: Key) -> str:
    if key.required:
        return "**required**"
    if key.shown is not None:
        return key.shown
    return "" if key.default is None else f"`{_toml(key.default)}`"


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)  # TOML and JSON write texts, numbers, flags and lists alike


_WORDS: Final[dict[type[Kind], str]] = {
    AccessFormat: "text",
    Flag: "`true`, `false`",
    Seconds: "seconds",
    Percent: "percentage",
    Size: "size",
    Octal: "mode",
    Restart: '`true`, `false`, `"unexpected"`',
    Signal: "signal",
    Path: "path",
    Addresses: "address or list",
    Codes: "list of numbers",
    Command: "text or list of words",
    Environment: "table of texts",
    Names: "list of names",
    Paths: "list of paths",
    Text: "text",
    Wsgi: "text",
}


def values_of(kind: Kind) -> str:
    """The values of a kind in the table's second column."""
    if isinstance(kind, Choice):
        words = ", ".join(f'`"{word}"`' for word in kind.words)
        return f'{words}, `"http:/PATH"`' if isinstance(kind, Readiness) else words
    if isinstance(kind, Whole):
        return f"{kind.low} to {kind.high}" if kind.high < 10**6 else f"number, {kind.low} or more"
    if isinstance(kind, Limit):
        return ("size" if kind.sized else "number") + ', `"soft:hard"`' + (', `"unlimited"`' if kind.endless else "")
    if isinstance(kind, Account):
        return "user or group" if kind.group_alone else "user"
    return _WORDS[type(kind)]


if __name__ == "__main__":
    sys.stdout.write(markdown())
