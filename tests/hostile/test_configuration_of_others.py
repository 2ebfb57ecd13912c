"""Who may write to a configuration may run anything as whoever runs it: root is told, and runs nothing of anybody's."""

import os
import struct
from pathlib import Path

import pytest

from fcgimgr.linux.directories import others_who_may_change
from tests.hostile.users import BANK, MALLORY, directory_of, need_root, run_as
from tests.integration.commands import Manager, fcgimgr
from tests.integration.scenes import fails, scene

PROGRAM = '[program.app]\ncommand = "sleep 1000"\n'


@pytest.fixture(autouse=True)
def _root() -> None:
    need_root()


def test_what_anybody_may_have_written_is_not_run(place: Path) -> None:
    config = scene(place, PROGRAM)
    config.chmod(0o666)
    told = f"{config}: {config} may be written to by everybody: root does not run what anybody may have written"
    code, said = fails(config)
    assert (code, told in said) == (2, True), said
    assert told in fcgimgr("-c", config, "check").fails(2)


def test_nor_taken_over_by_an_update(place: Path) -> None:
    config = scene(place, PROGRAM)
    with Manager(config, config.with_suffix(".control")) as manager:
        config.write_text(config.read_text() + '[program.evil]\ncommand = "sleep 1000"\n')
        config.chmod(0o666)
        assert "may be written to by everybody" in manager("update").fails(2)
        assert [pool.name for pool in manager.status().pools] == ["app"]


@pytest.mark.parametrize(
    ("uid", "why"), [(MALLORY, f"belongs to uid {MALLORY}"), (0, f"written to by the group {BANK}")]
)
def test_what_somebody_may_have_written_is_run_with_a_warning(uid: int, why: str, place: Path) -> None:
    config = scene(place, PROGRAM)
    os.chown(config, uid, BANK)
    config.chmod(0o664 if uid == 0 else 0o644)
    with Manager(config, config.with_suffix(".control")) as manager:
        assert f"{why}, who can run anything as root by it" in manager.output()
    done = fcgimgr("-c", config, "check")
    done.succeeds()
    assert f"{why}, who can run anything as root by it" in done.out + done.err


def test_an_included_file_is_looked_at_too(place: Path) -> None:
    (place / "conf.d").mkdir()
    config = scene(place, "")
    config.write_text('include = ["conf.d/*.toml"]\n' + config.read_text() + PROGRAM)
    (place / "conf.d").chmod(0o1777)
    run_as(MALLORY, "sh", "-c", f"""echo '[program.evil]\ncommand = "sleep 1"' > {place}/conf.d/evil.toml""")
    refused = fcgimgr("-c", config, "check").fails(2)
    assert f"evil.toml belongs to uid {MALLORY}: root does not run what anybody may have written" in refused


def test_root_takes_nothing_of_others_that_it_has_not_named(place: Path) -> None:
    own = directory_of(MALLORY, place / "mallory")
    scene(own, PROGRAM)
    for command in ((), ("check",), ("status",), ("stop", "app")):
        assert f"{own} belongs to uid {MALLORY}, who can run" in fcgimgr(*command, cwd=own).fails(2)
    assert fcgimgr("-c", "pool.toml", "check", cwd=own).code == 0


@pytest.mark.parametrize(
    ("spoil", "what", "anybody"),
    [
        (lambda place: None, None, False),
        (lambda place: (place / "a/b").chmod(0o777), "a/b", True),
        (lambda place: (place / "a/b").chmod(0o1777), None, False),
        (lambda place: os.chown(place / "a", MALLORY, 0), "a", False),
        (lambda place: os.chown(place / "a/b/file", MALLORY, 0), "a/b/file", False),
        (lambda place: (place / "a/b").chmod(0o775), None, False),  # root's group
        (lambda place: os.chown(place / "a/b", 0, BANK) or (place / "a/b").chmod(0o775), "a/b", False),
    ],
)
def test_who_else_may_change_a_file(spoil: object, what: str | None, anybody: bool, place: Path) -> None:
    (place / "a/b").mkdir(parents=True)
    (place / "a/b/file").write_text("")
    spoil(place)  # type: ignore[operator]
    other = others_who_may_change(f"{place}/a/b/file")
    assert (other and other.what) == (f"{place}/{what}" if what else None)
    assert other is None or other.anybody == anybody


def test_a_link_on_the_way_counts_with_its_own_directory(place: Path) -> None:
    own = directory_of(MALLORY, place / "mallory")
    (place / "file").write_text("")
    (own / "link").symlink_to("../file")
    other = others_who_may_change(f"{own}/link")
    assert other is not None
    assert other.what == str(own)


def test_an_access_control_list_lets_somebody_write_whom_the_mode_does_not_show(place: Path) -> None:
    config = scene(place, PROGRAM)
    nobody = 0xFFFFFFFF
    entries = [(1, 6, nobody), (2, 6, MALLORY), (4, 4, nobody), (16, 6, nobody), (32, 0, nobody)]
    os.setxattr(
        config, "system.posix_acl_access", struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in entries)
    )
    assert config.stat().st_mode & 0o777 == 0o660
    run_as(MALLORY, "sh", "-c", f"echo >> {config}")
    done = fcgimgr("-c", config, "check")
    done.succeeds()
    why = (
        f"may be written to by the user {MALLORY}, as its access control list says, who can run anything as root by it"
    )
    assert why in done.out + done.err
    entries[3] = (16, 4, nobody)
    os.setxattr(
        config, "system.posix_acl_access", struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in entries)
    )
    os.chown(config, 0, BANK)
    assert "may be written to" not in str(fcgimgr("-c", config, "check"))
