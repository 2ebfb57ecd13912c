"""Two lines for each command that show it at work: for --help, docs/commands.md and the man page alike."""

from typing import Final

#: What to type, and what it is for.
EXAMPLES: Final[dict[str, tuple[tuple[str, str], tuple[str, str]]]] = {
    "check": (
        ("fcgimgr check", "./pool.toml, else /etc/fcgimgr/pool.toml"),
        ("fcgimgr -c new.toml check", "another file, before it takes the place of the one that runs"),
    ),
    "schema": (
        ("fcgimgr schema > pool.schema.json", "completion and checks in an editor"),
        ("fcgimgr schema | jq .properties.pool", "the keys of a pool, for a program"),
    ),
    "run": (
        ("fcgimgr -c pool.toml run", "in the foreground, as `fcgimgr -c pool.toml` alone"),
        ("fcgimgr run --daemon", "in the background; returns when it is up"),
    ),
    "status": (
        ("fcgimgr status", "everything; exit 3 when something is not running"),
        ("fcgimgr status -v shop", "one pool, with the requests in hand"),
    ),
    "start": (
        ("fcgimgr start mailer", "a program that has autostart = false, was stopped, or is FATAL"),
        ("fcgimgr start all", "everything"),
    ),
    "stop": (
        ("fcgimgr stop mailer", "what it has in hand is finished"),
        ("fcgimgr stop shop:shop_03", "one process of a pool"),
    ),
    "reload": (
        ("fcgimgr reload shop", "new code: served once all new processes are ready, refused if not"),
        ("fcgimgr reload shop --canary 5%", "a share of the connections first; then --promote or --abort"),
    ),
    "update": (
        ("fcgimgr update", "apply what has changed in the configuration, or refuse it whole"),
        ("fcgimgr update --dry-run", "only say what that would be"),
    ),
    "upgrade": (
        ("fcgimgr upgrade", "after `pip install -U fcgimgr`: same processes, same sockets"),
        ("fcgimgr upgrade -v", "with a line for every process"),
    ),
    "restart": (
        ("fcgimgr restart shop:shop_03", "one process that hangs"),
        ("fcgimgr restart --hard shop", "one after the other, without the memory for twice as many"),
    ),
    "scale": (
        ("fcgimgr scale shop +2", "two processes more, until the manager ends"),
        ("fcgimgr scale shop 4", "four altogether"),
    ),
    "signal": (
        ("fcgimgr signal HUP mailer", "all processes of a program"),
        ("fcgimgr signal USR1 shop:shop_00", "one process"),
    ),
    "tail": (
        ("fcgimgr tail -f shop", "all processes of a pool, as they write"),
        ("fcgimgr tail -n 50 --stderr shop:shop_00", "the last 50 lines of one, of its standard error"),
    ),
    "log": (
        ("fcgimgr log -n 50", "the last 50 lines of the manager's own log"),
        ("fcgimgr log -f", "as they are written"),
    ),
    "events": (
        ("fcgimgr events --since 30m shop", "of a pool in the last half hour, with why"),
        ("fcgimgr events -f --json", "as they come, for a program"),
    ),
    "reopen": (
        ("fcgimgr reopen", "after logrotate has moved the log files"),
        ("fcgimgr -c /etc/fcgimgr/pool.toml reopen", "in its postrotate script"),
    ),
    "shutdown": (
        ("fcgimgr shutdown", "everything finishes what it has in hand"),
        ("fcgimgr shutdown --now", "what has not ended is killed"),
    ),
    "drain": (
        ("fcgimgr drain --timeout 20", "as a preStop hook"),
        ("fcgimgr drain --undo", "back into the load balancer"),
    ),
    "probe": (
        ("fcgimgr probe ready", "can clients be served? for a load balancer"),
        ("fcgimgr probe ready --strict", "is there anything to mend? for whoever calls a person"),
    ),
    "ping": (
        ("fcgimgr ping", "the manager's version and pid"),
        ("fcgimgr -s /run/fcgimgr/pool.sock ping", "of the manager at this control socket"),
    ),
    "request": (
        ("fcgimgr request 127.0.0.1:9004 /var/www/html/index.php", "a script of PHP"),
        ("fcgimgr request -i -p SCRIPT_NAME= /run/shop.sock '/cart?id=7'", "a path of a WSGI application"),
    ),
    "dev": (
        ("fcgimgr dev app:app", "http://127.0.0.1:8000, with each change taken at once"),
        ("fcgimgr dev -c pool.toml shop", "a wsgi pool as it is configured"),
    ),
    "demo": (
        ("fcgimgr demo", "a pool and an address for your browser"),
        ("fcgimgr demo --port 0", "on any free port"),
    ),
    "completion": (
        ('eval "$(fcgimgr completion bash)"', "in ~/.bashrc"),
        ("fcgimgr completion fish > ~/.config/fish/completions/fcgimgr.fish", "for fish"),
    ),
    "help": (
        ("fcgimgr help reload", "a command"),
        ("fcgimgr help stopwaitsecs", "a key of the configuration, or one of uWSGI, gunicorn, Supervisor or PHP-FPM"),
    ),
}


def lines(command: str) -> list[str]:
    """The examples of a command as a shell takes them: each with what it is for behind it."""
    width = max(len(line) for line, _ in EXAMPLES[command])
    return [f"{line:<{width}}  # {about}" for line, about in EXAMPLES[command]]
