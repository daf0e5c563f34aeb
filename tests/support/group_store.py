"""The kind of store that the groups of the end-to-end tests have: `SAN_TARGET_GROUP_STORE`, sqlite or etcd."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from tests.support.etcd import EtcdCluster
from tests.support.network import Network

OVER_ETCD = os.environ.get("SAN_TARGET_GROUP_STORE", "sqlite") == "etcd"
STORE = 3
"""Where the etcd is in a network, behind three members; a SQLite store is a file, which cannot be cut off."""


def chosen_store(stack: ExitStack, directory: Path, network: Network | None = None) -> str | None:
    """The URL of a new store of the kind that was chosen, until the stack ends; None: a file of the group's own."""
    if not OVER_ETCD:
        return None
    if network is None:
        cluster = EtcdCluster(directory / "etcd")
    else:
        cluster = EtcdCluster(directory / "etcd", address=network.address(STORE), prefix=network.prefix(STORE))
    stack.callback(cluster.kill)
    cluster.start()
    return cluster.url
