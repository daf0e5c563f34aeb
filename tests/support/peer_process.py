"""One side of a peer link as a process: `python -m tests.support.peer_process owner|caller INCARNATION ADDRESS`.

owner   listens, prints `ready ADDRESS`, keeps blocks in memory
caller  links to ADDRESS, prints `ready`, and keeps 32 writes under way until it is killed
"""

import asyncio
import sys
from typing import NoReturn

import uvloop

from san_target.peer.frames import Answer, Operation, Request
from san_target.peer.peers import Peers
from san_target.peer.service import PeerService
from san_target.server.environment import Environment
from tests.unit.peer.kit import Address, Owner, own, write

KNOWN = {"a": 1, "b": 1}


async def be_owner(incarnation: int, address: str) -> NoReturn:
    owner = Owner()
    service = owner.service = PeerService(Environment(), owner)
    bound = await service.listen(address)
    service.begin(own("b", incarnation), KNOWN.get)
    print("ready", bound, flush=True)
    while True:
        await asyncio.sleep(3600)


async def be_caller(incarnation: int, address: str) -> NoReturn:
    environment = Environment()
    peers = Peers(environment)
    peers.begin(own("a", incarnation))
    peers.follow([Address("b", 1, address)])
    link = peers.link("b")
    assert link is not None
    await link.settled(environment.now_s() + 10)

    def again(answer: Answer) -> None:
        request: Request = write(answer.request_id)
        assert request.operation == Operation.WRITE
        link.try_send(request, again)

    for lba in range(32):
        assert link.try_send(write(lba), again)
    print("ready", flush=True)
    while True:
        await asyncio.sleep(3600)


if __name__ == "__main__":
    role = {"owner": be_owner, "caller": be_caller}[sys.argv[1]]
    uvloop.run(role(int(sys.argv[2]), sys.argv[3]))
