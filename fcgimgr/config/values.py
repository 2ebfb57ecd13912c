"""Raw TOML values: telling what one is, showing it in a message, refusing it."""

from typing import Final

from fcgimgr.config.expansions import has_expansion
from fcgimgr.config.place import Place

LONGEST_SHOWN: Final = 60


def show(value: object) -> str:
    """`value` for a message: as TOML would write it, short, on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        text = value if len(value) <= LONGEST_SHOWN else value[:LONGEST_SHOWN] + "…"
        if not text.isprintable():
            return '"' + repr(text)[1:-1] + '"'
        return f"'{text}'" if '"' in text and "'" not in text else f'"{text}"'
    if isinstance(value, int):
        # TOML's hexadecimal has no limit on its digits, but int's decimal text has one (ValueError above 4300).
        return str(value) if abs(value) < 10**30 else "a huge number"
    if isinstance(value, float):
        return str(value)
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "a table"
    return "a date or time"


def refusal(wanted: str, value: object, mend: str = "") -> ValueError:
    """The error for a `value` that is not what is `wanted`; `mend` says what to write."""
    return ValueError(f"expected {wanted}, got {show(value)}" + (f"; {mend}" if mend else ""))


def text_of(value: object, wanted: str) -> str:
    """`value` when it is text; ValueError otherwise, also when no system call could take it."""
    if not isinstance(value, str):
        scalar = isinstance(value, int | float)
        raise refusal(
            wanted, value, f'put it in quotes: "{show(value)}"' if scalar and "huge" not in show(value) else ""
        )
    if "\0" in value:
        raise ValueError(f"{show(value)} holds a NUL character, which no path, argument or variable can")
    return value


def expanded(value: object, place: Place) -> str | None:
    """The expanded text when `value` is text with an expansion: so a number may be written "%(ENV_WORKERS)s"."""
    if isinstance(value, str) and has_expansion(value):
        return place.expand(text_of(value, "text"))
    return None
