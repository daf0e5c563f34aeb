"""Migrations of data, which no initiator can see, as a member's HTTP API shows them: two partition maps differ."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

INTERVAL_S: Final = 0.5
TIMEOUT_S: Final = 5.0


class ApiError(Exception):
    """The API cannot be asked; the text says why."""


class Range(NamedTuple):
    """Who owns blocks; end_lba is exclusive."""

    start_lba: int
    end_lba: int
    owner: str


class Migrated(NamedTuple):
    """So many blocks have another owner."""

    source: str
    destination: str
    blocks: int


def differences(before: Sequence[Range], after: Sequence[Range]) -> list[Migrated]:
    """What changed its owner between two maps of a volume. A map is sorted; blocks of only one of them do not count."""
    moved: Counter[tuple[str, str]] = Counter()
    old = iter(before)
    source = next(old, None)
    for new in after:
        while source is not None and source.start_lba < new.end_lba:
            overlap = min(source.end_lba, new.end_lba) - max(source.start_lba, new.start_lba)
            if overlap > 0 and source.owner != new.owner:
                moved[source.owner, new.owner] += overlap
            if source.end_lba > new.end_lba:
                break
            source = next(old, None)
    return [Migrated(*owners, blocks) for owners, blocks in moved.items()]


class GroupMap:
    """The partition map of the volume with target name `iqn`, asked of the member at `url`, over and over.

    transport: of httpx, for tests.
    """

    def __init__(self, url: str, iqn: str, token: str | None = None, transport: Any = None) -> None:
        import httpx

        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._url = url
        self._iqn = iqn
        self._name = ""
        self._ranges: list[Range] = []
        # The URL alone names the member: a proxy of the environment would be asked for our own loopback.
        self._client = httpx.AsyncClient(
            base_url=url, headers=headers, timeout=TIMEOUT_S, trust_env=False, transport=transport
        )

    async def open(self) -> None:
        """Find the volume and its map. Raises ApiError."""
        found = [volume["name"] for volume in await self._get("/volumes") if volume["iqn"] == self._iqn]
        if not found:
            raise ApiError(f"the member at {self._url} knows no volume with the target name {self._iqn}")
        self._name = found[0]
        self._ranges = await self._read()

    async def follow(self, on_migrated: Callable[[Migrated], None], interval_s: float = INTERVAL_S) -> None:
        """Tell of every change of owner, until cancelled. A member that does not answer is asked again later."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                ranges = await self._read()
            except ApiError:
                continue
            for migrated in differences(self._ranges, ranges):
                on_migrated(migrated)
            self._ranges = ranges

    async def close(self) -> None:
        await self._client.aclose()

    async def _read(self) -> list[Range]:
        found = await self._get(f"/volumes/{self._name}/map")
        return [Range(one["start_lba"], one["end_lba"], one["owner"]) for one in found]

    async def _get(self, path: str) -> Any:
        import httpx

        try:
            answer = await self._client.get(f"/api/v1{path}")
            content = answer.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise ApiError(f"no member's HTTP API answers at {self._url}: {error or type(error).__name__}") from None
        if answer.status_code == 401:
            raise ApiError(f"the member at {self._url} wants its token: give --api-token-file FILE")
        if answer.status_code != 200:
            raise ApiError(f"the member at {self._url} answers with HTTP status {answer.status_code} to {path}")
        return content
