"""What the libraries import and an idle manager never uses is kept out of its memory: some 1.5 MB of Python alone.

Only modules of the standard library and of others, never our own: what is loaded later comes from the disk as it is
then, and after an installation of a newer fcgimgr that would be newer code among older.
"""

import sys
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any, Final

# Each is imported inside a try, by one who can do without it. ssl: asyncio, 6 MB. typing_extensions: msgspec, which
# asks the typing of Python ≥ 3.11 instead. gettext: getopt, for messages. _uuid: uuid, with libuuid.
ABSENT: Final = ("ssl", "typing_extensions", "gettext", "_uuid")

# Imported at the head of a module that uses them seldom: they are loaded when somebody first asks for something in
# them. inspect, with ast and dis: asyncio, to describe a callback. tokenize: linecache, to show a line of a traceback.
# locale: subprocess, for text.
SELDOM: Final = ("inspect", "tokenize", "locale")


class _Deferred(ModuleType):
    """A module that is not executed yet. importlib's LazyLoader will not do: any `import` of it executes it (3.11)."""

    def __getattr__(self, name: str) -> Any:
        self.__class__ = ModuleType  # type: ignore[assignment]
        spec = self.__spec__
        assert spec is not None
        assert spec.loader is not None
        spec.loader.exec_module(self)
        return getattr(self, name)


def be_lean() -> None:
    """To be called before asyncio and msgspec are imported."""
    for name in ABSENT:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    for name in SELDOM:
        if name not in sys.modules and (spec := find_spec(name)) is not None:
            module = module_from_spec(spec)
            module.__class__ = _Deferred
            sys.modules[name] = module
