"""Whole files or none."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fibecfed.core.files import write_all, write_atomically, write_new


def test_the_new_content_replaces_the_old_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    for data in (b"first", b"", b"x" * 100_000, b"last"):
        write_atomically(path, data)
        assert path.read_bytes() == data
        assert list(tmp_path.iterdir()) == [path]


def test_a_file_has_the_rights_that_the_users_mask_gives(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", b"1")
    finally:
        os.umask(mask)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("call", ["pwrite", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_written_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "summary.json"
    write_atomically(path, b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_system_call_that_takes_a_part_is_called_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: whole(file, bytes(data)[:3], offset))
    file = os.open(tmp_path / "a", os.O_WRONLY | os.O_CREAT)
    write_all(file, b"0123456789", 0)
    write_all(file, b"abcdefg", 2)
    os.close(file)
    assert (tmp_path / "a").read_bytes() == b"01abcdefg9"


def test_data_is_flushed_before_it_gets_its_name_and_the_folder_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (calls.append("fsync"), fsync(file))[1])
    monkeypatch.setattr(os, "replace", lambda old, new: (calls.append("replace"), replace(old, new))[1])
    write_atomically(tmp_path / "a", b"1")
    assert calls == ["fsync", "replace", "fsync"]


def test_a_new_file_is_whole_and_never_takes_the_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_new(path, b"mine")
    assert path.read_bytes() == b"mine"
    for there in (path, tmp_path / "link"):
        if there != path:
            there.symlink_to("nowhere")
        with pytest.raises(FileExistsError):
            write_new(there, b"yours")
    assert path.read_bytes() == b"mine" and sorted(one.name for one in tmp_path.iterdir()) == ["a", "link"]


def test_a_new_file_on_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    write_new(tmp_path / "a", b"mine")
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "a", b"yours")
    assert (tmp_path / "a").read_bytes() == b"mine" and len(list(tmp_path.iterdir())) == 1
