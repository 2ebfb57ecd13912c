"""Kinds of a single value: flags, numbers, times, sizes, modes, words, signals, accounts and paths."""

import re
from typing import Final

import msgspec

from fcgimgr.config.kinds import EXPANSION, Kind, Schema
from fcgimgr.config.place import Place
from fcgimgr.config.signals import signal_name, signal_number
from fcgimgr.config.values import expanded, refusal, show, text_of

SECONDS_MAX: Final = 10**9
SIZE_MAX: Final = 2**62

_SIZE: Final = re.compile(r"([0-9]{1,15})\s*([KMG]?)(?:I?B)?", re.IGNORECASE)
_UNITS: Final = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}
_TIME: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|secs?|seconds?|m|mins?|minutes?|h|hours?|d|days?)")
_TIME_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Flag(Kind, frozen=True):
    def read(self, value: object, place: Place) -> bool:
        if isinstance(value, bool):
            return value
        text = expanded(value, place)
        word = text.lower() if text is not None else str(value).lower() if isinstance(value, str | int) else ""
        word = {"yes": "true", "on": "true", "1": "true", "no": "false", "off": "false", "0": "false"}.get(word, word)
        if word not in ("true", "false"):
            raise refusal("true or false", value if text is None else text)
        if text is not None:
            return word == "true"
        raise refusal("true or false", value, f"write {word}, without quotes")

    def schema(self) -> Schema:
        return {"anyOf": [{"type": "boolean"}, EXPANSION]}


class Whole(Kind, frozen=True, kw_only=True):
    """A whole number from `low` to `high`. `special`: one that stands for something else, e.g. -1 for ever."""

    low: int
    high: int

    def read(self, value: object, place: Place) -> int:
        bounds = f"a whole number from {self.low} to {self.high}"
        text = expanded(value, place)
        if text is not None and re.fullmatch(r"\s*-?[0-9]{1,18}\s*", text):
            value = int(text)
        elif text is not None:
            raise refusal(bounds, text)
        if isinstance(value, bool) or not isinstance(value, int):
            digits = isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,18}\s*", value)
            raise refusal(bounds, value, f"write {int(str(value))}, without quotes" if digits else "")
        if not self.low <= value <= self.high:
            raise refusal(bounds, value)
        return value

    def schema(self) -> Schema:
        return {"anyOf": [{"type": "integer", "minimum": self.low, "maximum": self.high}, EXPANSION]}


class Seconds(Kind, frozen=True, kw_only=True):
    """A time in seconds, fractions allowed; `positive`: more than none."""

    positive: bool = False

    def read(self, value: object, place: Place) -> float:
        wanted = f"a number of seconds {'above' if self.positive else 'from'} 0"
        text = expanded(value, place)
        if text is not None and re.fullmatch(r"\s*[0-9]{1,15}(\.[0-9]{1,15})?\s*", text):
            value = float(text)
        elif text is not None:
            raise refusal(wanted, text)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise refusal(wanted, value, _seconds_meant(value))
        # NaN and infinity fail the comparison too: no timer can be set for either.
        if not 0 <= value <= SECONDS_MAX or (self.positive and value == 0):
            raise refusal(f"{wanted}, at most {SECONDS_MAX}", value)
        return float(value)

    def schema(self) -> Schema:
        bound = {"exclusiveMinimum": 0} if self.positive else {"minimum": 0}
        return {"anyOf": [{"type": "number", **bound, "maximum": SECONDS_MAX}, EXPANSION]}

    def plain(self, setting: float | None) -> float | None:
        return int(setting) if setting is not None and setting == int(setting) else setting


class Percent(Kind, frozen=True):
    """A share: a number above 0 and below 100, or as text with a percent sign after it."""

    def read(self, value: object, place: Place) -> float:
        wanted = 'a percentage above 0 and below 100, as in 5 or "5%"'
        text = expanded(value, place) or (value if isinstance(value, str) else None)
        if text is not None and re.fullmatch(r"\s*[0-9]{1,3}(\.[0-9]{1,15})?\s*%?\s*", text):
            value = float(text.replace("%", ""))
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 100:
            raise refusal(wanted, value if text is None else text)
        return float(value)

    def schema(self) -> Schema:
        number = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 100}
        return {"anyOf": [number, {"type": "string", "pattern": r"^[0-9]{1,3}(\.[0-9]+)?\s*%?$"}, EXPANSION]}

    def plain(self, setting: float | None) -> float | None:
        return int(setting) if setting is not None and setting == int(setting) else setting


class Size(Kind, frozen=True):
    """A number of bytes: an integer, or text with KB, MB or GB (of 1024, as in Supervisor)."""

    def read(self, value: object, place: Place) -> int:
        return size(value, place)

    def schema(self) -> Schema:
        pattern = r"^[0-9]{1,15}\s*([KkMmGg]?([Ii]?[Bb])?)$"
        number = {"type": "integer", "minimum": 0, "maximum": SIZE_MAX}
        return {"anyOf": [number, {"type": "string", "pattern": pattern}, EXPANSION]}

    def plain(self, setting: int) -> int | str:
        for unit in ("G", "M", "K"):
            if setting and setting % _UNITS[unit] == 0:
                return f"{setting // _UNITS[unit]}{unit}B"
        return setting


class Octal(Kind, frozen=True):
    """Permission bits: "0660", or 0o660. A decimal 660 would be other bits altogether, and is refused."""

    def read(self, value: object, place: Place) -> int:
        wanted = 'an octal mode in quotes, as in "0660"'
        if isinstance(value, int) and not isinstance(value, bool):
            if 0 <= value <= 0o777 and place.written_octal(value):
                return value
            mend = f'write "{value:04d}"' if re.fullmatch("[0-7]{1,4}", show(value)) else ""
            raise refusal(wanted, value, mend)
        text = text_of(value, wanted)
        bits = re.fullmatch(r"(?:0o)?([0-7]{1,4})", self.expand(text, place).strip())
        if not bits or int(bits[1], 8) > 0o777:
            raise refusal(wanted + ", at most 0777", text)
        return int(bits[1], 8)

    def schema(self) -> Schema:
        pattern = {"type": "string", "pattern": "^(0o)?0*[0-7]{1,3}$"}
        return {"anyOf": [pattern, {"type": "integer", "minimum": 0, "maximum": 0o777}, EXPANSION]}

    def plain(self, setting: int | None) -> str | None:
        return None if setting is None else f"{setting:04o}"


class Choice(Kind, frozen=True, kw_only=True):
    """One word of several. `meant`: words of other programs and what they are here."""

    words: tuple[str, ...]
    meant: dict[str, str] = msgspec.field(default_factory=dict)

    def read(self, value: object, place: Place) -> str:
        text = self.expand(text_of(value, self._wanted), place)
        if text not in self.words:
            raise refusal(self._wanted, text, self._mend(text))
        return text

    @property
    def _wanted(self) -> str:
        return "one of " + ", ".join(f'"{word}"' for word in self.words)

    def _mend(self, text: str) -> str:
        if text.lower() in self.words:
            return f'write "{text.lower()}"'
        if text.lower() in self.meant:
            return self.meant[text.lower()]
        import difflib  # only here, on the way to an error: the idle manager does without it

        close = difflib.get_close_matches(text.lower()[:40], self.words, 1)
        return f'did you mean "{close[0]}"?' if close else ""

    def schema(self) -> Schema:
        return {"anyOf": [{"enum": list(self.words)}, EXPANSION]}


class Readiness(Choice, frozen=True, kw_only=True):
    """ready: a word, or "http:" and the path that is asked for."""

    def read(self, value: object, place: Place) -> str:
        if isinstance(value, str) and value.startswith("http:"):
            text = self.expand(value, place)
            path = text.removeprefix("http:")
            if re.fullmatch(r"/[!-~]{0,1000}", path) and not path.startswith("//"):
                return text
            mend = 'the pool\'s own socket is asked; write "http:/PATH"' if path.startswith("//") else ""
            raise refusal('"http:" and a path, as in "http:/healthz"', text, mend)
        if isinstance(value, str) and value.startswith("/"):
            raise refusal(f'{self._wanted} or "http:/PATH"', value, f'write "http:{value}"')
        return super().read(value, place)

    def schema(self) -> Schema:
        return {"anyOf": [{"enum": list(self.words)}, {"type": "string", "pattern": "^http:/[!-~]*$"}, EXPANSION]}


class Restart(Kind, frozen=True):
    """autorestart: true, false or "unexpected"."""

    def read(self, value: object, place: Place) -> bool | str:
        if isinstance(value, bool):
            return value
        wanted = 'true, false or "unexpected"'
        text = expanded(value, place)
        word = text if text is not None else text_of(value, wanted)
        if word == "unexpected":
            return word
        if text is not None and word in ("true", "false"):
            return word == "true"
        mends = {
            "always": "write true",
            "never": "write false",
            "no": "write false",
            "on-failure": 'write "unexpected"',
            "true": "write it without quotes",
            "false": "write it without quotes",
        }
        raise refusal(wanted, word, mends.get(word.lower(), ""))

    def schema(self) -> Schema:
        return {"anyOf": [{"type": "boolean"}, {"const": "unexpected"}, EXPANSION]}


class Signal(Kind, frozen=True):
    """A signal's name, with or without SIG, or its number; read as the number."""

    def read(self, value: object, place: Place) -> int:
        wanted = 'the name or number of a signal, as in "TERM", "SIGQUIT" or 15'
        if isinstance(value, int) and not isinstance(value, bool):
            name = show(value)
        else:
            name = self.expand(text_of(value, wanted), place)
        try:
            return signal_number(name)
        except ValueError:
            raise refusal(wanted, value) from None

    def schema(self) -> Schema:
        return {"type": ["string", "integer"], "minimum": 1, "maximum": 64}

    def plain(self, setting: int) -> str | int:
        name = signal_name(setting)
        return name.removeprefix("SIG") if name.startswith("SIG") else setting  # a real-time one has a number only


class Text(Kind, frozen=True, kw_only=True):
    """Text that matches `pattern` whole; `wanted` says in words what that is."""

    wanted: str = "text"
    pattern: str = r".+"

    def read(self, value: object, place: Place) -> str:
        text = self.expand(text_of(value, self.wanted), place)
        if not re.fullmatch(self.pattern, text, re.DOTALL):
            raise refusal(self.wanted, text)
        return text

    def schema(self) -> Schema:
        return {"type": "string", "minLength": 1}


class Account(Kind, frozen=True, kw_only=True):
    """A user, or "user:group"; names or numbers. `group_alone`: ":group" will do."""

    group_alone: bool = False

    def read(self, value: object, place: Place) -> str:
        wanted = '"user" or "user:group"' + (' or ":group"' if self.group_alone else "")
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32 - 1:
            return str(value)
        text = self.expand(text_of(value, wanted), place)
        user = "[^:\\s]*" if self.group_alone else "[^:\\s]+"
        if not text or not re.fullmatch(f"{user}(:[^:\\s]+)?", text):
            raise refusal(wanted, text)
        return text

    def schema(self) -> Schema:
        return {"type": ["string", "integer"], "minLength": 1, "minimum": 0}


class Path(Kind, frozen=True, kw_only=True):
    """A path; a relative one starts at the directory of the file that says it. Read as an absolute path.

    `words`: texts that are no path but mean something, as "-". `bare`: a name without a slash is a command to be
    searched in PATH.
    """

    words: tuple[str, ...] = ()
    bare: bool = False

    def read(self, value: object, place: Place) -> str:
        text = text_of(value, "a path" + "".join(f' or "{word}"' for word in self.words))
        if text.lower() in self.words:
            return text.lower()
        if "-" in self.words:
            _refuse_no_file(text, self.words)
        if text.startswith("~"):
            raise refusal("a path", text, "~ has no meaning here: write %(ENV_HOME)s" + text[1:])
        scheme = re.match(r"[a-z]{2,}:/+", text)
        if scheme:
            raise refusal("a path", text, f'write only the path: "/{text[scheme.end() :]}"')
        path = self.expand(text, place)
        if not path:
            raise refusal("a path", path)
        if self.bare and "/" not in path:
            return path
        return place.absolute(path, is_template=self.per_process)

    def schema(self) -> Schema:
        return {"type": "string", "minLength": 1}


def _refuse_no_file(text: str, words: tuple[str, ...]) -> None:
    if text in ("/dev/stdout", "/dev/stderr", "/dev/fd/1", "/dev/fd/2", "/proc/self/fd/1", "/proc/self/fd/2"):
        raise refusal("a log file", text, 'write "-" for the manager\'s own output; it needs no logfile_maxbytes = 0')
    if text == "/dev/null" and "none" in words:
        raise refusal("a log file", text, 'write "none" to discard the output')
    if text.startswith("|"):
        raise refusal(
            "a log file", text, "no program is fed with it: write a path; rotation is built in, see log_timestamps too"
        )
    if text.upper() == "AUTO":
        raise refusal("a log file", text, 'there are no automatic log files: write a path, "-" or "none"')
    if text == "syslog":
        raise refusal(
            "a log file", text, 'syslog is not in this version; write "-" and let the service manager collect it'
        )


def size(value: object, place: Place, *, wanted: str = 'a size in bytes, or as in "50MB"') -> int:
    """Bytes from an integer or from text like "50MB", "512 KB" or "1GB"."""
    if isinstance(value, int) and not isinstance(value, bool):
        number, text = value, ""
    else:
        text = place.expand(text_of(value, wanted)).strip()
        match = _SIZE.fullmatch(text)
        if not match:
            raise refusal(wanted, text, "the units are KB, MB and GB, of 1024; without a fraction")
        number = int(match[1]) * _UNITS[match[2].upper()]
    if not 0 <= number <= SIZE_MAX:
        raise refusal(wanted, text or number)
    return number


def _seconds_meant(value: object) -> str:
    if not isinstance(value, str):
        return ""
    match = re.fullmatch(r"\s*([0-9]{1,9}(\.[0-9]{1,9})?)\s*", value)
    if match:
        return f"write {match[1]}, without quotes"
    match = _TIME.fullmatch(value.strip().lower())
    if not match or len(match[1]) > 9:
        return ""
    seconds = float(match[1]) * (0.001 if match[2] == "ms" else _TIME_UNITS[match[2][0]])
    return f"write {seconds:g}"
