"""The real file, the simulated one and a plain bytearray do the same."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from san_target.storage.blocks_file import SparseFile
from san_target.storage.checked import CheckedFile
from san_target.storage.memory import MemoryFile

SIZE = 40_000
ranges = st.tuples(st.integers(0, SIZE - 1), st.integers(1, 20_000)).map(
    lambda pair: (pair[0], min(pair[1], SIZE - pair[0]))
)
operations = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["write", "try_write", "durable"]), ranges, st.integers(1, 255)),
        st.tuples(st.sampled_from(["punch", "read", "try_read", "reserve", "cut"]), ranges, st.just(0)),
    ),
    max_size=15,
)


@settings(max_examples=60, deadline=None)
@given(operations)
def test_all_kinds_of_files_agree(steps) -> None:
    with tempfile.TemporaryDirectory() as directory:
        real = SparseFile.create(Path(directory) / "a.blocks", SIZE)
        simulated = MemoryFile(SIZE)
        files = [CheckedFile(real), CheckedFile(simulated)]
        model = bytearray(SIZE)
        for name, (offset, length), byte in steps:
            data = bytes([byte]) * length
            for file in files:
                if name == "write" or (name == "try_write" and file.try_write(offset, data) < length):
                    file.write(offset, data)
                elif name == "durable":
                    file.write(offset, data, durable=True)
                elif name == "punch":
                    file.punch(offset, length)
                elif name == "reserve":
                    file.reserve(offset, length)
                elif name == "cut":
                    file.resize(offset + 1)
                    file.resize(SIZE)
                elif name == "read":
                    assert file.read(offset, length) == model[offset : offset + length]
                elif name == "try_read":
                    into = bytearray(length)
                    if file.try_read_into(offset, memoryview(into)):
                        assert into == model[offset : offset + length]
            if name in ("write", "try_write", "durable", "punch"):
                model[offset : offset + length] = data
            elif name == "cut":
                model[offset + 1 :] = bytes(SIZE - offset - 1)
        for file in files:
            assert file.read(0, SIZE) == model
            extents = file.extents(0, SIZE // 512 * 512, 512, 100)
            assert [extent.offset_bytes for extent in extents] == [
                sum(before.length_bytes for before in extents[:index]) for index in range(len(extents))
            ]
            assert sum(extent.length_bytes for extent in extents) == SIZE // 512 * 512
            for extent in extents:
                assert extent.is_data or not any(model[extent.offset_bytes : extent.offset_bytes + extent.length_bytes])
        real.close()
