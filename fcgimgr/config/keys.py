"""The keys of a table as a user sees them, taken from the fields of the settings."""

import functools
from typing import Any

import msgspec
import msgspec.structs

from fcgimgr.config.kinds import Kind
from fcgimgr.config.limits import LIMITS, Limit, Limits


class Key(msgspec.Struct, frozen=True):
    """A key of a table.

    field: the setting it sets; default: as a file would say it, None for none; shown: words where the default depends
    on the machine or the file; required: the table is an error without it.
    """

    name: str
    field: str
    kind: Kind
    description: str
    default: Any = None
    shown: str | None = None
    required: bool = False


@functools.cache
def keys(struct: type[msgspec.Struct]) -> dict[str, Key]:
    """The keys of the table that `struct` holds, by name, in the order of its fields."""
    annotations: dict[str, Any] = {}
    for base in reversed(struct.__mro__):
        if issubclass(base, msgspec.Struct):
            annotations.update(base.__annotations__)
    defaults = {field.name: field for field in msgspec.structs.fields(struct)}
    found: dict[str, Key] = {}
    for field, annotation in annotations.items():
        kind, meta = _metadata(annotation)
        if kind is None:
            continue
        if isinstance(kind, Limits):
            for limit, (sized, what) in LIMITS.items():
                name = f"rlimit_{limit}"
                found[name] = Key(name, field, Limit(sized=sized, endless=limit != "nofile"), what)
            continue
        extra = meta.extra or {}
        name, shown = extra.get("key", field), extra.get("default")
        required = defaults[field].required and shown is None
        plain = None if required or shown is not None else _plain(kind, defaults[field])
        found[name] = Key(name, field, kind, meta.description or "", plain, shown, required)
    return found


def _metadata(annotation: Any) -> tuple[Kind | None, msgspec.Meta]:
    kind: Kind | None = None
    meta = msgspec.Meta()
    for part in getattr(annotation, "__metadata__", ()):
        if isinstance(part, Kind):
            kind = part
        elif isinstance(part, msgspec.Meta):
            meta = part
    return kind, meta


def _plain(kind: Kind, field: msgspec.structs.FieldInfo) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return kind.plain(field.default_factory())
    return None if field.default is None else kind.plain(field.default)
