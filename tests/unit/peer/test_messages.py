"""Control messages: there and back, and what is none."""

import typing

import msgspec
import pytest

from san_target.peer import messages
from san_target.peer.messages import AnyMessage, Done, FenceIngress, Message, MessageError


def test_every_kind_is_in_the_union() -> None:
    assert set(typing.get_args(AnyMessage)) == set(Message.__subclasses__())


@pytest.mark.parametrize("message", [Done(), FenceIngress("a", 5)])
def test_there_and_back(message: Message) -> None:
    assert messages.decode(memoryview(messages.encode(message))) == message


def test_a_field_that_this_version_does_not_know_is_ignored() -> None:
    newer = msgspec.msgpack.encode({"type": "FenceIngress", "member": "a", "incarnation": 1, "since": 5})
    assert messages.decode(newer) == FenceIngress("a", 1)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x81",
        msgspec.msgpack.encode({"type": "Unheard"}),
        msgspec.msgpack.encode({"type": "FenceIngress", "member": "a"}),
        msgspec.msgpack.encode({"type": "FenceIngress", "member": 1, "incarnation": 1}),
        msgspec.msgpack.encode([1, 2]),
        b"\x81\xa4type\xa4\xff\xff\xff\xff",
    ],
)
def test_what_is_no_message(payload: bytes) -> None:
    with pytest.raises(MessageError):
        messages.decode(payload)
