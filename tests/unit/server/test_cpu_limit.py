"""How much of a CPU a process may use, read from control groups made of ordinary files."""

from pathlib import Path

import pytest

from san_target.server.cpu_limit import CpuLimit

VERSION_2 = "31 23 0:28 / {0} rw,relatime - cgroup2 cgroup2 rw\n"
VERSION_1 = (
    "32 31 0:29 / {0}/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:30 / {0}/pids rw,relatime - cgroup cgroup rw,pids\n"
)


def process(directory: Path, mounts: str, groups: str, **files: str) -> CpuLimit:
    """files: contents by path below the mounts; "__" stands for "/"."""
    proc = directory / "proc"
    proc.mkdir()
    (proc / "mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/root rw\n" + mounts.format(directory / "groups"))
    (proc / "cgroup").write_text(groups)
    for name, text in files.items():
        file = directory / "groups" / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return CpuLimit(proc)


def test_without_control_groups_nothing_limits_it(tmp_path: Path) -> None:
    assert CpuLimit(tmp_path / "nothing").share() == 1.0
    assert process(tmp_path, "", "0::/\n").share() == 1.0


@pytest.mark.parametrize(
    ("text", "share"), [("max 100000\n", 1.0), ("25000 100000\n", 0.25), ("400000 100000\n", 1.0), ("what\n", 1.0)]
)
def test_version_2(tmp_path: Path, text: str, share: float) -> None:
    limit = process(tmp_path, VERSION_2, "0::/pod/member\n", **{"pod__member__cpu.max": text})
    assert limit.share() == share


def test_the_least_of_the_groups_above_counts_and_a_change_is_seen(tmp_path: Path) -> None:
    files = {
        "pod__cpu.max": "50000 100000\n",
        "pod__member__cpu.max": "max 100000\n",
        "other__cpu.max": "1000 100000\n",
    }
    limit = process(tmp_path, VERSION_2, "0::/pod/member\n", **files)
    assert limit.share() == 0.5
    (tmp_path / "groups/pod/member/cpu.max").write_text("2000 10000\n")
    assert limit.share() == 0.2


@pytest.mark.parametrize(("quota", "share"), [("-1", 1.0), ("2500", 0.25)])
def test_version_1(tmp_path: Path, quota: str, share: float) -> None:
    files = {"cpu,cpuacct__m__cpu.cfs_quota_us": f"{quota}\n", "cpu,cpuacct__m__cpu.cfs_period_us": "10000\n"}
    limit = process(tmp_path, VERSION_1, "4:pids:/x\n3:cpu,cpuacct:/m\n0::/\n", **files)
    assert limit.share() == share


def test_a_container_sees_its_own_group_at_the_root(tmp_path: Path) -> None:
    limit = process(tmp_path, VERSION_2, "0::/../../kubepods/abc\n", **{"cpu.max": "30000 100000\n"})
    assert limit.share() == 0.3
    (tmp_path / "proc/mountinfo").write_text(f"31 23 0:28 /docker/abc {tmp_path}/groups rw - cgroup2 cgroup2 rw\n")
    (tmp_path / "proc/cgroup").write_text("0::/docker/abc\n")
    assert CpuLimit(tmp_path / "proc").share() == 0.3
