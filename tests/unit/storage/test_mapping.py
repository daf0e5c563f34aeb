"""Bytes shown where they lie: only what is cached, never what is cut off, nothing of a file that is out of service."""

import mmap
import os
from pathlib import Path

import pytest

from san_target.storage.blocks_file import SparseFile
from san_target.storage.mapping import VIEW_BYTES_MAX

SIZE = 8 << 20


@pytest.fixture
def file(tmp_path: Path):
    made = SparseFile.create(tmp_path / "a.blocks", SIZE)
    yield made
    made.close()


def shown(file: SparseFile, offset: int, length: int) -> bytes | None:
    view = file.try_view(offset, length)
    return None if view is None else bytes(view)


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 4096), (512, 512), (4000, 9000), (0, 1 << 20), (100, VIEW_BYTES_MAX)]
)
def test_what_is_cached_is_shown(file: SparseFile, offset: int, length: int) -> None:
    data = os.urandom(length)
    file.write(offset, data)
    assert shown(file, offset, length) == data


def test_a_hole_is_not_shown_and_takes_no_space(file: SparseFile) -> None:
    file.write(0, bytes(4096))
    before = file.allocated_bytes()
    assert file.try_view(0, 65536) is None
    assert file.try_view(1 << 20, 65536) is None
    assert file.allocated_bytes() == before


def test_what_was_punched_is_not_shown(file: SparseFile) -> None:
    file.write(0, b"x" * 65536)
    assert shown(file, 0, 65536) == b"x" * 65536
    file.punch(0, 65536)
    assert shown(file, 0, 65536) in (None, bytes(65536))


def test_a_view_is_read_only_and_shows_later_changes(file: SparseFile) -> None:
    file.write(0, b"a" * 4096)
    view = file.try_view(0, 4096)
    assert view is not None
    assert view.readonly
    assert file.try_write(0, b"b" * 4096) == 4096
    assert bytes(view) == b"b" * 4096


def test_too_much_at_once_is_not_shown(file: SparseFile) -> None:
    file.write(0, bytes(SIZE))
    assert file.try_view(0, VIEW_BYTES_MAX + 2 * mmap.PAGESIZE) is None


def test_what_was_added_is_shown(file: SparseFile) -> None:
    file.write(0, b"a" * 4096)
    assert shown(file, 0, 4096) == b"a" * 4096
    file.resize(SIZE * 2)
    file.write(SIZE, b"b" * 4096)
    assert shown(file, SIZE, 4096) == b"b" * 4096
    assert shown(file, 0, 4096) == b"a" * 4096


def test_what_was_cut_off_is_not_shown(file: SparseFile) -> None:
    file.write(0, b"a" * SIZE)
    assert shown(file, SIZE - 4096, 4096) is not None
    file.resize(SIZE // 2)
    assert file.try_view(SIZE - 4096, 4096) is None
    assert file.try_view(SIZE // 2 - 512, 1024) is None
    assert shown(file, SIZE // 2 - 512, 512) == b"a" * 512


def test_a_file_cut_by_somebody_else_is_not_shown_beyond_its_end(file: SparseFile) -> None:
    file.write(0, b"a" * SIZE)
    assert shown(file, 0, 4096) is not None
    os.truncate(file.path, SIZE // 2)
    assert file.try_view(SIZE - 65536, 65536) is None


def test_a_file_out_of_service_shows_nothing(file: SparseFile) -> None:
    file.write(0, bytes(4096))
    assert file.try_view(0, 4096) is not None
    file.fail("a test says so")
    assert file.try_view(0, 4096) is None


def test_closing_does_not_wait_for_views(file: SparseFile) -> None:
    file.write(0, b"a" * 4096)
    view = file.try_view(0, 4096)
    file.close()
    assert view is not None
    assert bytes(view) == b"a" * 4096
    assert file.try_view(0, 4096) is None
