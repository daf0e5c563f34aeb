"""Refuse an etcd that confirms what it has not brought to its disk (--unsafe-no-fsync) [25].

How it was started cannot be asked for everywhere, but its metrics count what it does: proposals that were applied, and
syncs of its log. One that applies and never syncs is unsafe. An etcd that keeps its metrics at another address
(--listen-metrics-urls), or is away now, is not judged.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from san_target.metadata.etcd_url import EtcdOptions
from san_target.metadata.store import StoreError

if TYPE_CHECKING:
    import httpx

SYNCS = re.compile(r"^etcd_disk_wal_fsync_duration_seconds_count (\S+)$", re.MULTILINE)
APPLIED = re.compile(r"^etcd_server_proposals_applied_total (\S+)$", re.MULTILINE)
TIMEOUT_S = 2.0
WRITES = 3  # a single one may be applied a moment before it is synced
PAUSE_S = 0.05

Counts = tuple[float, float]


async def check_durability(options: EtcdOptions, write: Callable[[], Awaitable[None]]) -> None:
    """`write` makes every etcd process log something. StoreError names those that did not sync it."""
    import httpx  # loads slowly, and few need it

    scheme = "https" if options.has_tls else "http"
    urls = [f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/metrics" for host, port in options.endpoints]
    tls = await asyncio.to_thread(options.tls)
    if tls is not None:
        tls.set_alpn_protocols(["http/1.1"])
    async with httpx.AsyncClient(verify=tls or False, trust_env=False, timeout=TIMEOUT_S) as http:
        before = await asyncio.gather(*(_counts(http, url) for url in urls))
        after = before
        for _ in range(WRITES):
            await write()
            await asyncio.sleep(PAUSE_S)
            after = await asyncio.gather(*(_counts(http, url) for url in urls))
            if not any(map(is_unsafe, before, after)):
                return
    names = [f"{host}:{port}" for host, port in options.endpoints]
    unsafe = [name for name, first, last in zip(names, before, after, strict=True) if is_unsafe(first, last)]
    raise StoreError(
        f"etcd at {', '.join(unsafe)} does not sync its log (--unsafe-no-fsync): what it confirms is lost in a power "
        "failure. Start it without that option"
    )


def is_unsafe(before: Counts | None, after: Counts | None) -> bool:
    """Something was applied in between, and nothing synced. Counts that fell are of an etcd that was started again."""
    if before is None or after is None:
        return False
    return after[0] == before[0] and after[1] > before[1]


async def _counts(http: "httpx.AsyncClient", url: str) -> Counts | None:
    """(syncs of the log, proposals applied); None: not to be had here."""
    from httpx import HTTPError

    try:
        answer = await http.get(url)
    except HTTPError:
        return None
    syncs, applied = SYNCS.search(answer.text), APPLIED.search(answer.text)
    if answer.status_code != 200 or syncs is None or applied is None:
        return None
    return float(syncs[1]), float(applied[1])
