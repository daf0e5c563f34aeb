"""Cases of many connections at once: storms of connections, of logins, of sessions that come and go."""

from random import Random
from typing import Final

from initiator_sim.fuzz import craft
from initiator_sim.fuzz.craft import Ground, junk
from initiator_sim.fuzz.script import Await, Begin, Encoder, Ending, Raw, Script, Stage

CONNECTIONS_MAX: Final = 100


def connection_storm(random: Random, ground: Ground) -> Script:
    """Very many connections that say nothing, or rubbish, and are closed, reset or left."""
    said = random.choice((b"", b"", junk(random, 100)))
    ending = random.choice((Ending.RESET, Ending.RESET, Ending.CLOSE, Ending.LINGER))
    return Script(Begin(Stage.CONNECTED), (Raw(said),), ending, connections=random.choice((10, 30, CONNECTIONS_MAX)))


def login_storm(random: Random, ground: Ground) -> Script:
    """Sessions that begin all at once and end before they were of any use."""
    ending = random.choice((Ending.RESET, Ending.CLOSE, Ending.PROBE))
    return Script(craft.session(random, digests=0.1), (), ending, connections=random.choice((2, 8, 24)))


def reinstatements(random: Random, ground: Ground) -> Script:
    """The same initiator port logs in again and again, without a word to its older sessions."""
    pdu = craft.login(random, craft.names(ground), isid=bytes((0x80, 0xFE, 0, 0, 0, random.randrange(4))))
    steps = (Raw(Encoder().encode(pdu)), Await(0.3), craft.good(random, ground))
    ending = random.choice((Ending.CLOSE, Ending.RESET, Ending.LINGER))
    return Script(Begin(Stage.CONNECTED), steps, ending, connections=random.choice((2, 5, 12)))


def cut_off(random: Random, ground: Ground) -> Script:
    """A reset in the middle of a PDU, in the middle of commands under way."""
    steps = [craft.good(random, ground) for _ in range(random.randrange(6))]
    unfinished = craft.outgoing(random, ground, random.randrange(1, 64))
    whole = Encoder().encode(craft.outgoing_whole(random, ground))
    part = Raw(whole[: random.randrange(1, len(whole))])
    return Script(craft.session(random, digests=0.0), (*steps, unfinished, part), Ending.RESET)
