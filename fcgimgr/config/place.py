"""Where a value stands in the configuration, as far as its meaning depends on it."""

import os
import re
from collections.abc import Mapping

from fcgimgr.config import expansions


class Place:
    """The file, the table and the key of a value: what its relative paths and its expansions mean.

    directory: absolute, of the file; names: the expansions known now; later: names known only for one process, which
    hide the equal ones of `names`; source, key: the file's text and the key, to see how a number was written.
    """

    __slots__ = ("directory", "key", "later", "names", "source")

    def __init__(
        self,
        directory: str,
        source: str,
        key: str,
        names: Mapping[str, str | int],
        later: frozenset[str] = frozenset(),
    ) -> None:
        self.directory = directory
        self.source = source
        self.key = key
        self.names = names
        self.later = later

    def expand(self, text: str) -> str:
        """`text` with every expansion replaced; ValueError when that cannot be."""
        return expansions.expand(text, self.names)

    def template(self, text: str) -> str:
        """`text` with only the expansions of a single process left in it; ValueError when that cannot be."""
        return expansions.template(text, self.names, self.later)

    def absolute(self, path: str, *, is_template: bool) -> str:
        """`path` seen from the file's directory, without "." and ".."."""
        if is_template and path.startswith("%(ENV_"):  # the process's own variable: known only later
            return path
        directory = expansions.escape(self.directory) if is_template else self.directory
        return os.path.normpath(os.path.join(directory, path))

    def written_octal(self, value: int) -> bool:
        """Whether the file says `key = 0o…` with this value: once parsed, 0o660 and 432 are the same number."""
        return re.search(rf"\b{re.escape(self.key)}[\"']?\s*=\s*0o0*{value:o}\b", self.source) is not None
