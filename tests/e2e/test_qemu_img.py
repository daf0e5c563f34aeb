"""QEMU's own initiator: images go in and come out unchanged, patterns verify, zeros and discards are seen."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.target import Chap, Options, Target, Volume
from tests.support.tools import run

pytestmark = [pytest.mark.tool("qemu-img", "qemu-io", "qemu-iscsi"), pytest.mark.slow]

MIB = 1 << 20
# The size of the image of the round trip; 2048 MiB unless a quick look is wanted.
IMAGE_MIB = int(os.environ.get("SAN_TARGET_IMAGE_MIB", "2048"))


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture
def random_image(tmp_path: Path) -> Iterator[Path]:
    """An image of IMAGE_MIB random bytes; it is large, so it goes with the test."""
    path = tmp_path / "random.img"
    content = random.Random(7)
    with path.open("wb") as file:
        for _ in range(IMAGE_MIB):
            file.write(content.randbytes(MIB))
    yield path
    path.unlink()


def patterns(volume: Volume, *commands: str) -> str:
    """Run qemu-io commands on the volume; a pattern that does not verify is an error."""
    words = [word for command in commands for word in ("-c", command)]
    output = run(["qemu-io", "-f", "raw", *words, volume.url], timeout_s=100)
    assert "Pattern verification failed" not in output, output
    return output


@pytest.mark.timeout(600)
@pytest.mark.parametrize("block_size", [512, 4096])
def test_a_random_image_goes_in_and_comes_out_unchanged(
    target: Target, random_image: Path, tmp_path: Path, block_size: int
) -> None:
    volume = target.create_volume("image", IMAGE_MIB * MIB, Options(block_size=block_size))
    run(["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", random_image, volume.url], timeout_s=250)
    back = tmp_path / "back.img"
    try:
        run(["qemu-img", "convert", "-f", "raw", "-O", "raw", volume.url, back], timeout_s=250)
        assert back.stat().st_size == IMAGE_MIB * MIB
        assert sha256(back) == sha256(random_image)
    finally:
        back.unlink(missing_ok=True)


def test_info_tells_the_size(target: Target) -> None:
    volume = target.create_volume("info", 48 * MIB)
    shown = json.loads(run(["qemu-img", "info", "--output=json", volume.url]))
    assert shown["virtual-size"] == 48 * MIB


def test_a_qcow2_image_on_the_volume_is_sound(target: Target, tmp_path: Path) -> None:
    """A format with metadata of its own: created, written and checked on the volume."""
    source = tmp_path / "source.img"
    source.write_bytes(random.Random(8).randbytes(24 * MIB))
    volume = target.create_volume("qcow2", 64 * MIB)
    run(["qemu-img", "create", "-q", "-f", "qcow2", volume.url, "48M"])
    run(["qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", source, volume.url])
    assert "No errors were found" in run(["qemu-img", "check", "-f", "qcow2", volume.url])
    back = tmp_path / "back.img"
    run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", volume.url, back])
    assert back.read_bytes()[: 24 * MIB] == source.read_bytes()


def test_patterns_at_odd_places_and_sizes_verify(target: Target) -> None:
    volume = target.create_volume("patterns", 64 * MIB)
    writes = [(0x11, 0, 512), (0x22, 512, 65536), (0x33, 1 * MIB - 512, 1024), (0x44, 8 * MIB, 7 * MIB)]
    writes.append((0x55, 64 * MIB - 4096, 4096))
    patterns(volume, *(f"write -P {value:#x} {offset} {length}" for value, offset, length in writes), "flush")
    patterns(volume, *(f"read -P {value:#x} {offset} {length}" for value, offset, length in writes))
    patterns(volume, f"read -P 0 {2 * MIB} {4 * MIB}")


def test_many_writes_in_flight_verify(target: Target) -> None:
    volume = target.create_volume("in-flight", 64 * MIB)
    writes = [f"aio_write -q -P {number} {number * 320 * 1024} 320k" for number in range(1, 100)]
    patterns(volume, *writes, "aio_flush")
    patterns(volume, *(f"read -P {number} {number * 320 * 1024} 320k" for number in range(1, 100)))


def test_zeroes_and_discards_free_space_and_read_as_zeros(target: Target) -> None:
    volume = target.create_volume("zeroes", 64 * MIB)
    patterns(volume, "write -P 0xaa 0 32M", "flush")
    full = target.allocated_bytes(volume)
    assert full >= 32 * MIB
    patterns(volume, "write -z 4M 8M", "write -z -u 16M 8M", "discard 24M 4M", "flush")
    assert target.allocated_bytes(volume) <= full - 11 * MIB
    patterns(volume, "read -P 0 4M 8M", "read -P 0 16M 12M", "read -P 0xaa 0 4M", "read -P 0xaa 28M 4M")


def test_a_guarded_volume_wants_the_secret(target: Target) -> None:
    alice = Chap("alice", "open-sesame-1001")
    volume = target.create_volume("guarded", 16 * MIB, Options(chap=alice))
    patterns(volume, "write -P 0x77 0 1M", "read -P 0x77 0 1M")
    with pytest.raises(AssertionError, match="status 1"):
        run(["qemu-img", "info", volume.url.replace(alice.secret, "open-sesame-9999")])


def test_a_read_only_volume_is_read_and_not_written(target: Target) -> None:
    volume = target.create_volume("golden", 16 * MIB, Options(read_only=True))
    output = run(["qemu-io", "-r", "-f", "raw", "-c", "read -P 0 0 1M", volume.url])
    assert "Pattern verification failed" not in output
    with pytest.raises(AssertionError, match="status 1"):
        run(["qemu-io", "-f", "raw", "-c", "write -P 1 0 1M", volume.url])
