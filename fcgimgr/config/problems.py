"""What is wrong with a configuration: every problem with its place, all of them at once."""

import msgspec


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong, and how to mend it.

    file: the path as the user would write it; key: "pool.app.socket_mode", or "" for the file as a whole;
    line: counted from 1, where the TOML itself is broken.
    """

    file: str
    key: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        line = f"line {self.line}: " if self.line is not None else ""
        key = f"{self.key}: " if self.key else ""
        text = f"{self.file}: {line}{key}{self.message}"
        # A quoted key, a file name or a variable may hold control characters, or bytes that are no text at all.
        return text if text.isprintable() else "".join(map(_printable, text))


def _printable(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


class ConfigError(Exception):
    """The configuration cannot be used; `problems` has at least one entry, and `str()` gives one line for each.

    `warnings`: what else was found, none of it an obstacle.
    """

    def __init__(self, problems: tuple[Problem, ...], warnings: tuple[str, ...] = ()) -> None:
        super().__init__(problems)
        self.problems = problems
        self.warnings = warnings

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)
