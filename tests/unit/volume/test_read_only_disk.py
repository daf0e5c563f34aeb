"""The file system under a volume becomes read-only: what is still right is served, what may be lost is not."""

import pytest

from san_target.storage.faulty import Fault, FaultyFile, Rule, Script
from san_target.storage.memory import MemoryFile
from san_target.volume.device import MediumError, WriteProtected
from san_target.volume.volume import Volume
from tests.unit.volume.kit import make_volume, run

OLD, NEW = b"\1" * 512, b"\2" * 512


def on_a_disk_that_becomes_read_only(script: Script) -> Volume:
    return make_volume(FaultyFile(MemoryFile(1024 * 512), script))


def become_read_only(script: Script) -> None:
    for operation in ("write", "punch"):
        script.rules.append(Rule(operation, Fault.READ_ONLY, times=-1))
    script.rules.append(Rule("flush", Fault.ERROR, times=-1))


def test_reads_and_flushes_go_on_when_everything_was_flushed() -> None:
    async def work() -> None:
        script = Script()
        volume = on_a_disk_that_becomes_read_only(script)
        await volume.write(0, OLD)
        await volume.flush(0, 1024)
        become_read_only(script)
        for durable in (False, True):
            with pytest.raises(WriteProtected):
                await volume.write(0, NEW, durable)
        with pytest.raises(WriteProtected):
            await volume.unmap([(0, 1)])
        await volume.flush(0, 1024)  # nothing that failed is owed to anybody
        assert bytes(await volume.read(0, 1)) == OLD

    run(work())


def test_nothing_is_read_when_something_acknowledged_could_not_be_flushed() -> None:
    """The kernel drops what it cannot write: a later read would show what was there before."""

    async def work() -> None:
        script = Script()
        volume = on_a_disk_that_becomes_read_only(script)
        await volume.write(0, OLD)
        await volume.flush(0, 1024)
        assert volume.try_write(0, 1, NEW)
        become_read_only(script)
        with pytest.raises(WriteProtected):
            await volume.write(8, NEW)
        assert not volume.try_read_into(0, 1, memoryview(bytearray(512)))
        with pytest.raises(MediumError):
            await volume.read(0, 1)
        with pytest.raises(MediumError):
            await volume.flush(0, 1024)

    run(work())


@pytest.mark.parametrize("at_once", [True, False])
def test_the_reason_is_told_until_a_write_succeeds(at_once: bool) -> None:
    async def work() -> None:
        script = Script()
        volume = on_a_disk_that_becomes_read_only(script)
        await volume.flush(0, 1024)
        assert volume.refusal == ""
        become_read_only(script)
        with pytest.raises(WriteProtected):
            await volume.write(0, NEW)
        await volume.read(0, 1)
        assert "read-only" in volume.refusal
        script.rules.clear()
        if at_once:
            assert volume.try_write(0, 1, NEW)
        else:
            await volume.write(0, NEW, durable=True)
        assert volume.refusal == ""

    run(work())
