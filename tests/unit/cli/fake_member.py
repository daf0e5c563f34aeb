"""A stand-in for `san-target serve` in tests of the demo: the fake member on a real admin port, and `ready`.

SAN_TARGET_FAKE chooses how it fares: "" serves, "refuse" fails at once, "die" ends after it was ready.
"""

import asyncio
import os
import signal
import sys

from san_target.admin.app import create_app
from san_target.admin.http_server import AdminServer, listen
from san_target.admin.service import VolumeSpec
from san_target.cli.values import parse_address
from tests.unit.admin.fake_service import FakeService


async def serve(name: str, admin: str, fate: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    service = FakeService(admin=admin)
    if name != "m1":  # the first one is asked for volumes; the others have them as members of its group
        await service.create_volume(VolumeSpec(name="demo", size_bytes=1 << 30))
    server = AdminServer(create_app(service, None), listen(*parse_address(admin)))
    await server.start()
    print("level=info event=serving", file=sys.stderr, flush=True)
    print(f"ready {name}", flush=True)
    if fate == "die":
        while not await service.volumes():
            await asyncio.sleep(0.01)
        print("san-target: the pool is gone", file=sys.stderr, flush=True)
        os._exit(3)
    await stop.wait()
    await server.stop()
    print("ended in order", file=sys.stderr, flush=True)


if __name__ == "__main__":
    fate = os.environ.get("SAN_TARGET_FAKE", "")
    if fate == "refuse":
        sys.exit("san-target: the store is damaged")
    name, admin = (sys.argv[sys.argv.index(option) + 1] for option in ("--name", "--admin"))
    asyncio.run(serve(name, admin, fate))
