"""Which address of a member an initiator can use: address families, wildcards, networks. Pure; "host:port" is text.

An initiator asked at some portal, so it can reach that portal's address family, and most likely hosts of its network.
Names (of --advertise) have no family; they are for the initiator to resolve, and fit every one.
"""

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

WILDCARDS: Final = frozenset({"0.0.0.0", "::"})

_ADDRESS: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+(?:%[^\s\[\]/%]+)?\]|[^\s:\[\]/]+):(?P<port>[0-9]{1,5})")


def split_address(address: str) -> tuple[str, int] | None:
    """ "host:port" as (host without brackets, port); None if it is none."""
    found = _ADDRESS.fullmatch(address)
    if found is None or int(found["port"]) > 65535:
        return None
    return found["host"].strip("[]"), int(found["port"])


def join_address(host: str, port: int) -> str:
    """ "host:port", with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def usable_portals(portals: Iterable[str], peer: str, asked_at: str) -> list[str]:
    """The portals of another member that an initiator which asked at `asked_at` can use, the nearest first.

    portals  as that member tells them; one on all interfaces ("0.0.0.0:3260") is told with the host of its peer address
    peer     where this member reaches it. On loopback it is on this machine, so that it has the host that was asked.
    Left out: another address family, loopback for whoever asked from outside, link-local IPv6 (its zone is the host's).
    """
    asked = split_address(asked_at)
    if asked is None:
        return []
    asked_host = _ip(asked[0])
    found: dict[str, int] = {}
    for portal in portals:
        parts = split_address(portal)
        if parts is None:
            continue
        host = _concrete_host(parts[0], peer, asked[0])
        if host is not None and _fits(_ip(host), asked_host):
            found.setdefault(join_address(host, parts[1]), _common_bits(_ip(host), asked_host))
    return sorted(found, key=lambda address: -found[address])


def own_portals(portals: Iterable[str], asked_at: str) -> list[str]:
    """The portals of the very member that was asked at `asked_at`, in their order, each once; never empty."""
    asked = split_address(asked_at)
    found = []
    for portal in portals:
        parts = split_address(portal)
        if parts is None or asked is None:
            continue
        # (A wildcard of the other family stays one, and fits nobody.)
        host = asked[0] if parts[0] in WILDCARDS and _same_family(_ip(parts[0]), _ip(asked[0])) else parts[0]
        if host not in WILDCARDS and _fits(_ip(host), _ip(asked[0])):
            found.append(join_address(host, parts[1]))
    return list(dict.fromkeys(found)) or [asked_at]


def _concrete_host(host: str, peer: str, asked_host: str) -> str | None:
    """The host to tell for a portal; None if a wildcard says too little."""
    if host not in WILDCARDS:
        return host
    peer_parts = split_address(peer)
    if peer_parts is None or peer_parts[0] in WILDCARDS:
        return None
    peer_ip = _ip(peer_parts[0])
    concrete = asked_host if peer_ip is not None and peer_ip.is_loopback else peer_parts[0]
    return concrete if _same_family(_ip(concrete), _ip(host)) else None


def _ip(host: str) -> IPv4Address | IPv6Address | None:
    """None: a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def _same_family(one: IPv4Address | IPv6Address | None, other: IPv4Address | IPv6Address | None) -> bool:
    return one is None or other is None or one.version == other.version


def _fits(host: IPv4Address | IPv6Address | None, asked: IPv4Address | IPv6Address | None) -> bool:
    if not _same_family(host, asked):
        return False
    if host is None:
        return True
    if host.is_loopback:
        return asked is not None and asked.is_loopback
    return not (host.version == 6 and host.is_link_local)


def _common_bits(one: IPv4Address | IPv6Address | None, other: IPv4Address | IPv6Address | None) -> int:
    """Leading bits that both share: more of them, more likely the same network. Names share none."""
    if one is None or other is None:
        return 0
    return one.max_prefixlen - (int(one) ^ int(other)).bit_length()
