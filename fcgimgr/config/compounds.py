"""Kinds of several values: command lines, lists of names and paths, environments and listening addresses."""

import re
import shlex

from fcgimgr.config.address import Address, parse_address
from fcgimgr.config.kinds import Kind, Schema
from fcgimgr.config.place import Place
from fcgimgr.config.scalars import Path
from fcgimgr.config.values import refusal, show, text_of
from fcgimgr.fastcgi import accessformat


class Addresses(Kind, frozen=True):
    """A listening address, or a list of them."""

    def read(self, value: object, place: Place) -> tuple[Address, ...]:
        wanted = "a listening address, or a list of them"
        if isinstance(value, int) and not isinstance(value, bool):
            raise refusal(wanted, value, f'write "127.0.0.1:{show(value)}", or "*:{show(value)}" for every interface')
        texts = [value] if isinstance(value, str) else list_of(value, wanted)
        if not texts:
            raise refusal(wanted, value, "it is empty")
        addresses = [parse_address(self.expand(text_of(text, wanted), place)) for text in texts]
        for address in addresses:
            if addresses.count(address) > 1:
                raise ValueError(f"{address} is listed twice")
        return tuple(addresses)

    def schema(self) -> Schema:
        address = {"type": "string", "minLength": 1}
        return {"anyOf": [address, {"type": "array", "items": address, "minItems": 1}]}


class Command(Kind, frozen=True):
    """A command line, split as a shell would split it but run without one; or the list of its words."""

    per_process: bool = True

    def read(self, value: object, place: Place) -> tuple[str, ...]:
        wanted = "a command line, or the list of its words"
        if isinstance(value, str):
            text = text_of(value, wanted)
            try:
                words = shlex.split(text)
            except ValueError as error:  # "No closing quotation", "No escaped character"
                raise ValueError(f"{show(text)} cannot be split into words: {str(error).lower()}") from None
        else:
            words = list_of(value, wanted)
        if not words or not words[0]:
            raise refusal(wanted, value, "it is empty")
        return tuple(self.expand(word, place) for word in words)

    def schema(self) -> Schema:
        words = {"type": "array", "items": {"type": "string"}, "minItems": 1}
        return {"anyOf": [{"type": "string", "minLength": 1}, words]}

    def plain(self, setting: tuple[str, ...]) -> list[str] | None:
        return list(setting) or None


class Names(Kind, frozen=True, kw_only=True):
    """A list of texts, each matching `pattern` whole; a single one needs no list."""

    what: str
    pattern: str = r".+"

    def read(self, value: object, place: Place) -> tuple[str, ...]:
        wanted = f"a list of {self.what}"
        names = [value] if isinstance(value, str) else list_of(value, wanted)
        read: dict[str, None] = {}
        for name in names:
            text = self.expand(text_of(name, wanted), place)
            if not re.fullmatch(self.pattern, text):
                parts = [part for part in re.split(r"[,\s]+", text) if part]
                several = len(parts) > 1 and isinstance(value, str)
                raise refusal(wanted, text, f"write [{', '.join(show(part) for part in parts)}]" if several else "")
            read[text] = None
        return tuple(read)

    def schema(self) -> Schema:
        return {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}

    def plain(self, setting: tuple[str, ...]) -> list[str]:
        return list(setting)


class Paths(Kind, frozen=True):
    """A list of directories for a colon-separated variable; relative ones start at the file's directory."""

    def read(self, value: object, place: Place) -> tuple[str, ...]:
        wanted = "a list of directories"
        paths = [value] if isinstance(value, str) else list_of(value, wanted)
        return tuple(self._path(text_of(path, wanted), place) for path in paths)

    def _path(self, text: str, place: Place) -> str:
        if ":" in text:
            raise refusal("a list of directories", text, f"write [{', '.join(show(part) for part in text.split(':'))}]")
        return str(Path(per_process=self.per_process).read(text, place))

    def schema(self) -> Schema:
        return {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}

    def plain(self, setting: tuple[str, ...]) -> list[str]:
        return list(setting)


class Codes(Kind, frozen=True):
    """Exit codes, 0 to 255: a list, or a single one."""

    def read(self, value: object, place: Place) -> tuple[int, ...]:
        wanted = "a list of exit codes from 0 to 255, as in [0, 2]"
        codes = value if isinstance(value, list) else [value]
        read: dict[int, None] = {}
        for code in codes:
            if isinstance(code, bool) or not isinstance(code, int) or not 0 <= code <= 255:
                numbers = isinstance(code, str) and re.fullmatch(r"[0-9]{1,3}(\s*,\s*[0-9]{1,3})*", code.strip())
                raise refusal(wanted, code, f"write [{code}], without quotes" if numbers else "")
            read[code] = None
        return tuple(read)

    def schema(self) -> Schema:
        code = {"type": "integer", "minimum": 0, "maximum": 255}
        return {"anyOf": [code, {"type": "array", "items": code}]}

    def plain(self, setting: tuple[int, ...]) -> list[int]:
        return list(setting)


class Environment(Kind, frozen=True):
    """A table of environment variables."""

    def read(self, value: object, place: Place) -> dict[str, str]:
        wanted = "a table of environment variables"
        if not isinstance(value, dict):
            raise refusal(wanted, value, f"write {place.key} = {_supervisor_environment(value)}")
        variables: dict[str, str] = {}
        problems: list[str] = []
        for name, content in value.items():
            try:
                variables[name] = self._variable(name, content, place)
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ValueError("; and ".join(problems))
        return variables

    def _variable(self, name: str, content: object, place: Place) -> str:
        if not name or "=" in name or "\0" in name:
            raise ValueError(f"{show(name)} cannot be the name of an environment variable")
        if isinstance(content, bool) or not isinstance(content, str):
            if isinstance(content, dict):
                raise ValueError(f'{name}: a name with a dot goes in quotes: "{name}.{next(iter(content), "x")}" = …')
            simple = isinstance(content, bool | int | float)
            mend = f'write {name} = "{show(content)}"' if simple else ""
            raise refusal(f"text for the variable {name}", content, mend)
        try:
            return self.expand(text_of(content, "text"), place)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    def schema(self) -> Schema:
        return {"type": "object", "additionalProperties": {"type": "string"}}


def _supervisor_environment(value: object) -> str:
    """Supervisor's KEY="value",OTHER="value" as a TOML table; an example of one when `value` is something else."""
    pair = r"""([A-Za-z_]\w{0,60})=("[^"\\]{0,60}"|'[^'\\]{0,60}'|[^,"'\s]{0,60})"""
    if isinstance(value, str) and len(value) <= 500 and re.fullmatch(rf"\s*{pair}(\s*,\s*{pair})*\s*,?\s*", value):
        pairs = [f'{name} = "{text.strip(chr(34) + chr(39))}"' for name, text in re.findall(pair, value)]
        return "{ " + ", ".join(pairs) + " }"
    return '{ NAME = "value", OTHER = "value" }'


class Wsgi(Kind, frozen=True):
    """A WSGI application as "module:callable"."""

    def read(self, value: object, place: Place) -> str:
        wanted = 'a WSGI application as "module:callable", as in "shop.web:app"'
        text = self.expand(text_of(value, wanted), place).strip()
        word = r"[^\W\d]\w*"
        if not re.fullmatch(rf"{word}(\.{word})*:{word}(\.{word})*", text):
            raise refusal(wanted, text, _wsgi_meant(text))
        return text

    def schema(self) -> Schema:
        return {"type": "string", "pattern": "^[^:/]+:[^:/]+$"}


class AccessFormat(Kind, frozen=True):
    """The form of an access log's lines: "json", or text with the fields of PHP-FPM's access.format.

    No expansions: `%` is for these characters.
    """

    def read(self, value: object, place: Place) -> str:
        wanted = '"json", or a line with %R, %m, %s and so on'
        text = text_of(value, wanted)
        if not text or not text.isprintable():
            raise refusal(wanted, text, "one line, without control characters")
        accessformat.parse(text)
        return text

    def schema(self) -> Schema:
        return {"type": "string", "minLength": 1}


def _wsgi_meant(text: str) -> str:
    if "(" in text:
        return "a factory is not called; make a module-level name for the application it returns"
    module, _, name = text.partition(":")
    if module.endswith(".py") or "/" in module:
        module = module.removesuffix(".py").strip("./").replace("/", ".")
        return f'name the module, not its file: "{module}:{name or "app"}" (and its directory in pythonpath)'
    return f'say which callable of the module: "{module}:app"' if module and not name else ""


def list_of(value: object, wanted: str) -> list[str]:
    """`value` as a list of texts."""
    if not isinstance(value, list):
        raise refusal(wanted, value)
    for word in value:
        if not isinstance(word, str):
            number = isinstance(word, int | float) and not isinstance(word, bool)
            raise refusal(f"{wanted}: text only", word, f'write "{show(word)}"' if number else "")
        text_of(word, wanted)
    return value
