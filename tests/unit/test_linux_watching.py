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
    with contextlib.closing(SourceTree(str(tmp_path), lambda path: path.endswith(".py"))) as made:
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
    assert tree.changes() == set()


def test_a_directory_that_is_not_there_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LinuxError, match=r"cannot watch .*file"):
        SourceTree(str(tmp_path / "file"), lambda path: True)
