"""Nothing but linux/pidfd.py signals another process: everything else goes by what that holds.

The manager is root as a rule, and the number of a process that has ended may be anybody's. Held by reading every call.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import fcgimgr

PACKAGE = Path(fcgimgr.__file__).parent
THE_ONE_PLACE = PACKAGE / "linux/pidfd.py"

#: By the last part of their names, whatever they are imported from.
SIGNALLING = {
    "kill", "killpg", "pidfd_send_signal", "pthread_kill", "raise_signal", "send_signal", "sigqueue", "terminate",
    "tgkill", "tkill",
}  # fmt: skip
#: What is called, and in which file.
ALLOWED = {
    # Itself.
    ("os.kill(os.getpid(), number)", "linux/processes.py"),
    ("signal.raise_signal(self._came.pop())", "manager/ground/signals.py"),
    # A Popen asks first whether it has been reaped, by itself or by others.
    ("trial.kill()", "manager/succession/upgrading.py"),
    ("manager.terminate()", "cli/demo.py"),
    ("manager.kill()", "cli/demo.py"),
    # Orders to objects, which end in linux/pidfd.py.
    ("self.daemon.leftovers.kill(pid)", "manager/pools/generation.py"),
    ("pool.kill()", "manager/daemon.py"),
    ("self.helpers.kill()", "manager/daemon.py"),
    ("helper.kill()", "manager/ground/helpers.py"),
    ("self.kill()", "manager/ground/helpers.py"),
    ("terminate(daemon, 'SIGHUP: the terminal has hung up')", "manager/commands/presets.py"),
}


def calls(path: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            if name in SIGNALLING:
                yield ast.unparse(node), path.relative_to(PACKAGE).as_posix()


def test_nobody_else_signals_by_number() -> None:
    found = {call for path in PACKAGE.rglob("*.py") if path != THE_ONE_PLACE for call in calls(path)}
    assert found == ALLOWED


def test_the_one_place_is_where_it_is_looked_for() -> None:
    assert {call.partition("(")[0] for call, _ in calls(THE_ONE_PLACE)} == {"os.killpg", "signal.pidfd_send_signal"}
