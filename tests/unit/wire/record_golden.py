"""Records the golden conversations anew: real initiators (libiscsi, QEMU) with a real target (tgt), through a proxy.

    python -m tests.unit.wire.record_golden

Needs Debian's tgt, libiscsi-bin, qemu-utils, qemu-block-extra, and root for tgtd. A recording is evidence of what
others send: run this to add a conversation or a newer tool, not to make a failing test pass.
"""

import asyncio
import asyncio.subprocess
import contextlib
import socket
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.unit.wire.golden_files import GOLDEN, Recorded, write

IQN: Final = "iqn.2026-01.org.example:golden"
CONTROL: Final = "7"
DISK_BYTES: Final = 4 << 20
SECONDS_MAX: Final = 60

NAMES: Final = {
    0x00: "NOP-Out",
    0x01: "SCSI Command",
    0x02: "Task Management Function Request",
    0x03: "Login Request",
    0x04: "Text Request",
    0x05: "SCSI Data-Out",
    0x06: "Logout Request",
    0x10: "SNACK Request",
    0x20: "NOP-In",
    0x21: "SCSI Response",
    0x22: "Task Management Function Response",
    0x23: "Login Response",
    0x24: "Text Response",
    0x25: "SCSI Data-In",
    0x26: "Logout Response",
    0x31: "Ready To Transfer",
    0x32: "Asynchronous Message",
    0x3F: "Reject",
}

CHAP_USER: Final = "golden"
CHAP_SECRET: Final = "secretsecret"


@dataclass(frozen=True)
class Conversation:
    """{portal} and {iqn} in the command are filled in; `settings` are tgt's target parameters."""

    name: str
    shows: str
    command: tuple[str, ...]
    settings: tuple[tuple[str, str], ...] = ()
    chap: bool = False


URL: Final = "iscsi://{portal}/{iqn}/1"
QEMU_DIGEST: Final = (
    'json:{{"driver": "iscsi", "transport": "tcp", "portal": "{portal}", "target": "{iqn}", "lun": 1, '
    '"header-digest": "crc32c"}}'
)
CONVERSATIONS: Final = (
    Conversation("libiscsi_discovery", "a discovery session: SendTargets", ("iscsi-ls", "iscsi://{portal}/")),
    Conversation("libiscsi_inquiry", "login, INQUIRY, logout", ("iscsi-inq", URL)),
    Conversation(
        "libiscsi_inquiry_chap",
        "the same with CHAP",
        ("iscsi-inq", f"iscsi://{CHAP_USER}%{CHAP_SECRET}@{{portal}}/{{iqn}}/1"),
        chap=True,
    ),
    Conversation(
        "libiscsi_task_management",
        "WRITE and ABORT TASK",
        ("iscsi-test-cu", "--dataloss", "--test=iSCSI.iSCSITMF.AbortTaskSimpleAsync", URL),
    ),
    Conversation("qemu_img_info", "opening a disk to look at it", ("qemu-img", "info", URL)),
    Conversation(
        "qemu_img_info_header_digest",
        "the same with header digests",
        ("qemu-img", "info", QEMU_DIGEST),
        (("HeaderDigest", "CRC32C"),),
    ),
    Conversation(
        "qemu_io_write_read",
        "writes with immediate, unsolicited and solicited data, a flush, and a read",
        (
            *("qemu-io", "-f", "raw"),
            *("-c", "write -P 0x5a 0 4k"),
            *("-c", "write -P 0xa5 64k 320k"),
            *("-c", "flush"),
            *("-c", "read -P 0x5a 0 4k"),
            URL,
        ),
        (("InitialR2T", "No"),),
    ),
)


class Tap:
    """One proxied connection: bytes in, whole PDUs in the order of their last byte."""

    def __init__(self) -> None:
        self.pdus: list[Recorded] = []
        self._partial = {True: bytearray(), False: bytearray()}
        self._header_digest = False

    def feed(self, from_initiator: bool, data: bytes) -> None:
        partial = self._partial[from_initiator]
        partial += data
        while len(partial) >= 48:
            data_bytes = int.from_bytes(partial[5:8], "big")
            digest_bytes = 4 if self._header_digest else 0
            length = 48 + 4 * partial[4] + digest_bytes + data_bytes + -data_bytes % 4
            if len(partial) < length:
                return
            raw = bytes(partial[:length])
            del partial[:length]
            opcode = raw[0] & 0x3F
            self.pdus.append(Recorded(from_initiator, NAMES[opcode], raw, self._header_digest))
            # The digest starts after the login response that leads to the full feature phase (T = 1, NSG = 3).
            if opcode == 0x23 and raw[1] & 0x83 == 0x83:
                self._header_digest = any(b"\0HeaderDigest=CRC32C\0" in b"\0" + pdu.raw[48:] for pdu in self._answers())

    def _answers(self) -> list[Recorded]:
        return [pdu for pdu in self.pdus if not pdu.from_initiator]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tgtadm(*arguments: str) -> None:
    subprocess.run(["tgtadm", "-C", CONTROL, "--lld", "iscsi", *arguments], check=True, timeout=SECONDS_MAX)


async def start_target(directory: Path, port: int, conversation: Conversation) -> asyncio.subprocess.Process:
    disk = directory / "disk"
    disk.write_bytes(bytes(DISK_BYTES))
    process = await asyncio.create_subprocess_exec(
        "tgtd", "-f", "-C", CONTROL, "--iscsi", f"portal=127.0.0.1:{port}", stderr=subprocess.DEVNULL
    )
    async with asyncio.timeout(SECONDS_MAX):
        while True:
            with contextlib.suppress(OSError):
                (await asyncio.open_connection("127.0.0.1", port))[1].close()
                break
            await asyncio.sleep(0.1)
    tgtadm("--op", "new", "--mode", "target", "--tid", "1", "--targetname", IQN)
    tgtadm("--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "--backing-store", str(disk))
    tgtadm("--op", "bind", "--mode", "target", "--tid", "1", "--initiator-address", "ALL")
    for name, value in conversation.settings:
        tgtadm("--op", "update", "--mode", "target", "--tid", "1", "--name", name, "--value", value)
    if conversation.chap:
        tgtadm("--op", "new", "--mode", "account", "--user", CHAP_USER, "--password", CHAP_SECRET)
        tgtadm("--op", "bind", "--mode", "account", "--tid", "1", "--user", CHAP_USER)
    return process


async def record(conversation: Conversation) -> list[Recorded]:
    taps: list[Tap] = []
    with tempfile.TemporaryDirectory() as directory:
        target_port = free_port()
        target = await start_target(Path(directory), target_port, conversation)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tap = Tap()
            taps.append(tap)
            target_reader, target_writer = await asyncio.open_connection("127.0.0.1", target_port)
            await asyncio.gather(pump(reader, target_writer, tap, True), pump(target_reader, writer, tap, False))

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        portal = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            client = await asyncio.create_subprocess_exec(
                *(word.format(portal=portal, iqn=IQN) for word in conversation.command)
            )
            await asyncio.wait_for(client.wait(), SECONDS_MAX)
        finally:
            server.close()
            target.kill()  # tgtd stays at SIGTERM while it has targets
            await target.wait()
    return [pdu for tap in taps for pdu in tap.pdus]


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tap: Tap, from_initiator: bool) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            tap.feed(from_initiator, data)
            writer.write(data)
            await writer.drain()
    writer.close()


def versions() -> str:
    query = ["dpkg-query", "-W", "-f", "${Package} ${Version}; ", "libiscsi-bin", "qemu-utils", "tgt"]
    return subprocess.run(query, check=True, capture_output=True, text=True).stdout.rstrip("; ")


def main() -> None:
    for conversation in CONVERSATIONS:
        pdus = asyncio.run(record(conversation))
        comments = [conversation.shows, "command: " + " ".join(conversation.command), versions()]
        write(GOLDEN / f"{conversation.name}.txt", comments, pdus)
        print(conversation.name, len(pdus), "PDUs")


if __name__ == "__main__":
    main()
