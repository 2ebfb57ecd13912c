"""What `dev` does with changes: the code that is there is brought into service, at the start and at each change.

In a thread of its own, for the main one serves the browser. It waits in one place, `_wait`, for whatever comes first:
a change, the verdict on the code that is coming, the end of dev, the end of the manager.

A change that comes during an import ends that: it was of code that is not wanted any more, and may never end. But an
import may itself write files that are watched (a version file). Whose change it was nobody can tell; so what changes
during five imports in a row is let be when it changes during the next one, and taken when it does at another time.
"""

import os
import select
import sys
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from .demo import tell
from .dev_bytecode import remove_compiled
from .dev_versions import Versions

if TYPE_CHECKING:
    from fcgimgr.linux.watching import SourceTree

    from .dev_versions import Coming

T = TypeVar("T")

_QUIET: Final = 0.1
"""Seconds without a change before it is taken: an editor or git writes several files at once."""
_TRY_AGAIN: Final = 0.02
_END_WITHIN: Final = 1.0
"""Seconds between a manager's hanging up and its end."""
_IN_A_ROW: Final = 5


class _OverError(Exception):
    """dev ends, or its manager has ended."""


class Taking:
    """`manager`: a pidfd. When that process has ended, `front` is shut down. `end` must be called at last."""

    def __init__(self, versions: Versions, tree: "SourceTree", manager: int, front: Any) -> None:
        self._versions = versions
        self._tree = tree
        self._manager = manager
        self._front = front
        self._watching = True
        self._at_imports: dict[str, int] = {}  # files that were changed during the last import: in how many in a row
        self._ending, self._end = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def end(self) -> None:
        os.write(self._end, b"x")
        self._thread.join(5.0)  # only an answer of the manager can keep it

    def _run(self) -> None:
        try:
            self._wait_for_the_manager()
            while True:
                changed = self._take()
                while not changed:
                    changed = self._next()
                remove_compiled(changed)
                names = sorted(os.path.basename(path) for path in changed)
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                tell(f"changed: {', '.join(names[:3])}{more}")
        except _OverError:
            if not select.select([self._ending], [], [], 0)[0]:
                self._front.shutdown()

    def _wait(self, *others: Any, timeout: float | None = None) -> list[Any]:
        """Those that are readable."""
        first: list[Any] = [self._ending, self._manager]
        watched: list[Any] = [*first, *others, *([self._tree] if self._watching else ())]
        readable = select.select(watched, [], [], timeout)[0]
        if self._ending in readable or self._manager in readable:
            raise _OverError
        return readable

    def _wait_for_the_manager(self) -> None:
        """Its control socket comes a moment after it."""
        from fcgimgr.control.messages import ControlError

        while True:
            try:
                self._versions.look()
                return
            except (ControlError, OSError):
                self._wait(timeout=_TRY_AGAIN)
                self._hear()

    def _next(self) -> set[str]:
        """The changes of the files while nothing is imported: when they come, and until there are no more for now."""
        heard = False
        while True:
            if self._wait(timeout=_QUIET if heard else None):
                heard = self._hear()
            else:
                return self._changes()

    def _take(self) -> set[str]:
        """Bring the code that is there now into service, and say what came of it; the files that changed meanwhile.

        Why it failed is on the terminal already: it is where the processes write.
        """
        from fcgimgr.control.messages import ControlError

        try:
            return self._take_or_raise()
        except (ControlError, OSError) as error:
            if select.select([self._ending, self._manager], [], [], _END_WITHIN)[0]:
                raise _OverError from error
            complain(f"the change was not taken: {error}; save again")
            return set()

    def _take_or_raise(self) -> set[str]:
        before, self._at_imports = self._at_imports, {}
        coming = self._versions.begin()
        changed = self._changed_before(coming, before)
        if changed:
            self._at_imports = {**before, **self._at_imports}  # what it would have written yet, nobody knows
            self._versions.abandon(coming)
            return changed
        verdict = coming.verdict()
        first = self._versions.serving is None
        if verdict.ok:
            self._versions.switch(coming)
            tell("serving" if first else "serving the new code")
        else:
            self._versions.fail(verdict)
            tell(
                "it does not come up: mend it, and save"
                if first
                else "the new code does not come up: what served before serves on"
            )
        return self._of_others(self._changes(), before)

    def _changed_before(self, coming: "Coming", before: dict[str, int]) -> set[str]:
        """What changes until it is known what comes of the import: then, nothing."""
        heard = False
        while True:
            readable = self._wait(coming, timeout=_QUIET if heard else None)
            if coming in readable:
                return set()
            if readable:
                heard = self._hear()
            elif changed := self._of_others(self._changes(), before):
                return changed
            else:
                heard = False

    def _of_others(self, changed: Iterable[str], before: dict[str, int]) -> set[str]:
        """Of the files that were changed during an import those that it does not write itself, as far as we know."""
        taken: set[str] = set()
        for path in changed:
            times = before.get(path, 0) + 1
            if times < _IN_A_ROW:
                taken.add(path)
            elif times == _IN_A_ROW and path not in self._at_imports:
                tell(f"{os.path.basename(path)} changes at each import: that is not taken for a change any more")
            self._at_imports[path] = times
        return taken

    def _hear(self) -> bool:
        """Whether there may be changes."""
        return bool(self._of_the_tree(self._tree.hear, False))

    def _changes(self) -> set[str]:
        return self._of_the_tree(self._tree.changes, set[str]())

    def _of_the_tree(self, ask: Callable[[], T], otherwise: T) -> T:
        from fcgimgr.linux.errors import LinuxError

        if self._watching:
            try:
                return ask()
            except LinuxError as error:
                self._watching = False
                complain(f"{error}; what is there serves on, and changes are not taken any more")
        return otherwise


def complain(text: str) -> None:
    """On standard error, if anybody still reads that."""
    try:
        print(f"fcgimgr: {text}", file=sys.stderr, flush=True)
    except OSError:
        pass
