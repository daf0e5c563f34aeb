"""CRC32C on the wire: the examples of RFC 7143 appendix A.4."""

import pytest

from san_target.wire.digest import digest

READ_COMMAND = bytes.fromhex(
    "01c00000 00000000 00000000 00000000 14000000 00000400 00000014 00000018 28000000 00000000 02000000 00000000"
)


@pytest.mark.parametrize(
    ("data", "wire"),
    [
        (bytes(32), "aa36918a"),
        (b"\xff" * 32, "43aba862"),
        (bytes(range(32)), "4e79dd46"),
        (bytes(reversed(range(32))), "5cdb3f11"),
        (READ_COMMAND, "563a96d9"),
        (b"", "00000000"),
    ],
)
def test_examples(data: bytes, wire: str) -> None:
    assert digest(data).hex() == wire


def test_buffers_count_as_one() -> None:
    data = bytes(range(100))
    assert digest(data[:48], b"", memoryview(data)[48:52], bytearray(data[52:])) == digest(data)
