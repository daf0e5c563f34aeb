"""Is the initiator still there? NOPs of the target, and what waits for a sign of life (RFC 7143 11.18, 11.19). Pure."""

from typing import TYPE_CHECKING

from san_target.session.commands import Commands
from san_target.wire import hot
from san_target.wire.opcodes import RESERVED_TAG

if TYPE_CHECKING:
    from san_target.session.host import Event, Host
    from san_target.session.parameters import TargetLimits


class Keepalive(Commands):
    """heard_s: when bytes last arrived, and whom to tell then: `hearers`.

    heard_pdu: a whole PDU arrived since the last `keep_alive`.
    """

    def __init__(self, host: "Host", limits: "TargetLimits") -> None:
        super().__init__(host, limits)
        self.heard_s = host.now()
        self.heard_pdu = False
        self._asking = True
        self._heard_pdu_s = self.heard_s
        self._ping_sent_s: float | None = None
        self._ping_tag = 0
        self.hearers: list[Event] = []

    def ping_answered(self, tag: int) -> None:
        if tag == self._ping_tag:
            self._ping_sent_s = None

    def keep_alive(self, now: float) -> str:
        """Ask where nothing was heard for a while; why the initiator counts as dead, or ""."""
        if self.heard_pdu:
            self.heard_pdu = False
            self._heard_pdu_s = now
        if self._ping_sent_s is not None:
            if now - self._ping_sent_s > self.limits.nop_timeout_s:
                return "the initiator does not answer"
        elif now - self._heard_pdu_s > self.limits.nop_interval_s:
            self._send_ping(now)
        return ""

    def _send_ping(self, now: float) -> None:
        if not self._asking:
            return
        self._ping_tag = next(self._tags)
        self._ping_sent_s = now
        # RFC 7143 11.19.1: a ping of ours takes no StatSN.
        self.send(hot.pack_nop_in(0, 0, RESERVED_TAG, self._ping_tag, self.stat_sn, self.exp_cmd_sn, self.max_cmd_sn))
        self.host.wake()

    async def hear_again(self) -> float:
        asked_s = self.host.now()
        if self._ping_sent_s is None:
            self._send_ping(asked_s)
        while self.heard_s <= asked_s and self._asking:
            event = self.host.event()
            self.hearers.append(event)
            await event.wait()
        return self.heard_s

    def stop_asking(self) -> None:
        """The session ends: no more pings, and whoever waits for a sign of life waits no longer."""
        self._asking = False
        self.tell_hearers()

    def tell_hearers(self) -> None:
        hearers, self.hearers = self.hearers, []
        for event in hearers:
            event.set()
