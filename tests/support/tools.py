"""The foreign programs that tests drive: where they are and which Debian package brings them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

# Administration tools live in sbin, which is not on an ordinary user's path.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])

PACKAGE_OF = {
    "apt-get": "apt",
    "cpio": "cpio",
    "depmod": "kmod",
    "etcd": "etcd-server",
    "flock": "util-linux",
    "gcc": "gcc",
    "ip": "iproute2",
    "iscsi-inq": "libiscsi-bin",
    "iscsi-ls": "libiscsi-bin",
    "iscsi-readcapacity16": "libiscsi-bin",
    "iscsi-test-cu": "libiscsi-bin",
    "mke2fs": "e2fsprogs",
    "openssl": "openssl",
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "tcpdump": "tcpdump",
    "tgtadm": "tgt",
    "tgtd": "tgt",
}
# A "tool" may be a file that no path search finds: QEMU's iSCSI driver, libiscsi's header.
FILES_OF = {
    "qemu-iscsi": ("qemu-block-extra", ("/usr/lib/*/qemu/block-iscsi.so", "/usr/lib/qemu/block-iscsi.so")),
    "libiscsi.h": ("libiscsi-dev", ("/usr/include/iscsi/iscsi.h",)),
}


def find(tool: str) -> str:
    """The path of a tool. FileNotFoundError names the package to install."""
    path = shutil.which(tool, path=SEARCH_PATH)
    if path is None:
        raise FileNotFoundError(f"{tool} is not installed (Debian package {PACKAGE_OF.get(tool, tool)})")
    return path


def is_present(tool: str) -> bool:
    if tool in FILES_OF:
        return any(list(Path("/").glob(pattern.lstrip("/"))) for pattern in FILES_OF[tool][1])
    return shutil.which(tool, path=SEARCH_PATH) is not None


def missing_packages(tools: Iterable[str]) -> list[str]:
    """The Debian packages that bring those of `tools` that are absent, sorted."""
    absent = [tool for tool in tools if not is_present(tool)]
    return sorted({FILES_OF[tool][0] if tool in FILES_OF else PACKAGE_OF.get(tool, tool) for tool in absent})


def run(command: Sequence[str | Path], timeout_s: float = 60) -> str:
    """Run a tool; its output (stdout, then stderr). AssertionError with all of it when the status is not 0."""
    words = [find(str(command[0])), *map(str, command[1:])]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == 0, f"{' '.join(map(str, command))}: status {done.returncode}\n{output}"
    return output
