"""One etcd for all tests here that do no harm to it; each has a prefix of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.etcd import Etcd
from tests.support.tools import missing_packages

# etcd grants no lease shorter than one and a half elections: quick ones make for leases of a second.
QUICK_LEASES = ("--heartbeat-interval", "20", "--election-timeout", "200")


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    if missing_packages(["etcd"]):
        pytest.skip("not installed: etcd-server")
    process = Etcd(tmp_path_factory.mktemp("etcd"))
    process.start(*QUICK_LEASES)
    try:
        process.wait_until_healthy()
        yield process
    finally:
        process.kill()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Etcd]:
    """An etcd that a test may harm; not started."""
    process = Etcd(tmp_path)
    yield process
    process.kill()
