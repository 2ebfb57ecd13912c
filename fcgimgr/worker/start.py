"""What an application's interpreter is given to run: says so if it is too old, else starts a worker (main.py).

    PYTHON .../fcgimgr/worker/start.py --server flup [--threads N] module:callable

Every Python must be able to read this file, for one that cannot would answer with a SyntaxError in a file that its user
has never heard of: ASCII, no annotations, no f-strings, imports that have always been there.
"""

import os
import sys

OLDEST = (3, 9)


def main():  # type: () -> int
    if sys.version_info < OLDEST:
        sys.stderr.write(
            "fcgimgr worker: %s is Python %d.%d; a wsgi pool needs Python %d.%d or later: set python to one, "  # noqa: UP031
            "as a rule that of the application's virtualenv\n" % ((sys.executable,) + sys.version_info[:2] + OLDEST)  # noqa: RUF005
        )
        return 1
    here = os.path.dirname(os.path.abspath(__file__))
    # Python puts a script's own directory first on sys.path, where our modules would hide the application's. Its
    # working directory belongs there, as for `python -m`, but only when all of ours is loaded: a queue.py beside the
    # application must not become the standard library's for us. (Under -P or -I nothing was put there.)
    first = None
    if sys.path and os.path.realpath(sys.path[0]) == os.path.realpath(here):
        del sys.path[0]
        first = os.getcwd()
    lend_fcgimgr(os.path.dirname(here))
    from fcgimgr.worker.main import main as serve

    return serve(sys.argv[1:], first)


def lend_fcgimgr(package):  # type: (str) -> None
    """Make `import fcgimgr` mean the package in this directory, whatever the interpreter has installed."""
    import importlib.util

    spec = importlib.util.spec_from_file_location(
        "fcgimgr", os.path.join(package, "__init__.py"), submodule_search_locations=[package]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fcgimgr"] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    sys.exit(main())
