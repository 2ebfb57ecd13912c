"""Which source files were changed."""

import contextlib
import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.watching import SourceTree


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[SourceTree]:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "views.py").write_text("")
    for skipped in (".git", "__pycache__", "venv"):
        (tmp_path / skipped).mkdir()
    (tmp_path / "venv" / "pyvenv.cfg").write_text("")
    with contextlib.closing(SourceTree([str(tmp_path)], lambda path: path.endswith(".py"))) as made:
        yield made


def changed(tree: SourceTree, root: Path) -> set[str]:
    assert select.select([tree], [], [], 10)[0]
    return {os.path.relpath(path, root) for path in tree.changes()}


def test_a_file_that_is_written_has_changed(tree: SourceTree, tmp_path: Path) -> None:
    assert tree.changes() == set()
    (tmp_path / "shop" / "views.py").write_text("new")
    assert changed(tree, tmp_path) == {"shop/views.py"}
    assert tree.changes() == set()


def test_a_file_that_comes_or_goes_by_a_rename_has_changed(tree: SourceTree, tmp_path: Path) -> None:
    (tmp_path / "views.tmp").write_text("new")
    os.replace(tmp_path / "views.tmp", tmp_path / "shop" / "views.py")
    assert changed(tree, tmp_path) == {"shop/views.py"}
    (tmp_path / "shop" / "views.py").unlink()
    assert changed(tree, tmp_path) == {"shop/views.py"}


def test_a_new_directory_is_watched_with_what_is_in_it(tree: SourceTree, tmp_path: Path) -> None:
    (tmp_path / "new" / "deep").mkdir(parents=True)
    (tmp_path / "new" / "deep" / "one.py").write_text("")
    assert changed(tree, tmp_path) == {"new/deep/one.py"}
    (tmp_path / "new" / "deep" / "two.py").write_text("")
    assert changed(tree, tmp_path) == {"new/deep/two.py"}


def test_what_is_no_source_of_the_application_is_not_watched(tree: SourceTree, tmp_path: Path) -> None:
    for name in (".git", "__pycache__", "venv"):
        (tmp_path / name / "x.py").write_text("")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / ".cache").symlink_to(tmp_path / "elsewhere")
    assert tree.changes() == set()


def test_a_file_that_is_saved_as_it_was_or_touched_has_not_changed(tree: SourceTree, tmp_path: Path) -> None:
    views = tmp_path / "shop" / "views.py"
    views.write_text("")
    os.utime(views, (1, 1))
    (tmp_path / "shop" / "views.tmp").write_text("")
    os.replace(tmp_path / "shop" / "views.tmp", views)
    assert select.select([tree], [], [], 10)[0]
    assert tree.changes() == set()


def test_a_file_of_the_same_size_and_time_has_changed_all_the_same(tree: SourceTree, tmp_path: Path) -> None:
    views = tmp_path / "shop" / "views.py"
    for text in ("one", "two"):
        views.write_text(text)
        os.utime(views, (1, 1))
        assert changed(tree, tmp_path) == {"shop/views.py"}


def test_a_directory_that_is_moved_away_is_gone_with_its_files(
    tree: SourceTree, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    away = tmp_path_factory.mktemp("away")
    os.rename(tmp_path / "shop", away / "shop")
    assert changed(tree, tmp_path) == {"shop/views.py"}
    (away / "shop" / "views.py").write_text("new")
    assert tree.changes() == set()
    os.rename(away / "shop", tmp_path / "store")
    assert changed(tree, tmp_path) == {"store/views.py"}
    (tmp_path / "store" / "views.py").write_text("newer")
    assert changed(tree, tmp_path) == {"store/views.py"}


def test_a_directory_that_a_link_leads_to_is_watched_where_it_is(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    early, late = tmp_path_factory.mktemp("early"), tmp_path_factory.mktemp("late")
    (early / "back").symlink_to(tmp_path)  # round and round
    (early / "self").symlink_to(".")
    (tmp_path / "early").symlink_to(early)
    (tmp_path / "above").symlink_to("..")
    with contextlib.closing(SourceTree([str(tmp_path)], lambda path: path.endswith(".py"))) as tree:
        (early / "one.py").write_text("new")
        assert changed(tree, early) == {"one.py"}
        (late / "two.py").write_text("")
        (tmp_path / "late").symlink_to(late)
        assert changed(tree, late) == {"two.py"}
        (late / "two.py").write_text("new")
        assert changed(tree, late) == {"two.py"}


def test_a_new_link_to_a_file_is_a_new_file(tree: SourceTree, tmp_path: Path) -> None:
    (tmp_path / "texts").write_text("x = 1")
    (tmp_path / "soft.py").symlink_to("texts")
    os.link(tmp_path / "texts", tmp_path / "hard.py")
    assert changed(tree, tmp_path) == {"soft.py", "hard.py"}


def test_when_events_were_lost_everything_is_looked_at(tree: SourceTree, tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    (shop / "old.py").write_text("")
    assert changed(tree, tmp_path) == {"shop/old.py"}
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for _ in range(limit // 2 + 1):  # two events that differ: equal ones, one after the other, are one
        os.rename(shop / "old.py", shop / "new.py")
        os.rename(shop / "new.py", shop / "old.py")
    (shop / "views.py").write_text("lost")
    (shop / "deep").mkdir()
    (shop / "deep" / "lost.py").write_text("")
    assert changed(tree, tmp_path) == {"shop/views.py", "shop/deep/lost.py"}
    (shop / "deep" / "lost.py").write_text("heard")
    assert changed(tree, tmp_path) == {"shop/deep/lost.py"}


def test_a_directory_that_is_not_there_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LinuxError, match=r"cannot watch .*file"):
        SourceTree([str(tmp_path / "file")], lambda path: True)
