"""The tables of keys of others in the docs, written between the prose of a person. Write them again with

    python -m fcgimgr.config.foreign_pages docs

A table is a block, `<!-- keys of NAME -->` to `<!-- end of keys -->`, of the very rows that `check` tells people
(foreign.py, foreign_tools.py). A test fails while a file in the repository says something else.
"""

import re
import sys
from pathlib import Path
from typing import Final

from fcgimgr.config.foreign import FPM, SUPERVISOR, WSGI
from fcgimgr.config.foreign_rows import Row
from fcgimgr.config.foreign_tools import RUNIT, SPAWN_FCGI

#: What stands above each column, and the rows below, by the name of the block.
BLOCKS: Final[dict[str, tuple[tuple[str, ...], tuple[Row, ...]]]] = {
    "from-supervisor": (("Supervisor", "fcgimgr"), SUPERVISOR),
    "from-php-fpm": (("PHP-FPM", "fcgimgr, for `php-cgi`"), FPM),
    "from-uwsgi-and-gunicorn": (("uWSGI", "gunicorn", "fcgimgr"), WSGI),
    "from-runit-and-daemontools": (("runit, daemontools", "fcgimgr"), RUNIT),
    "spawn-fcgi": (("spawn-fcgi", "fcgimgr"), SPAWN_FCGI),
}

_BLOCK: Final = re.compile(r"(<!-- keys of ([\w-]+) -->\n).*?(<!-- end of keys -->)", re.DOTALL)


def written_again(text: str) -> str:
    """`text` with every block as the rows are now. KeyError: there is none of this name."""
    return _BLOCK.sub(lambda block: f"{block[1]}\n{_table(*BLOCKS[block[2]])}\n{block[3]}", text)


def _table(columns: tuple[str, ...], rows: tuple[Row, ...]) -> str:
    lines = [columns, ("---",) * len(columns), *((*row.theirs, row.here) for row in rows)]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


if __name__ == "__main__":
    for file in Path(sys.argv[1]).glob("*.md"):
        file.write_text(written_again(file.read_text(encoding="utf-8")), encoding="utf-8")
