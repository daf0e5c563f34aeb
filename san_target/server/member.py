"""A member: the only place where everything is wired together, started, and ended in order."""

import asyncio
import errno
import signal
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Literal, TypeVar

import structlog

import san_target
from san_target.admin.app import create_app
from san_target.admin.http_server import AdminServer
from san_target.admin.security import check_exposure
from san_target.group.errors import AdministrationError
from san_target.group.follower import StoreFollower
from san_target.group.group_record import SECRET_BYTES, ensure_group, find_group, group_secret
from san_target.group.members import Members
from san_target.group.membership import REMOVED, REMOVING, Membership, PoolFacts, Removed, worth_telling
from san_target.group.volumes import Volumes
from san_target.metadata.schema import GROUP_KEY, GroupRecord
from san_target.metadata.store import Store, StoreError
from san_target.server import config as configuration
from san_target.server.background import Background
from san_target.server.balancing import Balancing
from san_target.server.config import ConfigError, MemberConfig, parse_address
from san_target.server.directory import Portals, TargetDirectory
from san_target.server.environment import Environment
from san_target.server.export import Surroundings
from san_target.server.exports import Exports
from san_target.server.group_life import GroupLife
from san_target.server.group_sessions import GroupSessions
from san_target.server.local_sessions import LocalSessions
from san_target.server.other_members import Handlers, OtherMembers
from san_target.server.portal import PortalServer, address_text
from san_target.server.portal_placement import PortalPlacement
from san_target.server.service import Service
from san_target.server.sessions import RateMeter
from san_target.storage.pool import Pool
from san_target.storage.records import PoolError
from san_target.storage.threads import Threads

log = structlog.get_logger()

T = TypeVar("T")

SAMPLE_S = 2.0
SAMPLED_AT_ONCE = 64


class StartError(Exception):
    """A member cannot start; the message is one line for the operator."""


class Member:
    """One member. `start` once, `stop` once (also after a start that failed: it then has been called already).

    state       starting | active | stopping
    problems    what hinders it though it serves, by subject
    members     the members of the group, as this one sees them
    must_end    why it must not go on serving: it was removed from the group; "" = it may
    """

    def __init__(self, config: MemberConfig, environment: Environment | None = None) -> None:
        """Raises ConfigError if there is no name, or a file with a secret or a certificate cannot be used."""
        self.config = config
        self.environment = environment or Environment()
        self.environment.congestion_control = config.congestion_control
        peer_tls = configuration.peer_tls(config)
        if peer_tls is not None:
            self.environment.peer_tls = peer_tls
        self.name = configuration.member_name(config, self.environment.host_name())
        self.state: Literal["starting", "active", "stopping"] = "starting"
        self.since_s = self.environment.wall_clock_s()
        self.admin_address = config.admin
        self.portals = Portals(config.portals, config.advertise)
        self.problems: dict[str, str] = {}
        self.rates = RateMeter()
        self.others: OtherMembers | None = None  # while this member is alone
        self.local_sessions = LocalSessions(self)
        self._token = configuration.api_token(config)
        self._discovery = configuration.discovery_access(config)
        self._followers = Background()
        self._background = Background()
        self._threads: Threads | None = None
        self._store: Store | None = None
        self._membership: Membership | None = None
        self._admin: AdminServer | None = None
        self._portal_server: PortalServer | None = None
        self._pool: Pool | None = None
        self._exports: Exports | None = None
        self._volumes: Volumes | None = None
        self._follower: StoreFollower | None = None
        self._told_space_s = float("-inf")
        self._ended = asyncio.Event()
        self.members = Members()
        self.must_end = ""
        self._directory: TargetDirectory | None = None
        self._life: GroupLife | None = None
        self._balancing: Balancing | None = None
        self._beginning = asyncio.Lock()

    # What the administration looks at ---------------------------------------------------------------------------------

    @property
    def store(self) -> Store:
        return _started(self._store)

    @property
    def pool(self) -> Pool:
        return _started(self._pool)

    @property
    def exports(self) -> Exports:
        return _started(self._exports)

    @property
    def volumes(self) -> Volumes:
        return _started(self._volumes)

    @property
    def membership(self) -> Membership:
        return _started(self._membership)

    @property
    def follower(self) -> StoreFollower:
        return _started(self._follower)

    @property
    def life(self) -> GroupLife:
        return _started(self._life)

    @property
    def balancing(self) -> Balancing:
        return _started(self._balancing)

    @property
    def threads(self) -> Threads:
        return _started(self._threads)

    @property
    def portal_server(self) -> PortalServer:
        return _started(self._portal_server)

    @property
    def directory(self) -> TargetDirectory:
        return _started(self._directory)

    @property
    def group_sessions(self) -> GroupSessions:
        return GroupSessions(self.name, self.local_sessions, self.others)

    @property
    def ready_line(self) -> str:
        """What is printed when the member serves."""
        return f"ready name={self.name} portals={','.join(self.portals.bound)} admin=http://{self.admin_address}"

    # Start ------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Returns when logins are served. StartError: nothing is left open."""
        try:
            await self._start()
        except (StoreError, PoolError, AdministrationError, ConfigError) as error:
            await self.stop()
            raise StartError(" ".join(str(error).split())) from error
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        config, environment = self.config, self.environment
        check_exposure(parse_address(config.admin)[0], self._token)
        store = environment.make_store(config.store_url)
        self._make_directory()
        await store.open()
        self._store = store
        self._threads = environment.make_threads()
        pool = environment.make_pool(config.pool_directory, self._threads)
        group = await self._find_group(store, pool)
        restores = [(restore.id, restore.revision) for restore in group.restores]
        await pool.open(group.id, (await store.range(GROUP_KEY)).revision, restores)
        self._pool = pool
        self._membership = Membership(
            store, self.name, self._pool_facts(), environment.boottime_s, environment.lease_ttl_s
        )
        self._follower = StoreFollower(store, environment.sleep)
        self._follower.add(Members.KINDS, self.members)
        self._balancing = Balancing(self, self._follower, self._followers)
        secret = await group_secret(store, environment.random_bytes(SECRET_BYTES))
        self._life = GroupLife(self, self._follower, self._background, secret, self._fenced)
        await self._open_peer_port()
        await self._membership.join(self.portals.told(), config.admin, self.life.peering.address)
        await self._load_volumes(group)
        self.life.begin(group.id)
        await self._open_admin_port()
        await self._open_portals()
        await self._tell_serving()
        self.portal_server.guard = self.life.vigilance.guard
        self._followers.spawn(self.life.vigilance.beat(environment.sleep))
        self._followers.spawn(self._keep_lease())
        self._followers.spawn(self._sample_rates())
        self.state = "active"
        log.info(
            "member serves", member=self.name, incarnation=self.membership.incarnation, version=san_target.__version__
        )

    def _make_directory(self) -> None:
        directory = self.config.pool_directory
        try:
            self.environment.make_directory(directory)
        except OSError as error:
            advice = {
                errno.EROFS: "its file system is read-only; mount it writable or give another --dir",
                errno.EACCES: "permission is denied; give it to the user that runs the member",
                errno.EEXIST: "it is no directory; give another --dir",
                errno.ENOTDIR: "a part of its path is no directory; give another --dir",
            }.get(error.errno or 0, error.strerror or str(error))
            raise ConfigError(f"the pool directory {directory} cannot be made: {advice}") from error

    async def _find_group(self, store: Store, pool: Pool) -> GroupRecord:
        """A pool in use says that there was a group: then none is made in a store that has none."""
        if pool.exists() and await find_group(store) is None:
            raise StoreError(
                f"the store {self.config.store_url} is empty, but the pool {self.config.directory} belongs to a group; "
                "restore the store from a backup, or give the right --store"
            )
        new_secret = self.environment.random_bytes(SECRET_BYTES)
        return await ensure_group(store, self.config.group, self.environment.new_id(), new_secret)

    def _pool_facts(self) -> PoolFacts:
        pool = self.pool
        return PoolFacts(pool.pool_id, bool(pool.list_volumes()), *pool.space())

    async def _tell_serving(self) -> None:
        await self.membership.tell(portals=self.portals.told(), admin=self.admin_address, serving=True)

    async def _load_volumes(self, group: GroupRecord) -> None:
        """Every volume is served, or known not to be, before the first login: an unknown target is a final answer."""
        directory = self._directory = TargetDirectory(self._discovery, self._is_tsih_in_use)
        directory.portals = self.portals
        surroundings = Surroundings(
            self.name,
            group.portal_group_tag,
            self.pool,
            _started(self._threads),
            directory,
            self._background,
            self.life.services_for,
            self.life.units.stored,
            self.life.power_lost,
            self.life.forwarder_for,
            self.life.owned,
        )
        self._volumes = Volumes(self.store, group, self._sessions_on, self.environment.new_id)
        follower = self.follower
        self.members.subscribe(self._note_members)
        self._exports = Exports(follower, self._volumes, group, surroundings, self.environment)
        self._portal_server = PortalServer(
            directory,
            self.config.limits.target_limits(),
            self.config.weak_chap,
            self.config.busy_poll_us / 1e6,
            self.environment,
        )
        for kind, answer in self.join_portal_group(self.life.others).items():
            self.life.peering.answer_at_once(kind, answer)
        directory.succession, directory.ask_store = self.life.succession, self.life.ask_store
        # Read after the lease was granted: what an earlier owner committed before that is in it.
        await follower.load()
        self._followers.spawn(follower.follow())
        await self._exports.opened()

    def join_portal_group(self, others: OtherMembers) -> Handlers:
        """From now on logins are placed among all members, and any member tells of the sessions of all.

        Returns what answers the messages of others about that.
        """
        self.others = others
        placement = PortalPlacement(
            others,
            self.directory,
            lambda: self.exports.group.portal_policy,
            self.local_sessions.count,
            self.portal_server.has_room,
            self.environment.now_s,
        )
        self.directory.group = placement
        self.balancing.join(placement)
        return {**placement.handlers(), **self.group_sessions.handlers()}

    async def _open_peer_port(self) -> None:
        if not self.config.peer:
            return
        try:
            await self.life.peering.listen(self.config.peer)
        except OSError as error:
            raise _address_error("peer port", self.config.peer, "--peer", error) from error

    async def _open_admin_port(self) -> None:
        host, port = parse_address(self.config.admin)
        app = create_app(Service(self), self._token, host)
        try:
            self._admin = self.environment.make_admin_server(app, host, port)
        except OSError as error:
            raise _address_error("admin port", self.config.admin, "--admin", error) from error
        self.admin_address = address_text(self._admin.address)
        await self._admin.start()

    async def _open_portals(self) -> None:
        bound = []
        for address in self.config.portals:
            host, port = parse_address(address)
            try:
                bound.append(address_text(await self.portal_server.start(host, port)))
            except OSError as error:
                raise _address_error("portal", address, "--portal", error) from error
        self.portals.bound = tuple(bound)

    # While it serves --------------------------------------------------------------------------------------------------

    async def _keep_lease(self) -> None:
        """Renew the lease; a lost one is taken anew, by a new incarnation that reads everything again."""
        while True:
            await self.environment.sleep(self.membership.renewal_interval_s)
            try:
                if not await self.membership.renew():
                    self.life.vigilance.look()
                    await self._begin_anew("the lease was lost")
                await self._tell_space()
            except Removed as error:
                self._end(str(error))
                return
            except (StoreError, AdministrationError) as error:
                if "store" not in self.problems:
                    log.error("the lease cannot be renewed", reason=str(error))
                self.problems["store"] = str(error)
            else:
                self.problems.pop("store", None)

    def _fenced(self, reason: str) -> None:
        self._followers.spawn(self._begin_anew_when_possible(reason))

    async def _begin_anew_when_possible(self, reason: str) -> None:
        while True:
            try:
                await self._begin_anew(reason)
            except (StoreError, AdministrationError) as error:
                self.problems["life"] = f"{reason}, and a new life cannot begin: {error}"
                await self.environment.sleep(self.membership.renewal_interval_s)
            else:
                self.problems.pop("life", None)
                return

    async def _begin_anew(self, reason: str) -> None:
        """A new incarnation: everything is read again, and nothing of the old one is under way any more."""
        async with self._beginning:
            log.warning("this member begins anew", member=self.name, reason=reason)
            alone = not self.life.other_members()
            await self.life.end(keep_sessions=alone)
            await self.membership.join(self.portals.told(), self.admin_address, self.life.peering.address)
            await self.follower.reload()
            if alone and self.life.other_members():
                await self.life.end()
            self.life.begin(self.exports.group.id)
            await self._tell_serving()

    async def _tell_space(self) -> None:
        """Others place new volumes by it."""
        now_s, record = self.environment.now_s(), self.membership.record
        capacity_bytes, free_bytes = self.pool.space()
        if record is not None and worth_telling(record.free_bytes, free_bytes, now_s - self._told_space_s):
            self._told_space_s = now_s
            await self.membership.tell(capacity_bytes=capacity_bytes, free_bytes=free_bytes)

    def _note_members(self, names: frozenset[str]) -> None:
        mine = self.members.view.get(self.name)
        if mine is not None and mine.state in (REMOVING, REMOVED):
            self._end(f"member {self.name!r} was removed from the group")

    def _end(self, reason: str) -> None:
        """The member is to end, since the operator has given it up."""
        if not self.must_end:
            log.error("this member ends", reason=reason)
        self.must_end = self.must_end or reason
        self._ended.set()

    async def _sample_rates(self) -> None:
        """In slices: a long look at thousands of sessions would delay their I/O."""
        while True:
            await self.environment.sleep(SAMPLE_S)
            self.rates.begin()
            sessions = self.portal_server.sessions()
            for start in range(0, len(sessions), SAMPLED_AT_ONCE):
                self.rates.take(sessions[start : start + SAMPLED_AT_ONCE], self.environment.now_s())
                await asyncio.sleep(0)

    def _is_tsih_in_use(self, tsih: int) -> bool:
        return any(session.tsih == tsih for session in self.portal_server.sessions())

    def _sessions_on(self, volume_id: str) -> int:
        export = self.exports.by_id.get(volume_id)
        return 0 if export is None else len(export.sessions)

    # The end ----------------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """End sessions, flush every volume, give the lease back, close everything. A step that fails is logged."""
        if self.state == "stopping":
            return
        served, self.state = self.state == "active", "stopping"
        await self._try("sessions", self._end_sessions)
        if self._admin is not None:
            await self._try("admin port", self._admin.stop)
        await self._try("background work", self._end_background)
        await self._try("volumes", self._flush)
        if self._life is not None:
            await self._try("peer links", self._life.peering.stop)
        if self._membership is not None:
            if served:
                await self._try("farewell", partial(self._membership.tell, serving=False))
            await self._try("lease", self._membership.leave)
        if self._pool is not None:
            await self._try("pool", self._pool.close)
        if self._threads is not None:
            await self._try("threads", partial(asyncio.to_thread, self._threads.close))
        if self._store is not None:
            await self._try("store", self._store.close)
        if served:
            log.info("member ended", member=self.name)

    async def _end_sessions(self) -> None:
        if self._portal_server is not None:
            await self._portal_server.stop()

    async def _end_background(self) -> None:
        await self._followers.cancel()
        if self._life is not None:
            await self._life.migrations.end_life()
        await self._background.cancel()

    async def _flush(self) -> None:
        if self._exports is not None:
            for problem in await self._exports.flush():
                log.error("what was written last may be lost", reason=problem)

    async def _try(self, what: str, step: Callable[[], Awaitable[None]]) -> None:
        """A step that fails must not keep the others from being taken."""
        try:
            await step()
        except (StoreError, PoolError) as error:
            log.error("could not end cleanly", what=what, reason=str(error))
        except Exception as error:
            log.error("could not end cleanly", what=what, exc_info=error)

    # A whole life -----------------------------------------------------------------------------------------------------

    async def serve_forever(self, announce: Callable[[str], None] = print) -> None:
        """Start, announce it, and stop at SIGTERM or SIGINT, also at one that comes during the start.

        StartError: it cannot start, or must not go on.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ended.set)
        signalled = asyncio.ensure_future(self._ended.wait())
        starting = asyncio.ensure_future(self.start())
        await asyncio.wait((starting, signalled), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()  # which ends what was begun
            await asyncio.wait((starting,))
            return
        starting.result()
        try:
            announce(self.ready_line)
            await signalled
        finally:
            await self.stop()
        if self.must_end:
            raise StartError(self.must_end)


def _started(part: T | None) -> T:
    if part is None:
        raise AssertionError("the member has not started")
    return part


def _address_error(what: str, address: str, option: str, error: OSError) -> ConfigError:
    advice = {
        errno.EADDRINUSE: "another program uses it; end that, or give another address",
        errno.EADDRNOTAVAIL: "this machine has no such address; give one of its own",
        errno.EACCES: "permission is denied; ports below 1024 need privileges",
    }.get(error.errno or 0, error.strerror or str(error))
    return ConfigError(f"the {what} {address} cannot be opened: {advice} ({option})")
