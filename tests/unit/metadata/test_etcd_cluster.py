"""Three etcd processes, of which one is killed or stopped, under a watch, a lease that is renewed, and writes."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest
import uvloop

from san_target.metadata.etcd import LEASE_KEEP_ALIVE, EtcdStore
from san_target.metadata.etcd_client import EtcdClient, Timeouts
from san_target.metadata.etcd_messages import Header, LeaseAnswer, RangeAnswer
from san_target.metadata.etcd_url import EtcdOptions, parse_etcd_url
from san_target.metadata.store import Put, StoreError, StoreUnavailable
from tests.support.etcd import Etcd, EtcdCluster

SECONDS_MAX = 90
# Elections shorter than etcd's usual second, but long enough for a busy machine.
ELECTIONS = ("--heartbeat-interval", "50", "--election-timeout", "500")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    processes = EtcdCluster(tmp_path_factory.mktemp("cluster"), ELECTIONS)
    try:
        processes.start()
        yield processes
    finally:
        processes.kill()


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(SECONDS_MAX):
            await body()

    uvloop.run(bounded())  # as members do; the other tests use asyncio's own loop


def store_on(processes: list[Etcd], prefix: str, timeouts: Timeouts | None = None) -> EtcdStore:
    hosts = ",".join(process.host for process in processes)
    return EtcdStore(parse_etcd_url(f"etcd://{hosts}?prefix={prefix}"), timeouts)


class Load:
    """Numbers written to one key and watched, while a lease is kept. revisions: of what was seen."""

    def __init__(self, store: EtcdStore, from_revision: int, lease_id: int) -> None:
        self._store = store
        self._lease_id = lease_id
        self._ended = False
        self.written = 0
        self.acknowledged: list[int] = []
        self.renewals: list[bool] = []
        self.seen: list[int] = []
        self.revisions: list[int] = []
        self._tasks = [
            asyncio.ensure_future(work) for work in (self._write(), self._renew(), self._watch(from_revision))
        ]

    async def _write(self) -> None:
        while not self._ended:
            self.written += 1
            try:
                await self._store.transact([], [Put("number", b"%d" % self.written)])
                self.acknowledged.append(self.written)
            except StoreUnavailable:
                pass
            await asyncio.sleep(0.01)

    async def _renew(self) -> None:
        while not self._ended:
            try:
                self.renewals.append(await self._store.renew_lease(self._lease_id))
            except StoreUnavailable:
                pass
            await asyncio.sleep(0.1)

    async def _watch(self, revision: int) -> None:
        while not self._ended:
            try:
                async for batch in self._store.watch("number", revision):
                    revision = batch.revision + 1
                    self.revisions.append(batch.revision)
                    self.seen += [int(event.item.value) for event in batch.events if event.item]
            except StoreUnavailable:
                pass

    async def goes_on(self) -> None:
        """Until everything works, with what begins after now."""
        written, renewals = self.written, len(self.renewals)
        await self._until(lambda: any(number > written + 5 for number in self.acknowledged))
        await self._until(lambda: len(self.renewals) > renewals + 1)
        last = self.acknowledged[-1]
        await self._until(lambda: last in self.seen)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            for task in self._tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(0.02)

    async def end(self) -> None:
        last = self.acknowledged[-1]
        await self._until(lambda: last in self.seen)
        self._ended = True
        await asyncio.gather(*self._tasks[:2])
        await self._store.close()
        await self._tasks[2]


@pytest.mark.slow
@pytest.mark.tool("etcd")
@pytest.mark.parametrize("harm", ["kill", "stop"])
@pytest.mark.parametrize("victim", ["leader", "follower"])
def test_one_of_three_is_lost(cluster: EtcdCluster, victim: str, harm: str) -> None:
    """The store is connected to the victim, and so is the watch."""

    async def body() -> None:
        order = await asyncio.to_thread(cluster.leader_first)
        lost = order[0] if victim == "leader" else order[1]
        others = [process for process in order if process is not lost]
        store = store_on([lost, *others], f"/{victim}-{harm}/")
        await store.open()
        lease = await store.grant_lease(20)
        load = Load(store, (await store.range("")).revision + 1, lease)
        await load.goes_on()
        if harm == "kill":
            lost.kill()
        else:
            lost.pause()
        await load.goes_on()
        if harm == "kill":
            await asyncio.to_thread(cluster.restart, lost)
        else:
            lost.resume()
        await load.goes_on()
        await load.end()
        assert all(load.renewals)
        assert load.revisions == sorted(set(load.revisions))
        # All of what was acknowledged, nothing twice; the outcome of the rest was unknown, and may come much later: a
        # process that was stopped passes on what it was sent before.
        assert len(load.seen) == len(set(load.seen))
        assert set(load.acknowledged) <= set(load.seen)

    run(body)


@pytest.mark.slow
@pytest.mark.tool("etcd")
def test_without_a_quorum_requests_end_and_with_it_they_work_again(cluster: EtcdCluster) -> None:
    timeouts = Timeouts(attempt_s=0.4, transaction_s=0.4, request_s=1.0, watch_s=60)

    async def body() -> None:
        first, *others = cluster.members
        store = store_on(cluster.members, "/quorum/", timeouts)
        await store.open()
        at = (await store.transact([], [Put("a", b"1")])).revision
        seen: list[int] = []

        async def watch() -> None:
            async for batch in store.watch("", at):
                seen.append(batch.revision)

        watching = asyncio.ensure_future(watch())
        for process in others:
            process.kill()
        # The first request after the loss may have been sent; later ones surely were not.
        for request in (store.transact([], [Put("b", b"1")]), store.get("a"), store.range(""), store.grant_lease(10)):
            with pytest.raises(StoreUnavailable):
                await request
        with pytest.raises(StoreUnavailable, match="nothing was changed"):
            await store.transact([], [Put("c", b"1")])
        with pytest.raises(StoreUnavailable):
            await store_on([first], "/quorum/", timeouts).open()
        for process in others:
            process.start(*ELECTIONS, cluster=cluster.members)
        for process in cluster.members:
            await asyncio.to_thread(process.wait_until_healthy)
        patient = store_on(cluster.members, "/quorum/")
        await patient.open()
        assert await patient.get("c") is None
        last = (await patient.transact([], [Put("d", b"1")])).revision
        await patient.close()
        while last not in seen:
            await asyncio.sleep(0.02)
        assert seen == sorted(set(seen))
        assert seen[0] == at
        await store.close()
        await watching

    run(body)


@pytest.mark.slow
@pytest.mark.tool("etcd")
def test_a_replaced_leader_cannot_renew_a_lease_alone(cluster: EtcdCluster) -> None:
    """It is stopped, another is elected; when it wakes it still believes to be the leader, and says yes."""

    async def body() -> None:
        old, *others = await asyncio.to_thread(cluster.leader_first)
        patient = Timeouts(attempt_s=30, transaction_s=30, request_s=60, guard_s=60)
        store = store_on([old], "/stale/", patient)
        await store.open()
        lease = await store.grant_lease(60)
        assert await store.renew_lease(lease)
        terms: list[int] = []
        call = store._client.call

        async def recorded(path: str, *words: object, **options: object) -> object:
            answer = await call(path, *words, **options)  # type: ignore[arg-type]
            if path == LEASE_KEEP_ALIVE:
                terms.append(answer.header.raft_term)
            return answer

        store._client.call = recorded  # type: ignore[assignment]
        old.pause()
        while not any([await asyncio.to_thread(lambda one=process: one.is_leader) for process in others]):
            await asyncio.sleep(0.05)
        term = int((await asyncio.to_thread(others[0].ask, "maintenance/status"))["raftTerm"])
        renewing = asyncio.ensure_future(store.renew_lease(lease))
        await asyncio.sleep(0.1)  # it is sent, and waits in the socket
        old.resume()
        assert await renewing
        assert terms[-1] >= term
        await store.revoke_lease(lease)
        await store.close()

    run(body)


# The same with answers that are made up ------------------------------------------------------------------------------


class ScriptedClient(EtcdClient):
    """Answers renewals and reads from a list of (connection, raft term, TTL)."""

    def __init__(self, answers: list[tuple[int, int, int]]) -> None:
        super().__init__(EtcdOptions((("nowhere", 1),)), Timeouts())
        self._answers = answers
        self.asked = 0

    async def call(self, path: str, request: object, kind: object, **options: object) -> object:  # type: ignore[override]
        self.connections, term, ttl = self._answers[self.asked]
        self.asked += 1
        header = Header(raft_term=term)
        return LeaseAnswer(header, 1, ttl) if path == LEASE_KEEP_ALIVE else RangeAnswer(header)


def renew(*answers: tuple[int, int, int], times: int = 1) -> tuple[list[bool], int]:
    """(results of so many renewals, requests made); connection 1 and raft term 5 were confirmed before."""

    async def body() -> tuple[list[bool], int]:
        store = EtcdStore(EtcdOptions((("nowhere", 1),)))
        client = store._client = ScriptedClient(list(answers))
        client.connections = 1
        store._renewed_at = (1, 5)
        return [await store.renew_lease(1) for _ in range(times)], client.asked

    return asyncio.run(body())


def test_a_renewal_confirmed_in_the_same_term() -> None:
    assert renew((1, 5, 10), (1, 5, 10)) == ([True], 2)


def test_a_renewal_by_a_leader_that_was_replaced_is_done_again() -> None:
    assert renew((1, 5, 10), (1, 6, 10), (1, 6, 10), (1, 6, 10)) == ([True], 4)


def test_a_renewal_on_a_new_connection_is_done_again() -> None:
    assert renew((1, 5, 10), (2, 5, 10), (2, 5, 10), (2, 5, 10), (2, 5, 10), (2, 5, 10)) == ([True], 6)


def test_a_lease_that_has_ended_needs_no_second_opinion() -> None:
    assert renew((1, 5, 0)) == ([False], 1)
    assert renew((1, 5, 10), (1, 6, 10), (1, 6, 0)) == ([False], 3)


def test_leaders_that_change_all_the_time_renew_nothing() -> None:
    with pytest.raises(StoreError, match="changes its leader all the time"):
        renew(*((1, term, 10) for term in range(6, 14)))
