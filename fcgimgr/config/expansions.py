"""Supervisor's `%(name)s` expansions, done in two passes.

Most of an expansion is known when the file is read (`%(here)s`, `%(program_name)s`, `%(ENV_HOME)s`); what differs from
process to process (`%(process_num)02d`) is not. So the first pass gives a *template*: text in which only the later
names still stand, with every other percent sign doubled. The second pass, once a process, makes plain text of it.

The format after the name is a width and one of `s d i x X o`, as Python's `%` has it; the width is bounded, for a
configuration must not be able to ask for a gigabyte of blanks.
"""

import re
from collections.abc import Collection, Mapping
from typing import Final

TOKEN: Final = re.compile(r"%(?:(?P<percent>%)|\((?P<name>[^()]*)\)(?P<format>[-+#0]*[0-9]{0,2}[sdixXo])?)?")

PROCESS_NAMES: Final = frozenset({"process_num", "numprocs"})
"""What is known only for one process."""


def has_expansion(text: str) -> bool:
    return "%(" in text


def escape(text: str) -> str:
    """`text` as a piece of a template that expands to itself."""
    return text.replace("%", "%%")


def expand(text: str, names: Mapping[str, str | int]) -> str:
    """`text` with every expansion replaced; ValueError for an unknown name, a bad format or a lone percent sign."""
    if "%" not in text:
        return text
    return TOKEN.sub(lambda token: "%" if token["percent"] else _value(token, names), text)


def template(text: str, names: Mapping[str, str | int], later: Collection[str]) -> str:
    """`text` with the expansions of `names` replaced and those of `later` left standing; ValueError as `expand`."""
    if "%" not in text:
        return text

    def replace(token: re.Match[str]) -> str:
        if token["percent"]:
            return "%%"
        if token["name"] in later and token["format"]:
            if token["name"] not in PROCESS_NAMES and not token["format"].endswith("s"):
                raise ValueError(_not_a_number(token))
            return token[0]
        return escape(_value(token, names))

    return TOKEN.sub(replace, text)


def _value(token: re.Match[str], names: Mapping[str, str | int]) -> str:
    name = token["name"]
    if name is None:
        raise ValueError("a lone %: write %% for a percent sign, or %(name)s for one of the expansions")
    if token["format"] is None:
        raise ValueError(f"%({name}) has no format letter after it: write %({name})s")
    if name not in names:
        raise ValueError(_unknown(name, names))
    try:
        formatted: str = f"%{token['format']}" % names[name]
    except TypeError:
        raise ValueError(_not_a_number(token)) from None
    return formatted


def _not_a_number(token: re.Match[str]) -> str:
    return f"{token[0]} wants a number, but it is text: write %({token['name']})s"


def _unknown(name: str, names: Mapping[str, str | int]) -> str:
    if name in PROCESS_NAMES:
        return f"%({name}) is different for each process or known too late, and this value is shared by all of them"
    if name.startswith("ENV_"):
        return f"%({name}): the environment variable {name[4:]} is not set where fcgimgr runs"
    known = ", ".join(f"%({known})s" for known in sorted(names) if not known.startswith("ENV_"))
    if f"ENV_{name}" in names:
        return f"%({name}) is unknown: for the environment variable write %(ENV_{name})s"
    return f"%({name}) is unknown; known here are {known} and %(ENV_X)s for the environment variable X"
