"""What a member is told at its start: a TOML file, and command line options that win over it.

Keys are the same in both. Every mistake is a `ConfigError` that names the file and the key.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
from msgspec import Meta, Struct

from san_target.group.portal_addresses import split_address
from san_target.server.peer_tls import CertificateError, PeerTls, make_peer_tls
from san_target.server.portal_socket import USUAL_CONGESTION_CONTROL, congestion_control_problem
from san_target.session.parameters import TargetLimits
from san_target.session.target import Access, Credentials

DEFAULT_PORTALS = ("0.0.0.0:3260",)
DEFAULT_ADMIN = "127.0.0.1:3280"
DEFAULT_GROUP = "san-target"
PEER_TLS_KEYS = ("peer_tls_ca", "peer_tls_cert", "peer_tls_key")

_USUAL = TargetLimits()
# RFC 7143 13.12 to 13.14: 512 to 2**24 - 1 bytes.
SegmentBytes = Annotated[int, Meta(ge=512, le=(1 << 24) - 1)]
Seconds = Annotated[int, Meta(ge=0, le=3600)]
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,62}[a-z0-9])?")


class ConfigError(Exception):
    """The configuration cannot be used; the message names the place and what to write."""


class LimitsConfig(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """[limits]: what the target offers in negotiation; see `session.parameters.TargetLimits`."""

    max_recv_data_segment_length: SegmentBytes = _USUAL.max_recv_data_segment_length
    max_burst_length: SegmentBytes = _USUAL.max_burst_length
    first_burst_length: SegmentBytes = _USUAL.first_burst_length
    max_outstanding_r2t: Annotated[int, Meta(ge=1, le=65535)] = _USUAL.max_outstanding_r2t
    default_time2wait_s: Seconds = _USUAL.default_time2wait_s
    default_time2retain_s: Seconds = _USUAL.default_time2retain_s
    command_window: Annotated[int, Meta(ge=1, le=65536)] = _USUAL.command_window
    login_timeout_s: Annotated[float, Meta(gt=0, le=3600)] = _USUAL.login_timeout_s
    nop_interval_s: Annotated[float, Meta(gt=0, le=86400)] = _USUAL.nop_interval_s
    nop_timeout_s: Annotated[float, Meta(gt=0, le=3600)] = _USUAL.nop_timeout_s
    buffered_bytes_max: Annotated[int, Meta(ge=1 << 20)] = _USUAL.buffered_bytes_max
    unsent_bytes_max: Annotated[int, Meta(ge=1 << 16)] = _USUAL.unsent_bytes_max

    def target_limits(self) -> TargetLimits:
        return TargetLimits(**{field.name: getattr(self, field.name) for field in fields(TargetLimits)})


class ChapConfig(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A CHAP user and the file that holds its secret (its first line)."""

    user: Annotated[str, Meta(min_length=1, max_length=255)]
    secret_file: str


class MemberConfig(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """All addresses are "host:port" ("[address]:port" for IPv6).

    name             of this member, "" = the host's name
    directory        of the pool; made if it is missing
    portals          where iSCSI is served
    advertise        the portals as initiators reach them, where that differs: one for each portal, or one for all
    admin            where the HTTP API is served
    peer             where other members of the group reach this one
    peer_tls_ca, peer_tls_cert, peer_tls_key   PEM files, for TLS between members: the authority whose certificates they
                     show each other, this member's certificate, and its key; all or none, and the same at all members
    store            "" = the file group.sqlite in the pool's directory
    api_token_file   its first line is the API token; "" = no token, and then the API stays on loopback
    weak_chap        accept CHAP with MD5 and SHA1, which old initiators need
    busy_poll_us     how long to look for the next request before sleeping; trades CPU for latency
    congestion_control  of TCP, by its Linux name; "system" = whatever the system uses
    discovery_chap   who may discover targets; empty = everybody
    discovery_mutual_chap  how the target proves itself to those
    """

    name: str = ""
    directory: Annotated[str, Meta(min_length=1)]
    portals: Annotated[tuple[str, ...], Meta(min_length=1)] = DEFAULT_PORTALS
    advertise: tuple[str, ...] = ()
    admin: str = DEFAULT_ADMIN
    peer: str = ""
    peer_tls_ca: str = ""
    peer_tls_cert: str = ""
    peer_tls_key: str = ""
    store: str = ""
    group: str = DEFAULT_GROUP
    api_token_file: str = ""
    weak_chap: bool = True
    busy_poll_us: Annotated[int, Meta(ge=0, le=10_000)] = 50
    congestion_control: str = USUAL_CONGESTION_CONTROL
    limits: LimitsConfig = LimitsConfig()
    discovery_chap: tuple[ChapConfig, ...] = ()
    discovery_mutual_chap: ChapConfig | None = None

    @property
    def pool_directory(self) -> Path:
        return Path(self.directory)

    @property
    def store_url(self) -> str:
        if self.store:
            return self.store
        return "sqlite://" + quote(str((self.pool_directory / "group.sqlite").absolute()))

    @property
    def has_free_port(self) -> bool:
        """Some port is 0: the system chooses it."""
        return any(parse_address(address)[1] == 0 for address in (*self.portals, self.admin))


def load(path: Path | None, options: Mapping[str, Any]) -> MemberConfig:
    """The configuration from a file (None = none) and from options, by the names of `MemberConfig`'s fields.

    Options that are None or empty were not given. Raises ConfigError.
    """
    values = {} if path is None else _read(path)
    given = {key: value for key, value in options.items() if value is not None and value not in ((), [], "")}
    source = f"{path}: " if path is not None else ""
    try:
        config = msgspec.convert(values | given, MemberConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(source + _explain(error)) from None
    problem = _problem(config)
    if problem:
        raise ConfigError(source + problem)
    return config


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML file: {error}") from None


def _explain(error: msgspec.ValidationError) -> str:
    """msgspec's message as "key: what is wrong"."""
    what, _, where = str(error).partition(" - at `$")
    unknown = re.fullmatch(r"Object contains unknown field `(?P<key>[^`]*)`", what)
    missing = re.fullmatch(r"Object missing required field `(?P<key>[^`]*)`", what)
    place = where.rstrip("`").lstrip(".")
    if found := unknown or missing:
        key = ".".join(filter(None, (place, found["key"])))
        if unknown:
            known = LimitsConfig if place == "limits" else ChapConfig if "chap" in place else MemberConfig
            return f"{key}: there is no such key; there are {', '.join(known.__struct_fields__)}"
        return f"{key}: must be given"
    return f"{place}: {what[0].lower()}{what[1:]}".replace("`", "")


def _problem(config: MemberConfig) -> str:
    """What is wrong beyond single types and ranges, or ""."""
    if config.name and not _NAME.fullmatch(config.name):
        return f"name: {config.name!r} is no name: use 1 to 64 lower-case letters, digits, '-' and '.'"
    if not config.group or len(config.group) > 64 or not config.group.isprintable():
        return f"group: {config.group!r} is no name: use 1 to 64 printable characters"
    addresses = [("portals", address) for address in config.portals]
    addresses += [("advertise", address) for address in config.advertise]
    addresses += [("admin", config.admin)] + ([("peer", config.peer)] if config.peer else [])
    for key, address in addresses:
        if split_address(address) is None:
            return f"{key}: {address!r} is no HOST:PORT; write 127.0.0.1:3260 or [::1]:3260"
    if problem := _peer_tls_problem(config):
        return problem
    if problem := congestion_control_problem(config.congestion_control):
        return f"congestion_control: {problem}"
    if len(set(config.portals)) != len(config.portals):
        return "portals: an address is given twice"
    if config.admin in config.portals and not config.admin.endswith(":0"):
        return "admin: it is one of the portals too; give it a port of its own"
    if len(config.advertise) not in (0, 1, len(config.portals)):
        return f"advertise: give one address for all portals, or one for each of the {len(config.portals)}"
    if config.limits.first_burst_length > config.limits.max_burst_length:
        return "limits.first_burst_length: must not be greater than limits.max_burst_length (RFC 7143 13.14)"
    if config.discovery_mutual_chap is not None and not config.discovery_chap:
        return "discovery_mutual_chap: needs discovery_chap too"
    return ""


def _peer_tls_problem(config: MemberConfig) -> str:
    given = {key: getattr(config, key) for key in PEER_TLS_KEYS}
    missing = [key for key, path in given.items() if not path]
    if missing and len(missing) < len(given):
        return f"{missing[0]}: must be given too; TLS between members needs {', '.join(PEER_TLS_KEYS)}"
    if config.peer_tls_ca and not config.peer:
        return "peer_tls_ca: needs peer, the address where other members reach this one"
    return ""


def parse_address(address: str) -> tuple[str, int]:
    """`split_address` of an address that was checked before."""
    found = split_address(address)
    if found is None:
        raise ConfigError(f"{address!r} is no HOST:PORT")
    return found


def member_name(config: MemberConfig, host_name: str) -> str:
    """The configured name, or the host's, made to fit. ConfigError if that cannot be."""
    name = config.name or host_name.partition(".")[0].lower().replace("_", "-")
    if not _NAME.fullmatch(name):
        raise ConfigError(f"the host name {host_name!r} is no member name; give one with --name")
    return name


def read_secret(path: str, what: str) -> str:
    """The first line of a secret file. ConfigError: unreadable or empty."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{what}: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{what}: {path} is no text file") from None
    if not lines or not lines[0].strip():
        raise ConfigError(f"{what}: {path} is empty")
    return lines[0].strip()


def api_token(config: MemberConfig) -> str | None:
    return read_secret(config.api_token_file, "api_token_file") if config.api_token_file else None


def peer_tls(config: MemberConfig) -> PeerTls | None:
    """The certificates for connections between members; None: plain ones. ConfigError for files that cannot be used."""
    if not config.peer_tls_ca:
        return None
    try:
        return make_peer_tls(config.peer_tls_ca, config.peer_tls_cert, config.peer_tls_key)
    except CertificateError as error:
        raise ConfigError(f"peer_tls_{error}") from None


def discovery_access(config: MemberConfig) -> Access:
    """The access rule of discovery sessions. ConfigError for secrets that break the rules of CHAP."""
    users = tuple(_credentials(user, "discovery_chap") for user in config.discovery_chap)
    chap = config.discovery_mutual_chap
    mutual = None if chap is None else _credentials(chap, "discovery_mutual_chap")
    if mutual and any(user.secret == mutual.secret for user in users):
        raise ConfigError("discovery_mutual_chap: its secret must differ from those of discovery_chap (RFC 7143 9.2.1)")
    return Access(chap=users, mutual_chap=mutual)


def _credentials(chap: ChapConfig, key: str) -> Credentials:
    secret = read_secret(chap.secret_file, key).encode()
    if not 12 <= len(secret) <= 128:
        raise ConfigError(f"{key}: the secret of {chap.user!r} has {len(secret)} bytes; it must have 12 to 128")
    return Credentials(chap.user, secret)
