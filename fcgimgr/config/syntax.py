"""TOML text to tables, and, where the text is no TOML, what was probably meant.

Most people come with a supervisord.conf or a php-fpm pool in mind, and their first mistakes are those formats' habits:
text without quotes, `yes`, `;` comments, `[program:x]`. The TOML parser's own message ("Invalid value") helps nobody
there, so the line itself is looked at and the message says what to write.
"""

import re
from typing import Any, Final

import tomli

from fcgimgr.config.problems import ConfigError, Problem

LONGEST_LINE: Final = 200
"""Characters of a line that are looked at: a hint needs no more, and the patterns are not linear."""

AT: Final = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")

_KEY: Final = r"^\s*([\w.\"'-]+)\s*=\s*"

# The first pattern found in the line gives the hint; a match's groups fill in the braces.
_HINTS: Final = (
    (r"^\s*\[(?:fcgi-program)[: ]\s*([\w.-]+)", "in TOML this table is [pool.{0}]"),
    (r"^\s*\[(program|group|eventlistener)[: ]\s*([\w.-]+)", "in TOML this table is [{0}.{1}]"),
    (r"^\s*;", "a comment begins with #"),
    (r"^\s*env\[([^\]]*)\]\s*=", 'write environment = {{ {0} = "value" }}'),
    (r"^\s*php_\w+\[([^\]]*)\]\s*=\s*(\S+)", 'write command = "php-cgi -d {0}={1}"'),
    (r"^\s*(environment)\s*=\s*\w+\s*=", 'write environment = {{ NAME = "value", OTHER = "value" }}'),
    (_KEY + r"(?i:yes|on|true)\s*(?:[#;].*)?$", "write {0} = true"),
    (_KEY + r"(?i:no|off|false)\s*(?:[#;].*)?$", "write {0} = false"),
    (_KEY + r"(0[0-7]+)\s*(?:[#;].*)?$", 'an octal number goes in quotes: {0} = "{1}"'),
    (_KEY + r"(\d+)(?:s|sec|secs|seconds)\s*(?:[#;].*)?$", "times are plain numbers of seconds: {0} = {1}"),
    (_KEY + r"(\d+\s*[kKmMgG][iI]?[bB]?)\s*(?:[#;].*)?$", 'a size with a unit goes in quotes: {0} = "{1}"'),
    (_KEY + r"(?:[#;].*)?$", "the value is missing"),
    (_KEY + r"\"[^\"]*\\", "in double quotes a backslash is written \\\\; or put the text in single quotes"),
    (_KEY + r"([^\s\"'\[{#][^\"'#;]*?)\s*(?:[#;].*)?$", 'text goes in quotes: {0} = "{1}"'),
    (_KEY + r"([^\s\"'\[{].*?)\s*$", "text goes in quotes: {0} = '{1}'"),
    (_KEY + r"(\"[^\"]*|'[^']*)$", "the closing quote is missing"),
    (_KEY + r"(?:\"[^\"]*\"|'[^']*')\s*;", "a comment begins with #"),
    (r"^\s*\[[^\]]*$", "the closing ] is missing"),
    (r"^\s*[\w.-]+\s*:\s", "TOML has key = value, not key: value"),
    (r"^\s*[\w.-]+\s*$", "a line is a [table] or key = value"),
)

_REWORDED: Final = (
    (r"Cannot overwrite a value", "a key is given twice"),
    (r"Cannot declare \((.*)\) twice", "the table {0} is given twice"),
    (r"Expected newline or end of document after a statement", "something is left over after the value"),
)

# Whole files of others, by a line that only they have; with the page that says what becomes of each key.
_FOREIGN: Final = (
    (
        r"^[ \t]*\[(?:supervisord|supervisorctl|unix_http_server|inet_http_server|(?:fcgi-)?program:|rpcinterface:)",
        "a supervisord.conf",
        "from-supervisor",
    ),
    (r"^[ \t]*(?:pm(?:\.\w+)?\s*=\s*\w|php_(?:admin_)?(?:value|flag)\[)", "a pool file of PHP-FPM", "from-php-fpm"),
    (r"^[ \t]*listen\s*=\s*[^\s\"'\d]", "a pool file of PHP-FPM", "from-php-fpm"),
    (r"^[ \t]*\[uwsgi\]", "a configuration of uWSGI", "from-uwsgi-and-gunicorn"),
    (
        r"^(?:(?:import|from)[ \t]+\w|def[ \t]+(?:on_|when_|pre_|post_|worker_|child_)\w+\()|"
        r"^(?:bind|workers|worker_class|wsgi_app)[ \t]*=",
        "a gunicorn.conf.py",
        "from-uwsgi-and-gunicorn",
    ),
    (r"^#!.*sh\b", "a shell script, such as the run file of runit", "from-runit-and-daemontools"),
)

_OURS: Final = re.compile(r"^[ \t]*(?:\[+[ \t]*(?:manager|defaults|(?:pool|program|group)\.)|include\b)", re.MULTILINE)


def parse(shown: str, content: bytes) -> tuple[dict[str, Any], str]:
    """The tables of a TOML document, and its text; ConfigError with one problem of the file `shown` when it is none."""
    try:
        # Editors on Windows put a byte order mark there, and TOML 1.1 ignores it.
        text = content.removeprefix(b"\xef\xbb\xbf").decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _broken(shown, "the file is not UTF-8 text", line) from None
    try:
        tables = tomli.loads(text)
        if foreign := _foreign(text):
            raise _broken(shown, foreign)
        return tables, text
    except tomli.TOMLDecodeError as error:
        raise _explained(shown, text, str(error)) from None
    except RecursionError:
        raise _broken(shown, "the tables and lists are nested too deeply") from None
    except ValueError as error:  # int() has a limit of 4300 digits, and tomli lets its error through
        raise _broken(shown, f"a number is too long: {error}") from None


def _broken(shown: str, message: str, line: int | None = None) -> ConfigError:
    return ConfigError((Problem(shown, "", message, line),))


def _explained(shown: str, text: str, message: str) -> ConfigError:
    lines = text.splitlines() or [""]
    at = AT.search(message)
    message = AT.sub("", message)
    duplicate = message.startswith("Cannot")
    number = int(at[1]) if at and at[1] else None
    if number is None and not duplicate:  # at the end of the document: where its last line is
        number = len(text.rstrip().splitlines()) or 1
    reworded = _found(_REWORDED, message) or message[:1].lower() + message[1:]
    hint = None
    if duplicate and number is not None and (dotted := _dotted(lines, number)):
        number, reworded, hint = dotted
    line = lines[min(number, len(lines)) - 1][:LONGEST_LINE] if number is not None else ""
    hint = hint if duplicate else _found(_HINTS, line)
    parts = [f"not TOML: {reworded}"]
    if line.strip():
        parts.append(f"in: {line.strip()[:100]}")
    mend = _foreign(text) or hint
    parts += [mend] if mend else []
    return _broken(shown, "; ".join(parts), number)


def _dotted(lines: list[str], number: int) -> tuple[int, str, str] | None:
    from fcgimgr.config.dotted import explained

    return explained([line[:LONGEST_LINE] for line in lines], number)


def _foreign(text: str) -> str | None:
    """Whose configuration the text looks like, if there is no table of ours in it, and where to read on."""
    if _OURS.search(text):
        return None
    for pattern, what, page in _FOREIGN:
        if re.search(pattern, text, re.MULTILINE):
            return f"this looks like {what}, and fcgimgr reads TOML: `fcgimgr help {page}` says what becomes of it"
    return None


def _found(rules: tuple[tuple[str, str], ...], text: str) -> str | None:
    for pattern, hint in rules:
        match = re.search(pattern, text)
        if match:
            return hint.format(*(group or "" for group in match.groups()))
    return None
