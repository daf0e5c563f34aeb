"""A Linux machine with the kernel's own iSCSI initiator, run by QEMU and driven over a control port.

`Guest.boot()` takes 5 to 10 s under software emulation. On the guest's command port one command runs at a time; what
must run beside it is started with `spawn`. By hand:

    python -m tests.e2e.guest.machine 'iscsiadm -m discovery -t st -p 127.0.0.1:3260' 'lsscsi'
"""

from __future__ import annotations

import base64
import os
import re
import select
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.support.tools import find

BUILD = Path(__file__).parent / "build.sh"
BOOT_TIMEOUT_S = 90
BUILD_TIMEOUT_S = 900
MARK = b"\x1e"  # begins the line that ends an answer (see init.sh)
NO_DEBIAN_SOURCES = 3


class NoImages(Exception):
    """The images of the guest cannot be made on this machine."""


class GuestDied(Exception):
    """The guest ended, or no longer answers."""


@dataclass(frozen=True)
class Result:
    """How a command in the guest ended: exit status (124 = out of time) and all of its output."""

    status: int
    output: str


@dataclass(frozen=True)
class Background:
    """A command left running in the guest; it ends when its `status_file` there holds the exit status."""

    guest: Guest
    name: str

    @property
    def log(self) -> str:
        return f"/run/{self.name}.log"

    @property
    def status_file(self) -> str:
        return f"/run/{self.name}.status"

    def output(self) -> str:
        return self.guest.check(f"cat {self.log}")

    def wait(self, timeout_s: float) -> Result:
        """The result, when the command has ended. TimeoutError with its output so far otherwise."""
        wanted = f"while ! [ -s {self.status_file} ]; do sleep 0.1; done; cat {self.status_file}"
        waited = self.guest.run(wanted, timeout_s)
        if waited.status != 0:
            raise TimeoutError(f"{self.name} still runs after {timeout_s} s:\n{self.output()}")
        return Result(int(waited.output), self.output())


def images() -> Path:
    """The directory of the guest's images, built first if they are missing or old. NoImages says why not."""
    done = subprocess.run([BUILD], capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False)
    if done.returncode == NO_DEBIAN_SOURCES:
        raise NoImages(done.stderr.strip())
    if done.returncode != 0:
        raise RuntimeError(f"{BUILD.name} failed:\n{done.stdout}{done.stderr}")
    return Path(done.stdout.splitlines()[-1])


def accelerator() -> str:
    """`kvm` where it is of use. kvm_pvm offers /dev/kvm, but emulates a stock kernel's instructions one by one."""
    usable = os.access("/dev/kvm", os.R_OK | os.W_OK) and not Path("/sys/module/kvm_pvm").exists()
    return "kvm" if usable else "tcg"


class Guest:
    """One machine. `directory` holds its console and control socket; `settings` are those of init.sh.

    `kernel`: cloud or amd64, as build.sh knows them; default $GUEST_KERNEL, else cloud. `forward`: host port -> guest
    port, TCP, on the host's loopback interface.
    """

    def __init__(
        self,
        image_directory: Path,
        directory: Path,
        settings: Mapping[str, str] | None = None,
        *,
        tap: str | None = None,
        kernel: str | None = None,
        memory_mib: int = 512,
        forward: Mapping[int, int] | None = None,
    ) -> None:
        self._images = image_directory
        self._directory = directory
        self._settings = {"GUEST_LOOPBACK": "1", **(settings or {})}
        self._tap = tap
        self._kernel = kernel or os.environ.get("GUEST_KERNEL", "cloud")
        self._memory_mib = memory_mib
        self._forward = dict(forward or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._received = b""
        self._commands = 0

    def __enter__(self) -> Guest:
        self.boot()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def console(self) -> str:
        """The serial console and QEMU's own messages, up to now."""
        parts = [self._directory / "console", self._directory / "qemu.log"]
        return "".join(part.read_text(errors="replace") for part in parts if part.exists())

    def diagnosis(self) -> str:
        """What to look at when a test with this guest fails: the console, and the kernel's log if it still answers."""
        if not self.alive:
            return self.console
        try:
            return self.console + self.run("dmesg | tail -n 60", timeout=10).output
        except GuestDied:
            return self.console

    def boot(self) -> None:
        """Start the machine and wait until it takes commands. GuestDied with its console otherwise."""
        assert not self.alive, "the guest runs already"
        # A socket's path is limited to 107 bytes, and a test's directory may be longer: a short one of its own.
        with tempfile.TemporaryDirectory(prefix="guest-") as short:
            path = Path(short) / "control"
            with (self._directory / "qemu.log").open("wb") as log:
                command = self._command(path)
                self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            deadline = time.monotonic() + BOOT_TIMEOUT_S
            self._control = self._connect(path, deadline)
        self._received = b""
        self._answer(b"ready", deadline)

    def _command(self, control: Path) -> list[str]:
        settings = " ".join(f"{name}={value}" for name, value in self._settings.items())
        kind = accelerator()
        network = f"tap,id=net,ifname={self._tap},script=no,downscript=no" if self._tap else "user,id=net,ipv6=off"
        network += "".join(f",hostfwd=tcp:127.0.0.1:{host}-:{guest}" for host, guest in self._forward.items())
        options = {
            "-machine": f"pc,accel={kind}",
            "-cpu": "host" if kind == "kvm" else "max",
            "-smp": "1",
            "-m": str(self._memory_mib),
            "-kernel": str(self._images / f"vmlinuz-{self._kernel}"),
            "-initrd": str(self._images / f"initrd-{self._kernel}"),
            "-append": "console=ttyS0 quiet loglevel=4 panic=-1 no_timer_check mitigations=off net.ifnames=0 "
            + settings,
            "-serial": f"file:{self._directory / 'console'}",
            "-netdev": network,
            "-chardev": f"socket,id=control,path={control},server=on,wait=off",
        }
        disks = [
            f"file={self._images / 'root.img'},if=virtio,format=raw,snapshot=on,cache=unsafe",
            f"file={self._images / f'modules-{self._kernel}.img'},if=virtio,format=raw,readonly=on",
        ]
        devices = [
            "virtio-serial-pci",
            "virtserialport,chardev=control,name=control",
            "virtio-rng-pci",
            "virtio-net-pci,netdev=net,romfile=",
        ]
        words = [find("qemu-system-x86_64"), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        words += [word for pair in options.items() for word in pair]
        words += [word for disk in disks for word in ("-drive", disk)]
        return words + [word for device in devices for word in ("-device", device)]

    def _connect(self, path: Path, deadline: float) -> socket.socket:
        control = socket.socket(socket.AF_UNIX)
        while True:
            try:
                control.connect(str(path))
                return control
            except OSError:
                if not self.alive or time.monotonic() > deadline:
                    control.close()
                    self._die("no control port")
                time.sleep(0.02)

    def _die(self, reason: str) -> None:
        self.kill()
        raise GuestDied(f"{reason}; console:\n{self.console}")

    def _answer(self, token: bytes, deadline: float) -> tuple[bytes, int]:
        """(output, exit status) of the command with that token; what came before its answer is dropped."""
        assert self._control is not None
        end = re.compile(re.escape(MARK + token) + rb" (\d+)\n")
        while not (found := end.search(self._received)):
            readable, _, _ = select.select([self._control], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                self._die(f"no answer in time; received {self._received[-2000:]!r}")
            data = self._control.recv(1 << 16)
            if not data:
                self._die("the guest ended")
            self._received += data
        output, self._received = self._received[: found.start()], self._received[found.end() :]
        return output, int(found[1])

    def run(self, command: str, timeout: float = 60) -> Result:
        """Run a shell command (bash) in the guest as root; after `timeout` seconds it is ended, with status 124."""
        if not self.alive or self._control is None:
            self._die("the guest does not run")
        assert self._control is not None
        self._commands += 1
        token = b"%d" % self._commands
        encoded = base64.b64encode(command.encode())
        self._control.sendall(b"%s %d %s\n" % (token, max(1, round(timeout)), encoded))
        output, status = self._answer(token, time.monotonic() + timeout + 15)
        return Result(status, output.decode(errors="replace"))

    def check(self, command: str, timeout: float = 60) -> str:
        """The output of a command that must succeed. AssertionError with its output otherwise."""
        result = self.run(command, timeout)
        assert result.status == 0, f"in the guest: {command}\nstatus {result.status}\n{result.output}"
        return result.output

    def spawn(self, command: str) -> Background:
        """Start a command that runs beside the next ones."""
        background = Background(self, f"background-{self._commands + 1}")
        inner = f"bash -c {shlex.quote(command)} >{background.log} 2>&1; echo $? >{background.status_file}"
        self.check(f"setsid bash -c {shlex.quote(inner)} </dev/null >/dev/null 2>&1 &")
        return background

    def put(self, path: str, content: str) -> None:
        """Write a file in the guest, executable."""
        encoded = base64.b64encode(content.encode()).decode()
        self.check(f"base64 -d <<<{encoded} >{path} && chmod 755 {path}")

    def forget_targets(self) -> None:
        """Unmount, log out everywhere and forget every record, so that the next test starts from nothing.

        A session whose target is gone would hold this up for minutes: such a machine is ended instead.
        """
        commands = (
            "umount /mnt",
            "iscsiadm -m node -u",
            "iscsiadm -m node -o delete",
            "rm -rf /etc/iscsi/ifaces/*",
            '[ -z "$(ls /sys/class/iscsi_session)" ]',
        )
        if self.run("; ".join(commands), timeout=30).status != 0:
            self.kill()

    def kill(self) -> None:
        """End the machine at once, as a power loss would."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def main() -> int:
    """Boot, run each argument as a command, print what it said; the status of the first that fails."""
    with tempfile.TemporaryDirectory() as directory, Guest(images(), Path(directory)) as guest:
        for command in sys.argv[1:]:
            result = guest.run(command, timeout=600)
            print(f"$ {command}\n{result.output}", end="")
            if result.status:
                print(f"status {result.status}", file=sys.stderr)
                return result.status
    return 0


if __name__ == "__main__":
    sys.exit(main())
