"""A line of the access log, as PHP-FPM's access.format describes it: text, and fields that begin with a percent sign.

    %X  %{ARGUMENT}X    what the letter X stands for, and how or of what: %{milliseconds}d, %{HTTP_USER_AGENT}e
    %%                  a percent sign

It is taken apart here for two that may not know of each other: the configuration, which refuses what is wrong, and the
worker, which writes such lines (worker/accesslog.py). The syntax is that of sapi/fpm/fpm/fpm_log.c in PHP's sources.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

#: strftime(3)'s, of %t and %T when they are not asked for another.
DEFAULT_TIME: Final = "%d/%b/%Y:%H:%M:%S %z"

#: What %d can be asked for, in any case, with how many of it are a second. PHP-FPM knew milli as mili before 8.2.
UNITS: Final = {
    "seconds": 1, "milliseconds": 1000, "microseconds": 10**6, "milli": 1000, "micro": 10**6, "mili": 1000,
    "miliseconds": 1000,
}  # fmt: skip

LETTERS: Final = "bdeflmnpPqQrRstTu"

_OF_PHP_ALONE: Final = "CMo"
_TAKE_ARGUMENTS: Final = "detT"
_FIELD: Final = re.compile(r"%(?:\{([^}]*)\})?(.?)", re.DOTALL)
_BRACES: Final = re.compile(r"\{([^}]*)\}")


class Field(NamedTuple):
    """One of LETTERS. `argument`: of e the parameter's name, of d one of UNITS, of t and T a format of strftime(3)."""

    letter: str
    argument: str = ""


def parse(form: str) -> list[str | Field]:
    """The texts and fields that a line is made of; ValueError: where it is wrong, and how it is mended."""
    parts: list[str | Field] = []
    text = ""
    at = 0
    for match in _FIELD.finditer(form):
        argument, letter = match.groups()
        text += form[at : match.start()]
        at = match.end()
        if letter == "%" and not argument:
            text += "%"
            continue
        try:
            if argument is None and (behind := _BRACES.match(form, at)) and letter in _TAKE_ARGUMENTS:
                raise ValueError(f"%{letter}{behind[0]}: braces stand before the letter; write %{behind[0]}{letter}")
            field = _field(letter, argument)
        except ValueError as error:
            raise ValueError(f"at character {match.start() + 1}: {error}") from None
        parts += [text, field] if text else [field]
        text = ""
    text += form[at:]
    return [*parts, text] if text else parts


def _field(letter: str, argument: str | None) -> Field:
    said = f"%{letter}" if argument is None else f"%{{{argument}}}{letter}"
    if not letter:
        if argument is None:
            raise ValueError("it ends in a %; write %% for the sign itself")
        raise ValueError(f"{said} lacks its letter, as in %{{milliseconds}}d")
    if letter == "{":
        raise ValueError("the brace is not closed, as it is in %{milliseconds}d")
    if letter in _OF_PHP_ALONE:
        raise ValueError(f"{said} of PHP-FPM is not known here; leave it out")
    if letter not in LETTERS and letter != "%":
        raise ValueError(f"{said} is not known; there are %%, %{', %'.join(LETTERS)}")
    if argument and letter not in _TAKE_ARGUMENTS:
        raise ValueError(f"{said}: %{letter} takes nothing in braces; write %{letter}")
    if letter == "e" and not argument:
        raise ValueError("%e needs the name of a parameter, as in %{HTTP_USER_AGENT}e")
    if letter == "d":
        unit = (argument or "seconds").lower()
        if unit not in UNITS:
            raise ValueError(f"{said} is not known; write %{{UNIT}}d with one of {', '.join(UNITS)}")
        return Field(letter, unit)
    return Field(letter, argument or (DEFAULT_TIME if letter in "tT" else ""))
