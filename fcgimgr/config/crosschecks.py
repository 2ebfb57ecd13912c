"""What the pools, programs and groups of a configuration must be to each other, and to the manager."""

import re
import socket
from collections.abc import Mapping, Sequence

from fcgimgr.config.address import Address, TcpAddress, UnixAddress, numeric, unix_path
from fcgimgr.config.findings import Findings, TableRead
from fcgimgr.config.pools import NAME
from fcgimgr.config.problems import Problem
from fcgimgr.config.settings import Config
from fcgimgr.config.tables import Table, Tables


def check_together(config: Config, tables: Tables, reads: Sequence[TableRead], findings: Findings, path: str) -> None:
    """Find what is wrong between the tables. path: of the main file, as the user would write it."""
    if not reads and not tables.problems and "pool" not in findings.unseen:
        problem = Problem(path, "", "there is nothing to run: add a [pool.NAME] or a [program.NAME]")
        findings.problems[problem] = None
    _names(tables, findings)
    _groups(config, tables, reads, findings)
    _dependencies(tables, reads, findings)
    _addresses(config, reads, findings)
    _control(config, tables, reads, findings, path)
    _logs(config, reads, findings)
    _patience(config, reads, findings)
    _retrying(config, reads, findings)


def _names(tables: Tables, findings: Findings) -> None:
    first: dict[str, Table] = {}
    for table in (*tables.pools, *tables.programs, *tables.groups):
        other = first.setdefault(table.name, table)
        if other is not table:
            findings.problem(table, "", f"[{other.key}] has the same name; commands could not tell them apart")


def _groups(config: Config, tables: Tables, reads: Sequence[TableRead], findings: Findings) -> None:
    members = {read.table.name for read in reads}
    for table in tables.groups:
        if table.name == "all" or not re.fullmatch(NAME, table.name):
            findings.problem(table, "", 'this name will not do: no spaces, no ":/*,%", no "-" at the beginning')
        group = config.groups.get(table.name)
        if group is None:
            continue
        if not group.programs:
            findings.problem(table, "programs", "is empty: a group needs at least one pool or program")
        for name in group.programs:
            if name not in members:
                findings.absent("pool", table, "programs", _unknown(name, members))


def _dependencies(tables: Tables, reads: Sequence[TableRead], findings: Findings) -> None:
    known = {read.table.name: read for read in reads}
    groups = {table.name for table in tables.groups}
    edges: dict[str, list[str]] = {}
    for name, read in known.items():
        settings = read.settings
        edges[name] = [other for other in settings.depends_on if other in known] if settings else []
        for other in settings.depends_on if settings else ():
            if other in groups and other not in known:
                findings.problem(read, "depends_on", f'"{other}" is a group; name its pools and programs')
            elif other not in known:
                findings.absent("pool", read, "depends_on", _unknown(other, known))
                continue
            wanted = known[other].settings if other in known else None
            if settings and settings.autostart and wanted and not wanted.autostart:
                findings.warning(read, "depends_on", f'"{other}" has autostart = false: this waits until it is started')
    for cycle in _cycles(edges):
        shown = " → ".join([*cycle, cycle[0]])
        findings.problem(known[cycle[0]], "depends_on", f"each waits for the next, so none could start: {shown}")


def _cycles(edges: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """One cycle for each knot of names that wait for each other, by a depth-first walk that needs no recursion."""
    done: set[str] = set()
    cycles: list[list[str]] = []
    for start in edges:
        if start in done:
            continue
        way = [start]  # the names from `start` to where the walk is, each with what is left to look at
        on_way = {start}
        left = [iter(edges[start])]
        while way:
            following = next(left[-1], None)
            if following is None:
                on_way.discard(way[-1])
                done.add(way.pop())
                left.pop()
            elif following in on_way:
                cycles.append(way[way.index(following) :])
            elif following not in done:
                way.append(following)
                on_way.add(following)
                left.append(iter(edges[following]))
    return cycles


def _addresses(config: Config, reads: Sequence[TableRead], findings: Findings) -> None:
    # Two addresses can only clash within one port, or on one text: so a thousand pools need no million comparisons.
    seen: dict[object, list[tuple[Address, TableRead]]] = {}
    for read in reads:
        settings = config.pools.get(read.table.name)
        if settings is None or read.settings is not settings:
            continue
        for address in settings.sockets:
            near = seen.setdefault(bucket(address), [])
            for other, owner in near:
                if clash(address, other):
                    whose = f"[{owner.table.key}]" if owner is not read else "this pool"
                    also = "" if str(address) == str(other) else f" as {other}"
                    findings.problem(read, "socket", f"{whose} listens on {address} already{also}")
            near.append((address, read))


def bucket(address: Address) -> object:
    """What an address has in common with all that it may clash with."""
    return address.port if isinstance(address, TcpAddress) else str(address)


def clash(one: Address, other: Address) -> bool:
    """Whether both cannot be bound at once, as far as can be told without asking a name server."""
    if one == other:
        return True
    if not isinstance(one, TcpAddress) or not isinstance(other, TcpAddress) or one.port != other.port:
        return False
    for wide, narrow in ((one.host, other.host), (other.host, one.host)):
        if wide == "*":
            return True
        if wide == "0.0.0.0" and numeric(socket.AF_INET, narrow):
            return True
        if wide == "::" and numeric(socket.AF_INET6, narrow):
            return True
    return False


def _control(config: Config, tables: Tables, reads: Sequence[TableRead], findings: Findings, path: str) -> None:
    manager = config.manager
    given = tables.manager is not None and "control" in tables.manager.entries
    try:
        unix_path(manager.control)
    except ValueError as error:
        mend = "" if given else "; set control in [manager] to a shorter path"
        where = tables.manager.file.shown if given and tables.manager else path
        findings.problems[Problem(where, "manager.control", f"{error}{mend}")] = None
    for read in reads:
        settings = config.pools.get(read.table.name)
        if settings is not None and UnixAddress(manager.control) in settings.sockets:
            findings.problem(read, "socket", f"{manager.control} is the manager's control socket")


def _logs(config: Config, reads: Sequence[TableRead], findings: Findings) -> None:
    """Files that several write to have one size and one owner, and none is another's backup."""
    manager = config.manager
    written: dict[str, tuple[TableRead, str]] = {}
    first: dict[str, tuple[str, int, tuple[object, ...], tuple[object, ...]]] = {}
    if manager.logfile != "-":
        first[manager.logfile] = (
            "[manager]",
            manager.logfile_backups,
            (manager.logfile_maxbytes, manager.logfile_backups),
            (manager.logfile_owner, manager.logfile_mode),
        )
    for read in reads:
        settings = read.settings
        if settings is None:
            continue
        for stream in ("stdout", "stderr"):
            key = f"{stream}_logfile"
            path = getattr(settings, key)
            backups = getattr(settings, f"{key}_backups")
            sizes = (getattr(settings, f"{key}_maxbytes"), backups)
            if path in ("-", "none") or (stream == "stderr" and settings.redirect_stderr):
                continue
            rights = settings.logfile_owner, settings.logfile_mode
            whose, _, others, other_rights = first.setdefault(path, (f"[{read.table.key}]", backups, sizes, rights))
            if other_rights != rights:
                mend = "give them the same logfile_owner and logfile_mode"
                findings.warning(read, key, f"{whose} writes to {path} too, and is to make it otherwise; {mend}")
            if others != sizes:
                mend = "the last to be opened decides: give them the same maxbytes and backups"
                findings.warning(read, key, f"{whose} writes to {path} too, and is to rotate it otherwise; {mend}")
            written.setdefault(path, (read, key))
    for path, (read, key) in written.items():
        main, dot, number = path.rpartition(".")
        if dot and number.isdecimal() and main in first and 1 <= int(number) <= first[main][1]:
            findings.warning(read, key, f"{path} is where {first[main][0]} keeps a backup of {main}; choose another")


def _patience(config: Config, reads: Sequence[TableRead], findings: Findings) -> None:
    for read in reads:
        settings, most = read.settings, config.manager.shutdown_timeout
        # Who has not said stopwaitsecs counts on nothing.
        if settings is not None and "stopwaitsecs" in read.given and settings.stopwaitsecs > most:
            findings.warning(
                read,
                "stopwaitsecs",
                f"a shutdown kills sooner, after shutdown_timeout ({most:g} s): "
                f"set shutdown_timeout in [manager] to {settings.stopwaitsecs:g} or more, too",
            )


def _retrying(config: Config, reads: Sequence[TableRead], findings: Findings) -> None:
    for read in reads:
        if config.manager.exit_on_fatal and read.settings is not None and read.settings.on_fatal == "retry":
            findings.warning(read, "on_fatal", "nothing is tried again: exit_on_fatal in [manager] ends the manager")


def _unknown(name: str, known: Mapping[str, object] | set[str]) -> str:
    import difflib  # only here, on the way to an error: the idle manager does without it

    close = difflib.get_close_matches(name[:60], list(known), 1)
    return f'there is no pool or program "{name}"' + (f'; did you mean "{close[0]}"?' if close else "")
