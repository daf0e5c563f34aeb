"""Stopping the portals waits for every command that can still reach the medium."""

import asyncio

from san_target.scsi.identity import Identity
from san_target.scsi.logical_unit import LogicalUnit
from san_target.scsi.services import Services
from san_target.server.portal import PortalServer
from san_target.session.parameters import TargetLimits
from tests.support.raw_initiator import RawInitiator, write16
from tests.support.session_driver import IQN, OneTarget
from tests.unit.session.conftest import PausedDevice


def test_a_command_of_a_connection_that_is_gone_is_waited_for() -> None:
    async def save(record: object, epoch: int) -> int:
        del record
        return epoch + 1

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        device = PausedDevice()
        device.at_once = False
        services = Services(
            spawn=loop.create_task,
            save_reservations=save,
            unit_of=lambda designator: None,
            now=loop.time,
            sleep=asyncio.sleep,
        )
        unit = LogicalUnit(device, Identity("0" * 32, IQN), services=services)
        server = PortalServer(OneTarget(unit), TargetLimits())
        host, port = await server.start("127.0.0.1", 0)

        def write_and_go_away() -> None:
            initiator = RawInitiator(f"{host}:{port}")
            assert initiator.login(IQN) == 0
            initiator.ready()
            initiator.submit(write16(3, 1), b"w" * 512)
            initiator.close()

        device.pause()
        await asyncio.to_thread(write_and_go_away)
        while server.connections:
            await asyncio.sleep(0.01)
        stopping = loop.create_task(server.stop())
        await asyncio.sleep(0.05)
        assert not stopping.done()
        device.resume()
        await stopping
        assert device.written[3] == b"w" * 512

    asyncio.run(asyncio.wait_for(scenario(), 30))
