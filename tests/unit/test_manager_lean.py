"""What the manager keeps out of its memory is there as soon as somebody needs it."""

import subprocess
import sys

SCRIPT = """
import sys
from fcgimgr.manager.lean import be_lean
be_lean()
import asyncio, linecache, msgspec, traceback
assert not {"ast", "dis", "ssl"} & {name for name, module in sys.modules.items() if module is not None}
"""


def run(*lines: str) -> str:
    """What the lines print in a process that is lean, on standard output and error."""
    script = SCRIPT + "\n".join(lines) + "\n"
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_a_module_that_was_put_off_is_whole_when_it_is_asked() -> None:
    assert run("import inspect", "print(inspect.isawaitable(3), inspect.getsource(linecache.getline)[:3])") == (
        "False def\n"
    )
    assert run("from inspect import signature", "print(signature(lambda one: one))") == "(one)\n"
    assert run("import locale", "print(locale.LC_ALL)").strip().isdigit()


def test_a_traceback_still_shows_its_lines() -> None:
    said = run("import textwrap", "try:", "    textwrap.dedent(3)", "except TypeError:", "    traceback.print_exc()")
    assert "_whitespace_only_re.sub(" in said


def test_asyncio_still_says_which_callback_failed() -> None:
    said = run(
        "def broken(): raise OSError('no')",
        "async def main():",
        "    asyncio.get_running_loop().call_soon(broken)",
        "    await asyncio.sleep(0)",
        "asyncio.run(main(), debug=True)",
    )
    assert "Exception in callback broken() at <string>" in said
