"""Whatever a file holds, reading it ends in a Config or in a ConfigError: the manager survives any configuration."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcgimgr.config.keys import keys
from fcgimgr.config.processes import process_plan
from fcgimgr.config.read import ConfigError, read
from fcgimgr.config.settings import Config, GroupSettings, ManagerSettings, PoolSettings

ENVIRON = {"HOME": "/root", "ODD": "\udcff%(here)s", "N": "3"}

FRAGMENTS = [
    "%(here)s", "%(process_num)02d", "%(numprocs)d", "%(ENV_HOME)s", "%(ENV_ODD)s", "%(ENV_N)s", "%(ENV_A)s", "%", "%%",
    "127.0.0.1:9001", "[::1]:1", "*:9001", "unix:", "/run/a.sock", "fd:", "systemd:", "tcp://", "50MB", "0660", "1:2",
    "TERM", "app", "a:b", "unlimited", "none", "-", "/", ":", ",", "..", "~/", "'", '"', "\\", " ", "\t", "0", "-1",
]  # fmt: skip

texts = st.one_of(st.text(max_size=20), st.lists(st.sampled_from(FRAGMENTS), max_size=5).map("".join))
scalars = st.one_of(
    texts,
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, 1, 2, 660, 0o660]),
    st.floats(),
    st.booleans(),
    st.dates(),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=5
)
names = st.one_of(st.sampled_from(["app", "b", "c", "all"]), texts)


def entries(known: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(known) | texts, values, max_size=6)


sound = st.fixed_dictionaries({"socket": st.just("/run/%(program_name)s"), "command": st.just("x")})
pools = entries(list(keys(PoolSettings)))
tables = st.fixed_dictionaries(
    {},
    optional={
        "include": values,
        "manager": entries(list(keys(ManagerSettings))) | values,
        "defaults": pools | values,
        "pool": st.dictionaries(names, pools | st.tuples(sound, pools).map(lambda two: two[0] | two[1]), max_size=3),
        "program": st.dictionaries(names, pools, max_size=3) | values,
        "group": st.dictionaries(names, entries(list(keys(GroupSettings))), max_size=2) | values,
    },
)


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{text(name)} = {toml(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(toml(inner) for inner in value) + "]"
    if isinstance(value, str):
        return text(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def text(value: str) -> str:
    # JSON writes what is beyond U+FFFF as two surrogates, which TOML does not know; DEL it leaves, TOML does not.
    plain = "".join(character for character in value if ord(character) < 0xD800 or ord(character) > 0xDFFF)
    return json.dumps(plain, ensure_ascii=False).replace("\x7f", "\\u007f")


@pytest.fixture(scope="module")
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory) / "pool.toml"


def survive(path: Path, content: bytes) -> Config | None:
    """The configuration, or None when it was refused properly."""
    path.write_bytes(content)
    try:
        config = read(str(path), ENVIRON)
    except ConfigError as error:
        refused = error
    else:
        return planned(config)
    lines = str(refused).splitlines()
    assert lines
    assert len(lines) == len(refused.problems) == len(set(lines))
    assert all(line.isprintable() and line.encode() for line in lines)
    return None


def planned(config: Config) -> Config:
    """The same, once every process has been planned."""
    for one in (*config.pools.values(), *config.programs.values()):
        for index in (0, one.numprocs - 1, one.numprocs + 5):
            plan = process_plan(one, config, index)
            assert plan.argv
            assert all("\0" not in word for word in plan.argv)
    return config


@given(st.binary())
def test_any_bytes(path: Path, content: bytes):
    survive(path, content)


@given(st.text(alphabet=st.sampled_from("[]{}=.,\"'#\n ax0-\\:;%()")))
def test_any_text_of_tomls_signs(path: Path, content: str):
    survive(path, content.encode())


@given(tables)
@settings(max_examples=400, deadline=None)
def test_any_tables(path: Path, content: dict[str, Any]):
    lines = (f"{name} = {toml(value)}" for name, value in content.items())
    survive(path, "\n".join(lines).encode())


@given(st.sampled_from(sorted(set(keys(PoolSettings)) - {"socket", "command"})), values)
@settings(max_examples=600, deadline=None)
def test_any_value_of_any_key_of_a_pool(path: Path, key: str, value: Any):
    survive(path, f'[pool.app]\nsocket = "/run/a.sock"\ncommand = "x"\n{key} = {toml(value)}\n'.encode())


@given(values)
@settings(max_examples=300, deadline=None)
def test_any_socket(path: Path, value: Any):
    survive(path, f'[pool.app]\nsocket = {toml(value)}\ncommand = "x"\n'.encode())


@given(values)
@settings(max_examples=300, deadline=None)
def test_any_command(path: Path, value: Any):
    survive(path, f"[program.app]\ncommand = {toml(value)}\n".encode())


@given(st.sampled_from(list(keys(ManagerSettings))), values)
@settings(max_examples=300, deadline=None)
def test_any_value_of_any_key_of_the_manager(path: Path, key: str, value: Any):
    survive(path, f'[manager]\n{key} = {toml(value)}\n[program.a]\ncommand = "x"\n'.encode())


@given(st.binary())
def test_any_environment_file(path: Path, content: bytes):
    (path.parent / "a.env").write_bytes(content)
    survive(path, b'[program.a]\ncommand = "x"\nenvironment_file = "a.env"\n')
