"""The state file's form: what one release has written the next one reads, and damage costs no more than what it hit."""

import contextlib
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgimgr.config.address import TcpAddress, UnixAddress
from fcgimgr.core.process import STATES, CountAsFailed, Exit, Exited, Rest, Running, StartAgain, State
from fcgimgr.manager.succession.adoption import running_config
from fcgimgr.manager.succession.state import (
    VERSION,
    HandoverRecord,
    PipeRecord,
    ProcessRecord,
    SlotRecord,
    StateError,
    decode,
    encode,
    read,
)

SAMPLES = Path(__file__).parent / "samples"
V1 = (SAMPLES / "state-v1.jsonl").read_bytes()
BOOT = "1bd6deca-6bb1-4456-8cf0-e0bdfb29b98d"


def test_the_state_of_version_1_is_read() -> None:
    """Written by release 0.1.0, and kept here as it was. If this fails, VERSION must grow and decode() must convert."""
    saved = decode(V1)
    assert saved.trouble == ""
    assert saved.manager.boot == BOOT
    assert set(saved.pools) == {"app", "bad", "fatal", "done", "stopped"}
    states = {pool: record.state.name for (pool, _, _), record in saved.processes.items()}
    assert states == {"app": "RUNNING", "bad": "BACKOFF", "fatal": "FATAL", "done": "EXITED", "stopped": "STOPPED"}
    app = saved.generations["app", 1]
    assert [listener.address for listener in app.listeners] == [
        TcpAddress("127.0.0.1", 19780),
        UnixAddress("/srv/sample/app.sock"),
    ]
    assert app.listeners[0].order == (app.listeners[0].inode,)
    assert (app.core.wanted, app.core.up, app.core.open) == (1, True, True)
    assert saved.processes["bad", 1, 0].exit == Exit(code=1)
    assert saved.processes["app", 1, 0].born


def test_what_version_1_did_not_count_is_none_and_not_wrong() -> None:
    bad = decode(V1).processes["bad", 1, 0]
    assert (bad.crashes, bad.recycled, bad.by_hand, bad.since) == (0, 0, 0, 0.0)
    assert decode(V1).pools["bad"].since == 0.0


def test_the_configuration_that_ran_is_known_from_it() -> None:
    config = running_config(decode(V1))
    assert config.pools["app"].command == ("sleep", "1000")
    assert config.pools["app"].rlimits == {"nofile": (100, 200)}
    assert set(config.programs) == {"bad", "fatal", "done", "stopped"}
    assert config.groups["all_of_it"].programs == ("app", "bad")
    assert config.manager.environment == {"LANG": "C.UTF-8"}


def test_environments_and_paths_that_are_not_utf8_are_kept() -> None:
    before = decode(V1)
    manager = msgspec.structs.replace(before.manager, path="/srv/caf\udce9/pool.toml")
    app = before.generations["app", 1]
    settings = msgspec.structs.replace(app.settings, environment={"A": "caf\udce9 \\udce9 \U0001f642"})
    after = decode(encode(manager) + encode(msgspec.structs.replace(app, as_pool=settings)))
    assert after.trouble == ""
    assert after.manager == manager
    assert after.generations["app", 1].settings == settings


def test_what_a_later_release_has_added_is_passed_over() -> None:
    lines = [msgspec.json.decode(line) for line in V1.splitlines()]
    for line in lines:
        line["news"] = 1
    saved = decode(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    assert saved.trouble == ""
    assert len(saved.processes) == 5


def test_a_later_version_is_refused_by_name() -> None:
    later = V1.replace(b'"version":1', b'"version":%d' % (VERSION + 1)).replace(b"0.1.0", b"9.9.9")
    with pytest.raises(StateError, match=r"later release \(9\.9\.9, state version"):
        decode(later)


DEEP = b'{"version":1,"news":' + b"[" * 100_000


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"garbage\n", b"{}\n", b"[]\n", b'{"version":1}\n', b"\0" * 4096, b"\xff\n", DEEP]
)
def test_what_is_no_state_is_refused(content: bytes) -> None:
    with pytest.raises(StateError, match="first line"):
        decode(content)


def test_a_state_that_was_cut_off_anywhere_is_read_up_to_there() -> None:
    first = V1.index(b"\n") + 1
    whole = decode(V1)
    for length in range(first, len(V1), 7):
        saved = decode(V1[:length])
        assert saved.trouble == ""
        assert saved.processes.items() <= whole.processes.items()
        assert saved.generations.keys() <= whole.generations.keys()


def test_damage_ends_it_and_is_told_with_its_line() -> None:
    lines = V1.splitlines(keepends=True)
    lines[3] = b'{"type":"process","pool":7}\n'
    saved = decode(b"".join(lines))
    assert saved.trouble.startswith("line 4 cannot be read")
    assert set(saved.pools) == {"app"}


def test_damage_may_be_deep_or_wide() -> None:
    for damage in (DEEP, b'"' + b"x" * 1_000_000, b"\xff" * 100, b'{"type":"process","index":' + b"9" * 10_000 + b"}"):
        assert decode(V1 + damage + b"\n").trouble.startswith(f"line {len(V1.splitlines()) + 1} cannot be read")


@given(at=st.integers(0, len(V1) - 1), by=st.binary(min_size=1, max_size=20))
def test_damage_anywhere_is_told_or_makes_no_difference_to_what_can_be_read(at: int, by: bytes) -> None:
    with contextlib.suppress(StateError):
        running_config(decode(V1[:at] + by + V1[at + len(by) :]))


def test_of_two_lines_on_one_thing_the_later_counts() -> None:
    again = ProcessRecord(pool="app", generation=1, index=0, state=Running(pid=4711, since=1.0), born=9, spawned=3)
    assert decode(V1 + encode(again)).processes["app", 1, 0] == again


@pytest.mark.parametrize("kind", STATES)
def test_every_state_of_a_process_is_written_and_read(kind: type[State]) -> None:
    fields: dict[str, object] = {
        "pid": 12, "since": 1.5, "due": 2.5, "tries": 3, "why": "thus", "exit": Exit(signal=9), "expected": False,
    }  # fmt: skip
    names = kind.__struct_fields__
    for after in (Rest(), StartAgain(), CountAsFailed(1, "why")) if "after" in names else (None,):
        state = kind(**{name: value for name, value in {**fields, "after": after}.items() if name in names})
        record = ProcessRecord(pool="app", generation=1, index=7, state=state)
        assert decode(V1 + encode(record)).processes["app", 1, 7].state == state


def test_what_is_handed_over_is_found_again() -> None:
    handover = HandoverRecord(control=64, locks={"/run/lock": 3}, notify={"@n": 4}, sockets={"web": (5,)})
    pipe = PipeRecord(fd=6, begun=b"half \xff", inside_line=True, recent=b"\0")
    slot = SlotRecord(pool="app", generation=1, index=0, stdout=pipe, lingering=(8,))
    saved = decode(V1 + encode(handover) + encode(slot))
    assert saved.slots["app", 1, 0] == slot
    assert {64, 3, 4, 5, 6, 8} <= set(saved.fds())


def write(path: Path, mode: int = 0o600) -> Path:
    path.write_bytes(V1)
    path.chmod(mode)
    return path


def test_a_file_is_believed_only_if_nobody_else_could_have_written_it(tmp_path: Path) -> None:
    path = write(tmp_path / "state")
    assert read(str(path), BOOT) is not None
    assert read(str(tmp_path / "none"), BOOT) is None
    with pytest.raises(StateError, match="another boot"):
        read(str(path), "another")
    path.chmod(0o620)
    with pytest.raises(StateError, match="others may write to it"):
        read(str(path), BOOT)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(StateError, match="cannot be opened"):
        read(str(tmp_path / "link"), BOOT)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(StateError, match="not a regular file"):
        read(str(tmp_path / "fifo"), BOOT)


def test_an_exit_that_nobody_knows_is_neither_code_nor_signal() -> None:
    record = ProcessRecord(pool="app", generation=1, index=1, state=Exited(exit=Exit(), expected=False))
    state = decode(V1 + encode(record)).processes["app", 1, 1].state
    assert isinstance(state, Exited)
    assert str(state.exit) == "ended"
