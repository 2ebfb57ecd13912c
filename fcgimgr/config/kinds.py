"""The kinds of values a configuration holds: how each is read from TOML, and how it is described to an editor.

A kind stands in a field's annotation (settings.py) and is the only place that knows the value's form. `read` takes
what the TOML parser gave, with its `Place`, and returns the setting or raises ValueError with a message that says what
is wrong and what to write instead; `schema` gives the same rule as JSON Schema; `plain` turns a setting back into what
a file would say. The kinds themselves are in scalars.py and compounds.py.
"""

from typing import Any, Final

import msgspec

from fcgimgr.config.place import Place

Schema = dict[str, Any]

EXPANSION: Final[Schema] = {"$ref": "#/$defs/expansion"}
"""Text with an expansion, where a number or a word is wanted: "%(ENV_WORKERS)s"."""


class Kind(msgspec.Struct, frozen=True):
    """The form of a value. `per_process`: the setting is a template, expanded once for each process."""

    per_process: bool = False

    def read(self, value: object, place: Place) -> Any:
        raise NotImplementedError

    def schema(self) -> Schema:
        raise NotImplementedError

    def plain(self, setting: Any) -> Any:
        """What a TOML file would say for `setting`."""
        return setting

    def expand(self, text: str, place: Place) -> str:
        return place.template(text) if self.per_process else place.expand(text)
