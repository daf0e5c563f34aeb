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
from san_target.group.group_record import ensure_group, find_group
from san_target.group.membership import Membership
from san_target.group.volumes import Volumes
from san_target.metadata.schema import GroupRecord
from san_target.metadata.store import Store, StoreError
from san_target.scsi.services import Services
from san_target.server import config as configuration
from san_target.server.background import Background
from san_target.server.config import ConfigError, MemberConfig, parse_address
from san_target.server.directory import Portals, TargetDirectory
from san_target.server.environment import Environment
from san_target.server.export import Surroundings
from san_target.server.exports import Exports
from san_target.server.group_sessions import GroupSessions
from san_target.server.local_sessions import LocalSessions
from san_target.server.other_members import Handlers, OtherMembers
from san_target.server.portal import PortalServer, address_text
from san_target.server.portal_placement import PortalPlacement
from san_target.server.reservation_records import load_reservations, save_reservations
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
    """

    def __init__(self, config: MemberConfig, environment: Environment | None = None) -> None:
        """Raises ConfigError if there is no name, or a secret file cannot be used."""
        self.config = config
        self.environment = environment or Environment()
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
        self._directory: TargetDirectory | None = None

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
        await pool.open(group.id, (await store.range("")).revision)
        self._pool = pool
        self._membership = Membership(store, self.name, pool.pool_id, environment.boottime_s, environment.lease_ttl_s)
        await self._membership.join(self.portals.told(), config.admin)
        await self._load_volumes(group)
        await self._open_admin_port()
        await self._open_portals()
        if config.has_free_port:
            await self._membership.tell(self.portals.told(), self.admin_address)
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
        return await ensure_group(store, self.config.group, self.environment.new_id())

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
            self._services_for,
            partial(load_reservations, self.store),
        )
        self._volumes = Volumes(self.store, group, self.name, self._sessions_on, self.environment.new_id)
        self._exports = Exports(self.store, self._volumes, group, surroundings, self.environment)
        self._portal_server = PortalServer(
            directory,
            self.config.limits.target_limits(),
            self.config.weak_chap,
            self.config.busy_poll_us / 1e6,
            self.environment,
        )
        # Read after the lease was granted: what an earlier owner committed before that is in it.
        await self._exports.load(await self.store.range(""))
        self._followers.spawn(self._exports.follow())

    def join_portal_group(self, others: OtherMembers) -> Handlers:
        """From now on logins are placed among all members. Returns what answers the messages of others about that."""
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
        return {**placement.handlers(), **self.group_sessions.handlers()}

    def _services_for(self, volume_id: str) -> Services:
        return Services(
            spawn=self._background.spawn,
            save_reservations=partial(save_reservations, self.store, volume_id),
            unit_of=self.exports.unit_of,
            now=self.environment.now_s,
            sleep=self.environment.sleep,
        )

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
                    log.warning("the lease was lost; starting a new incarnation", member=self.name)
                    await self.membership.join(self.portals.told(), self.admin_address)
                    await self.exports.reload()
            except (StoreError, AdministrationError) as error:
                if "store" not in self.problems:
                    log.error("the lease cannot be renewed", reason=str(error))
                self.problems["store"] = str(error)
            else:
                self.problems.pop("store", None)

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
        if self._membership is not None:
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
        """Start, announce it, and stop at SIGTERM or SIGINT, also at one that comes during the start. StartError."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)
        signalled = asyncio.ensure_future(ended.wait())
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
