"""The documents that come with the package, for `fcgimgr help`: docs/, nginx/ and the README, as they are.

A wheel has them in fcgimgr/share (pyproject.toml); a checkout has them beside the package.
"""

import re
from pathlib import Path
from typing import Final

import fcgimgr

_PACKAGE: Final = Path(fcgimgr.__file__).parent
_COMMENT: Final = re.compile(r"<!--.*?-->\n*", re.DOTALL)


def share() -> Path:
    """The directory that holds docs/ and nginx/."""
    packed = _PACKAGE / "share"
    return packed if packed.is_dir() else _PACKAGE.parent


def titles() -> dict[str, str]:
    """The heading of each page, by its name."""
    pages = sorted((share() / "docs").glob("*.md"))
    return {page.stem: page.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for page in pages}


def page(name: str) -> str | None:
    """The text of docs/NAME.md, also asked for by that path, without its comments; None: there is no such page."""
    plain = name.removeprefix("docs/").removesuffix(".md")
    path = share() / "docs" / f"{plain}.md"
    if not re.fullmatch(r"[\w-]+", plain) or not path.is_file():
        return None
    return _COMMENT.sub("", path.read_text(encoding="utf-8"))


def of_command(name: str) -> str:
    """What docs/commands.md says of a command below what --help says."""
    text = (share() / "docs" / "commands.md").read_text(encoding="utf-8")
    section = re.search(rf"^<!-- end of {re.escape(name)} -->\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    return section[1].strip() if section else ""


def manual() -> list[Path]:
    """The manual pages, wherever the installer has put them; none where that is not known."""
    if pages := sorted((share() / "man").glob("fcgimgr*")):  # a checkout
        return pages
    from importlib.metadata import PackageNotFoundError, files

    try:
        known = files("fcgimgr") or []
    except PackageNotFoundError:
        return []
    found = [Path(file.locate()).resolve() for file in known if file.parent.name in ("man1", "man5")]
    return sorted(filter(Path.is_file, found))


def nginx() -> Path:
    """The directory of ready-made configuration for nginx."""
    return share() / "nginx"
