"""The real file: reads, writes, holes, durability and failures."""

import errno
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from san_target.storage.blocks_file import SparseFile, collect_extents
from san_target.storage.interface import FileExtent, StorageFault, StorageFull, StorageReadOnly

SIZE = 1 << 20


@pytest.fixture
def file(tmp_path: Path):
    made = SparseFile.create(tmp_path / "a.blocks", SIZE)
    yield made
    made.close()


def test_a_new_file_is_all_hole_and_takes_no_space(file: SparseFile) -> None:
    assert file.read(0, SIZE) == bytes(SIZE)
    assert file.allocated_bytes() == 0
    assert file.extents(0, SIZE, 512, 10) == [FileExtent(0, SIZE, False)]


def test_a_file_that_is_too_large_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"File too large|Invalid argument"):
        SparseFile.create(tmp_path / "b.blocks", (1 << 63) - 512)
    assert list(tmp_path.iterdir()) == []


def test_what_was_written_is_read_both_ways(file: SparseFile) -> None:
    data = os.urandom(10_000)
    file.write(12_345, data)
    into = bytearray(10_000)
    assert file.try_read_into(12_345, memoryview(into))
    assert into == data
    assert file.read(12_345, 10_000) == data


def test_a_write_at_once_covers_cached_pages(file: SparseFile) -> None:
    file.write(0, bytes(8192))
    data = os.urandom(1024)
    assert file.try_write(512, data) == 1024
    assert file.read(512, 1024) == data


def test_durable_writes_and_flushes_end_well(file: SparseFile) -> None:
    file.write(0, b"x" * 512, durable=True)
    file.write(512, b"y" * 512)
    file.flush()
    assert file.read(0, 1024) == b"x" * 512 + b"y" * 512


def test_descriptor_is_not_inherited_by_children(file: SparseFile) -> None:
    assert not os.get_inheritable(file._descriptor)


@pytest.mark.parametrize(("offset", "length"), [(0, 8192), (100, 9000), (4096, 1), (5000, 200), (4095, 2), (0, SIZE)])
def test_a_punched_range_reads_as_zeros_and_its_neighbours_stay(file: SparseFile, offset: int, length: int) -> None:
    file.write(0, b"\xff" * 65536)
    file.punch(offset, length)
    end = min(offset + length, 65536)
    expected = b"\xff" * offset + bytes(end - offset) + b"\xff" * (65536 - end)
    assert file.read(0, 65536) == expected


def test_punching_gives_space_back(file: SparseFile) -> None:
    file.write(0, os.urandom(SIZE))
    file.flush()
    before = file.allocated_bytes()
    file.punch(0, SIZE // 2)
    assert file.allocated_bytes() <= before // 2 + 4096


def test_punching_writes_zeros_where_the_file_system_cannot(file: SparseFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_arguments: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    file.write(0, b"\xff" * SIZE)
    monkeypatch.setattr("san_target.storage.blocks_file._allocate", cannot)
    file.punch(700, SIZE - 800)
    assert file.read(0, SIZE) == b"\xff" * 700 + bytes(SIZE - 800) + b"\xff" * 100


def test_extents_follow_the_data(file: SparseFile) -> None:
    file.write(65536, bytes(4096))
    file.write(131072, b"x")
    assert file.extents(0, SIZE, 4096, 10) == [
        FileExtent(0, 65536, False),
        FileExtent(65536, 4096, True),
        FileExtent(69632, 131072 - 69632, False),
        FileExtent(131072, 4096, True),
        FileExtent(135168, SIZE - 135168, False),
    ]
    assert file.extents(66048, 512, 512, 10) == [FileExtent(66048, 512, True)]
    assert file.extents(0, SIZE, 4096, 2) == [FileExtent(0, 65536, False), FileExtent(65536, 4096, True)]


def test_extents_widen_data_to_the_granularity() -> None:
    found = collect_extents(iter([(1024, 2048), (5120, 6144), (12288, 13312)]), 0, 16384, 4096, 9)
    assert found == [FileExtent(0, 8192, True), FileExtent(8192, 4096, False), FileExtent(12288, 4096, True)]


def test_a_grown_file_has_a_hole_and_a_cut_one_forgets(file: SparseFile) -> None:
    file.write(0, b"\xff" * SIZE)
    file.resize(4096)
    file.resize(SIZE)
    assert file.size_bytes == SIZE
    assert file.read(0, SIZE) == b"\xff" * 4096 + bytes(SIZE - 4096)


def test_a_read_behind_the_end_is_a_fault_and_not_a_hang(file: SparseFile) -> None:
    os.truncate(file.path, 4096)
    assert not file.try_read_into(0, memoryview(bytearray(8192)))
    with pytest.raises(StorageFault) as caught:
        file.read(0, 8192)
    assert caught.value.offset_bytes == 4096


def test_a_failed_flush_fails_the_file_until_it_is_opened_again(
    file: SparseFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write(0, b"x" * 4096)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", _raiser(errno.EIO))
        with pytest.raises(StorageFault, match="restart this member"):
            file.flush()
    assert file.failed
    into = memoryview(bytearray(512))
    for call in (
        lambda: file.flush(),
        lambda: file.read(0, 512),
        lambda: file.write(0, b"y" * 512),
        lambda: file.punch(0, 512),
        lambda: file.extents(0, 512, 512, 1),
        lambda: file.prefetch(0, 512),
        lambda: file.resize(512),
    ):
        with pytest.raises(StorageFault):
            call()
    assert not file.try_read_into(0, into)
    assert file.try_write(0, b"y" * 512) == 0
    again = SparseFile(file.path)
    assert again.read(0, 1) == b"x"
    again.close()


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EIO, StorageFault),
        (errno.ENOSPC, StorageFull),
        (errno.EDQUOT, StorageFull),
        (errno.EROFS, StorageReadOnly),
    ],
)
def test_errors_of_a_write_have_their_meaning(
    file: SparseFile, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    monkeypatch.setattr(os, "pwritev", _raiser(number))
    assert file.try_write(0, b"x" * 512) == 0
    with pytest.raises(kind):
        file.write(0, b"x" * 512)
    assert not file.failed


def test_a_durable_write_that_fails_in_its_sync_half_fails_the_file(
    file: SparseFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwritev

    def sync_fails(descriptor: int, buffers: list[bytes], offset: int, flags: int = 0) -> int:
        if flags & os.RWF_DSYNC:
            raise OSError(errno.ENOSPC, "no space")
        return real(descriptor, buffers, offset, flags)

    monkeypatch.setattr(os, "pwritev", sync_fails)
    with pytest.raises(StorageFull):
        file.write(0, b"x" * 512, durable=True)
    assert file.failed


def test_a_durable_write_that_finds_the_disk_full_harms_nothing(
    file: SparseFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwritev", _raiser(errno.ENOSPC))
    with pytest.raises(StorageFull):
        file.write(0, b"x" * 512, durable=True)
    assert not file.failed


def test_short_writes_and_reads_are_continued(file: SparseFile, monkeypatch: pytest.MonkeyPatch) -> None:
    real_write, real_read = os.pwritev, os.preadv
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, offset, flags=0: real_write(fd, [buffers[0][:700]], offset))
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset, flags=0: real_read(fd, [buffers[0][:900]], offset))
    data = os.urandom(10_000)
    file.write(100, data)
    assert file.read(100, 10_000) == data
    assert file.try_write(0, memoryview(data)) == 700
    assert not file.try_read_into(0, memoryview(bytearray(4096)))


def test_would_block_is_told_without_an_exception(file: SparseFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwritev", _raiser(errno.EAGAIN))
    monkeypatch.setattr(os, "preadv", _raiser(errno.EAGAIN))
    assert file.try_write(0, b"x" * 512) == 0
    assert not file.try_read_into(0, memoryview(bytearray(512)))


def test_a_file_system_without_nowait_is_used_plainly_and_remembered(
    file: SparseFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    file._hot_flags = os.RWF_NOWAIT
    real_write, real_read = os.pwritev, os.preadv
    flags_seen: list[int] = []

    def write(fd: int, buffers: list[bytes], offset: int, flags: int = 0) -> int:
        flags_seen.append(flags)
        if flags & os.RWF_NOWAIT:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        return real_write(fd, buffers, offset, flags)

    def read(fd: int, buffers: list[bytearray], offset: int, flags: int = 0) -> int:
        flags_seen.append(flags)
        if flags & os.RWF_NOWAIT:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        return real_read(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "pwritev", write)
    monkeypatch.setattr(os, "preadv", read)
    into = bytearray(4096)
    assert file.try_read_into(0, memoryview(into))
    assert file.try_write(0, b"x" * 4096) == 4096
    assert file.try_write(512, b"y" * 512) == 512
    assert file.try_read_into(0, memoryview(into))
    assert flags_seen == [os.RWF_NOWAIT, 0, os.RWF_NOWAIT, 0, 0, 0]
    assert into == b"x" * 512 + b"y" * 512 + b"x" * 3072


def test_a_file_system_in_memory_is_used_plainly_from_the_start() -> None:
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("there is no /dev/shm here")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        file = SparseFile.create(Path(directory) / "a.blocks", SIZE)
        assert file._hot_flags == 0
        assert file.try_write(700, b"x" * 512) == 512
        into = bytearray(512)
        assert file.try_read_into(700, memoryview(into))
        assert into == b"x" * 512
        assert not file._plain_reads
        assert not file._plain_writes
        file.close()


def test_after_a_slow_plain_call_the_threads_get_the_next_ones(
    file: SparseFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0, 30_000_000, 140_000_000, 160_000_000, 160_000_001])
    file._plain_reads = file._plain_writes = True
    monkeypatch.setattr("san_target.storage.blocks_file.monotonic_ns", lambda: next(clock))
    assert file.try_write(0, b"x" * 512) == 512  # took 30 ms
    assert file.try_write(0, b"x" * 512) == 0  # 110 ms later
    assert file.try_write(0, b"x" * 512) == 512  # 130 ms later


def test_a_part_of_an_uncached_page_is_not_written_at_once(file: SparseFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file._plain_writes = True
    monkeypatch.setattr(os, "preadv", _raiser(errno.EAGAIN))
    assert file.try_write(0, b"x" * 512) == 0
    assert file.try_write(4096, b"x" * 512) == 0
    assert file.try_write(512, b"x" * 3584) == 0
    assert file.try_write(0, b"x" * 8192) == 8192


def _raiser(number: int):
    def raise_it(*_arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    return raise_it


def remove(path: Path) -> None:
    path.unlink()


def move(path: Path) -> None:
    path.rename(path.with_suffix(".away"))


def replace(path: Path) -> None:
    copy = path.with_suffix(".copy")
    copy.write_bytes(path.read_bytes())
    copy.rename(path)


@pytest.mark.parametrize("do", [remove, move, replace])
def test_a_file_that_is_no_longer_in_its_place_can_be_saved(
    file: SparseFile, tmp_path: Path, do: Callable[[Path], None]
) -> None:
    assert file.damage() == ""
    do(file.path)
    file.write(0, b"later" * 100)
    assert "removed or moved" in file.damage()
    command = file.damage().partition("save it: ")[2].replace("COPY", str(tmp_path / "saved"))
    subprocess.run(command.split(), check=True)
    saved = (tmp_path / "saved").read_bytes()
    assert len(saved) == SIZE
    assert saved.startswith(b"later" * 100)


def test_a_file_that_was_cut_says_so(file: SparseFile) -> None:
    os.truncate(file.path, 4096)
    assert "was cut to 4096 bytes" in file.damage()


def test_a_file_that_was_moved_back_is_sound(file: SparseFile) -> None:
    move(file.path)
    assert file.damage()
    file.path.with_suffix(".away").rename(file.path)
    assert file.damage() == ""
