"""The schema, the reference and the reader say the same, for all are made from the settings."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fcgimgr.config.checks import WSGI_KEYS
from fcgimgr.config.keys import keys
from fcgimgr.config.pools import PoolSettings, ProgramSettings
from fcgimgr.config.read import ConfigError, read
from fcgimgr.config.reference import POOL_TOPICS, TOPICS, markdown
from fcgimgr.config.schema import json_schema
from fcgimgr.config.settings import GroupSettings, ManagerSettings

ROOT = Path(__file__).parents[2]
TABLES = {"manager": ManagerSettings, "pool": PoolSettings, "program": ProgramSettings, "group": GroupSettings}
NO_KEYS = {"name", "file_environment", "rlimits"}

TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}


KNOWN = {
    *("$schema", "$defs", "$ref", "title", "description", "default"),
    *("type", "enum", "const", "anyOf"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "pattern"),
    *("items", "minItems", "required", "properties", "additionalProperties"),
}


def fits(value: Any, schema: dict[str, Any], whole: dict[str, Any]) -> bool:
    """Whether `value` is valid: as much of JSON Schema as ours uses, and a failure for anything else."""
    assert set(schema) <= KNOWN
    if "$ref" in schema:
        return fits(value, whole["$defs"][schema["$ref"].removeprefix("#/$defs/")], whole)
    types = schema.get("type", list(TYPES))
    is_of_type = any(
        isinstance(value, TYPES[name]) and isinstance(value, bool) == (name == "boolean")
        for name in ([types] if isinstance(types, str) else types)
    )
    return (
        is_of_type
        and value in schema.get("enum", [value])
        and value == schema.get("const", value)
        and ("anyOf" not in schema or any(fits(value, one, whole) for one in schema["anyOf"]))
        and contents_fit(value, schema, whole)
    )


def contents_fit(value: Any, schema: dict[str, Any], whole: dict[str, Any]) -> bool:
    if isinstance(value, dict):
        properties, rest = schema.get("properties", {}), schema.get("additionalProperties", {})
        inside = {name: properties.get(name, rest) for name in value}
        return set(schema.get("required", ())) <= set(value) and all(
            rule is not False and fits(value[name], rule, whole) for name, rule in inside.items()
        )
    if isinstance(value, list):
        rule = schema.get("items", {})
        return len(value) >= schema.get("minItems", 0) and all(fits(one, rule, whole) for one in value)
    if isinstance(value, str):
        return len(value) >= schema.get("minLength", 0) and bool(re.search(schema.get("pattern", ""), value))
    if isinstance(value, bool):
        return True
    low, high = schema.get("minimum", value), schema.get("maximum", value)
    above, below = schema.get("exclusiveMinimum", value - 1), schema.get("exclusiveMaximum", value + 1)
    return bool(low <= value <= high and above < value < below)


def valid(text: str) -> bool:
    schema = json_schema()
    return fits(tomllib.loads(text), schema, schema)


@pytest.mark.parametrize("struct", TABLES.values())
def test_every_setting_is_a_key_with_a_description(struct: type[msgspec.Struct]):
    known = keys(struct)
    assert {key.field for key in known.values()} | (NO_KEYS & set(struct.__struct_fields__)) == set(
        struct.__struct_fields__
    )
    for key in known.values():
        assert re.fullmatch(r"[A-Z].{15,}\.", key.description), key.name


@pytest.mark.parametrize(("table", "struct"), TABLES.items())
def test_every_key_is_in_the_schema_and_in_the_reference(table: str, struct: type[msgspec.Struct]):
    properties = json_schema()["$defs"][table]["properties"]
    document = markdown()
    assert set(properties) == set(keys(struct))
    for name, key in keys(struct).items():
        assert properties[name]["description"]
        assert f"| `{name}` |" in document
        if key.default is not None:
            assert fits(key.default, properties[name], json_schema())


def test_the_schema_is_json():
    assert json.loads(json.dumps(json_schema())) == json_schema()


def test_no_topic_of_the_reference_has_lost_its_first_key():
    assert set(TOPICS) | set(POOL_TOPICS) <= set(keys(PoolSettings))


def test_the_reference_in_the_repository_is_up_to_date():
    assert (ROOT / "docs" / "configuration.md").read_text() == markdown(), (
        "run: python -m fcgimgr.config.reference > docs/configuration.md"
    )


def test_a_configuration_with_every_default_said_aloud_reads_as_one_that_is_silent(tmp_path: Path):
    silent = '[pool.app]\nsocket = "/run/a.sock"\ncommand = "x"\n'
    said = "".join(
        f"{key.name} = {json.dumps(key.default)}\n"
        for key in keys(PoolSettings).values()
        if key.default is not None and key.name not in ("process_name", "environment", *WSGI_KEYS)
    )
    (tmp_path / "a.toml").write_text(silent)
    (tmp_path / "b.toml").write_text(silent + said)
    assert read(tmp_path / "a.toml", {}).pools == read(tmp_path / "b.toml", {}).pools
    assert valid(silent + said)


def test_the_example_of_the_reference_is_a_configuration(tmp_path: Path):
    match = re.search(r"```toml\n(.*?)```", markdown(), re.DOTALL)
    assert match
    (tmp_path / "pool.toml").write_text(match[1])
    assert list(read(tmp_path / "pool.toml", {}).pools) == ["app"]
    assert valid(match[1])


@pytest.mark.parametrize("struct", [PoolSettings, ManagerSettings])
def test_the_examples_in_the_descriptions_can_be_written(struct: type[msgspec.Struct], tmp_path: Path):
    for key in keys(struct).values():
        match = re.search(r"Example: `(.*)`", key.description)
        if not match:
            continue
        line = f"{key.name} = {match[1]}\n"
        socket = "" if key.name == "socket" else 'socket = "/run/a.sock"\n'
        wsgi = "" if key.name in ("wsgi", "command") else 'wsgi = "a:b"\n'
        others = '[program.cache]\ncommand = "x"\n[program.queue]\ncommand = "x"\n'
        pool = f"[pool.app]\n{socket}{wsgi}"
        text = (pool + line if struct is PoolSettings else f"[manager]\n{line}{pool}") + others
        assert valid(text)
        text = text.replace("/etc/shop/secrets.env", "/dev/null")
        (tmp_path / "pool.toml").write_text(text)
        assert problems(tmp_path / "pool.toml") in ([], ["/dev/null: it is not a regular file"]), text


def problems(path: Path) -> list[str]:
    try:
        read(path, {})
    except ConfigError as error:
        return [problem.message for problem in error.problems]
    return []


@pytest.mark.parametrize(
    "line",
    [
        "numproc = 1",
        'numprocs = "4"',
        "numprocs = 0",
        "stopwaitsecs = -1",
        "ready_timeout = 0",
        'autostart = "yes"',
        'ready = "pong"',
        'umask = "888"',
        'stdout_logfile_maxbytes = "50 megs"',
        "environment = { A = 1 }",
        "exitcodes = [256]",
        "command = 3",
    ],
)
def test_an_editor_marks_what_the_reader_refuses(line: str, tmp_path: Path):
    pool = '[pool.app]\nsocket = "/run/a.sock"\n' + ("" if line.startswith("command") else 'command = "x"\n')
    assert valid(pool if "command" in pool else pool + 'command = "x"\n')
    assert not valid(pool + line + "\n")
    (tmp_path / "pool.toml").write_text(pool + line + "\n")
    with pytest.raises(ConfigError):
        read(tmp_path / "pool.toml", {})


def test_every_example_of_the_repository_fits_the_schema():
    examples = sorted(ROOT.glob("examples/*/*.toml"))
    assert all(valid(path.read_text()) for path in examples)
