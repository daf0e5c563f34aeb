"""Checks of redirection at login, and of what discovery and login say about portals and portal groups."""

from typing import Final

from initiator_sim.conformance.bench import Bench, Hop
from initiator_sim.conformance.check import Check, NotApplicable, expect
from initiator_sim.login import LoginError
from initiator_sim.nexus import split_address
from san_target.wire.text import TextError, decode_pairs

TEMPORARILY: Final = 0x0101


async def _way(bench: Bench, portal: str) -> list[Hop]:
    """The portals that a login at `portal` was sent through; the last one let it in, or refused it."""
    try:
        session = await bench.login(portal)
        await session.logout()
    except LoginError:
        pass  # what follows after a redirection is not looked at here
    return bench.hops


async def _redirections(bench: Bench) -> list[Hop]:
    """The answers that redirected, through every portal. Raises NotApplicable without any."""
    found = [hop for portal in bench.setting.portals for hop in await _way(bench, portal) if hop.sent_to is not None]
    if not found:
        raise NotApplicable("the target did not redirect")
    return found


async def before_authentication(bench: Bench) -> str:
    found = await _redirections(bench)
    for hop in found:
        begun = sorted(key for key in hop.keys if key.startswith("CHAP_"))
        expect(
            hop.responses == 1 and not begun,
            f"{hop.address} redirected with its response {hop.responses}, after {', '.join(begun) or 'others'}",
            "the redirection in the first response: a host takes one out of the midst of CHAP for a wrong secret",
        )
    return f"{len(found)} redirections"


async def loop(bench: Bench) -> str:
    longest: list[Hop] = []
    for portal in bench.setting.portals:
        session = await bench.login(portal)
        await session.logout()
        hops = bench.hops
        addresses = [split_address(hop.address) for hop in hops]
        way = " -> ".join(hop.address for hop in hops)
        expect(len(set(addresses)) == len(addresses), f"a portal was visited twice: {way}", "no way back")
        longest = max(longest, hops, key=len)
    if len(longest) < 2:
        raise NotApplicable("the target did not redirect")
    return " -> ".join(hop.address for hop in longest)


async def without_tag(bench: Bench) -> None:
    for hop in await _redirections(bench):
        expect("," not in str(hop.sent_to), f"TargetAddress={hop.sent_to}", "no portal group tag in a redirection")


async def temporarily(bench: Bench) -> None:
    for hop in await _redirections(bench):
        expect(
            hop.status == TEMPORARILY,
            f"{hop.address} redirected with status 0x{hop.status:04x}",
            "0x0101: libiscsi and with it QEMU know no other",
        )


async def same_portal_group(bench: Bench) -> str:
    tags = {}
    sent = 0
    for portal in bench.setting.portals:
        session = await bench.login(portal)
        tags[session.address] = session.tag
        await session.logout()
        if len(bench.hops) < 2:
            continue
        sent += 1
        expect(
            session.tag is not None and session.tag == (await _discovered(bench)).get(portal, session.tag),
            f"sent from {portal} to {session.address}, portal group {session.tag}",
            "the portal group that discovery told: the tag is part of the nexus",
        )
    if len(tags) < 2 and not sent:
        raise NotApplicable("all sessions end at one portal")
    expect(len(set(tags.values())) == 1, f"portal groups {tags}", "one portal group for all members")
    return f"portal group {next(iter(tags.values()))}"


async def _discovered(bench: Bench, portal: str | None = None) -> dict[str, int]:
    """Addresses of the target as SendTargets=All tells them, with their tags. Raises Failed for a malformed answer."""
    return {address: tag for address, tag in await _records(bench, portal) if tag is not None}


async def _records(bench: Bench, portal: str | None) -> list[tuple[str, int | None]]:
    session = await bench.discovery(portal)
    answer = await session.text([("SendTargets", "All")])
    await session.logout()
    found: list[tuple[str, int | None]] = []
    name = None
    try:
        pairs = decode_pairs(answer.data)
    except TextError as error:
        expect(False, f"malformed text: {error}", "key=value pairs")
        return found
    for key, value in pairs:
        if key == "TargetName":
            name = value
        elif key == "TargetAddress" and name == bench.setting.iqn:
            address, comma, tag = value.rpartition(",")
            found.append((address, int(tag)) if comma and tag.isdigit() else (value, None))
    return found


async def send_targets(bench: Bench) -> str:
    records = await _records(bench, None)
    expect(records, "the target is not in the answer, or without an address", "TargetName with its TargetAddress")
    for address, tag in records:
        expect(tag is not None, f"TargetAddress={address}", "the portal group tag behind a comma")
        split_address(address)
    return ", ".join(f"{address},{tag}" for address, tag in records)


async def tags_agree(bench: Bench) -> None:
    for address, tag in (await _discovered(bench)).items():
        if address not in bench.setting.portals:
            continue
        session = await bench.login(address)
        expect(
            session.tag == tag or session.address != address,
            f"{address}: SendTargets says portal group {tag}, the login {session.tag}",
            "the same tag in both",
        )
        await session.logout()


RFC: Final = "RFC 7143"
CHECKS: Final = (
    Check(
        "redirect-before-authentication",
        f"{RFC} 11.13.5; practice",
        "A login is redirected before authentication begins",
        before_authentication,
    ),
    Check("redirect-no-loop", f"{RFC} 11.13.5", "Following redirections ends in a login", loop),
    Check("redirect-without-tag", f"{RFC} 13.8", "A redirection's TargetAddress has no portal group tag", without_tag),
    Check("redirect-temporarily", f"{RFC} 11.13.5; practice", "Redirections are temporary, status 0x0101", temporarily),
    Check(
        "redirect-portal-group",
        f"{RFC} 4.4.3, 13.9",
        "Members that sessions are sent to are one portal group",
        same_portal_group,
    ),
    Check(
        "discovery-tag", f"{RFC} 13.8, appendix C", "SendTargets tells addresses with portal group tags", send_targets
    ),
    Check("discovery-tag-agrees", f"{RFC} 13.9", "Discovery and login tell the same portal group", tags_agree),
)
