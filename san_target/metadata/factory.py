"""A store from its URL."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from san_target.metadata.etcd import EtcdStore
from san_target.metadata.etcd_url import parse_etcd_url
from san_target.metadata.memory import MemoryStore
from san_target.metadata.sqlite import SqliteStore
from san_target.metadata.store import Store, StoreError

SUPPORTED = (
    "sqlite:///PATH (a file on a local disk), etcd://HOST:PORT[,HOST:PORT...] and memory: (forgotten at the end)"
)


def make_store(url: str) -> Store:
    """The store that `url` names, not yet open. sqlite:///PATH is an absolute path. StoreError for any other URL."""
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        if parts.netloc or parts.query or parts.fragment or not Path(parts.path).name:
            raise StoreError(f"the store URL {url!r} names no file; write sqlite:///PATH with an absolute path")
        return SqliteStore(Path(unquote(parts.path)))
    if parts.scheme == "etcd":
        return EtcdStore(parse_etcd_url(url))
    if url in ("memory:", "memory://"):
        return MemoryStore()
    raise StoreError(f"the store URL {url!r} is not supported; supported are {SUPPORTED}")


async def open_store(url: str) -> Store:
    """`make_store`, opened."""
    store = make_store(url)
    await store.open()
    return store
