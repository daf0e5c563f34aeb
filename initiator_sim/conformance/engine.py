"""Runs checks one after the other: each in bounded time, none able to stop the others."""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from initiator_sim import cdb as cdbs
from initiator_sim.conformance.bench import SCRATCH_BLOCKS, Bench, Setting
from initiator_sim.conformance.check import Check, Failed, NotApplicable, Result, Verdict
from initiator_sim.conformance.wire import Gone, Silence, Unreachable
from initiator_sim.login import LoginError
from initiator_sim.session import ProtocolError
from initiator_sim.task import CHECK_CONDITION

CLEANING_S: Final = 10.0
MISSES_MAX: Final = 3
_DATA_PROTECT: Final = 0x07


async def run_checks(
    setting: Setting, checks: Iterable[Check], tell: Callable[[Result], None] | None = None
) -> list[Result]:
    """The result of every check, in order; tell(result) is called as each is there.

    Once the target is not there any more, what is left is not tried.
    """
    results: list[Result] = []
    for check in checks:
        if len(results) >= MISSES_MAX and not any(result.reached for result in results[-MISSES_MAX:]):
            result = Result(check, Verdict.NOT_APPLICABLE, "the target is not there any more", reached=False)
        else:
            result = await run_check(setting, check)
        results.append(result)
        if tell is not None:
            tell(result)
    return results


async def run_check(setting: Setting, check: Check) -> Result:
    """One check, with the scratch blocks saved and put back. Does not raise for anything that the target does."""
    began = time.monotonic()
    bench = Bench(setting)
    verdict, seen, wanted = Verdict.PASSED, "", ""
    saved = b""
    reached = True
    try:
        async with asyncio.timeout(check.limit_s):
            if check.writes:
                saved = await _save(bench)
            seen = await _judged(check, bench) or ""
    except NotApplicable as reason:
        verdict, seen = Verdict.NOT_APPLICABLE, str(reason)
    except Failed as failure:
        verdict, seen, wanted = Verdict.FAILED, failure.seen, failure.wanted or check.title
    except Unreachable as error:
        reached = False
        verdict, seen, wanted = Verdict.FAILED, f"no connection: {error}", check.title
    except TimeoutError:
        verdict, seen, wanted = Verdict.FAILED, f"no end after {check.limit_s:g} s", check.title
    trouble = await _clean_up(bench, saved)
    if trouble and verdict is Verdict.PASSED:
        verdict, wanted = Verdict.FAILED, "a target that serves after the check as before"
    seen = "; ".join(filter(None, (seen, trouble)))
    return Result(check, verdict, seen, wanted, time.monotonic() - began, reached)


async def _judged(check: Check, bench: Bench) -> str | None:
    """The check, with what the target did to it as Failed."""
    try:
        return await check.run(bench)
    except Gone as error:
        raise Failed(f"the connection ended ({error})") from None
    except Silence as error:
        raise Failed(f"no answer: {error}") from None
    except (LoginError, ProtocolError) as error:
        raise Failed(str(error)) from None
    except (ValueError, LookupError) as error:
        raise Failed(f"what the target said cannot be read: {error}") from None


async def _save(bench: Bench) -> bytes:
    """The contents of the scratch blocks. Raises NotApplicable where they cannot be written."""
    if bench.setting.blocks < 2 * SCRATCH_BLOCKS:
        raise NotApplicable(f"the disk has fewer than {2 * SCRATCH_BLOCKS} blocks")
    try:
        session = await bench.ready()
        saved = await bench.read(session, bench.scratch_lba, SCRATCH_BLOCKS)
        outcome = await session.command(cdbs.write16(bench.scratch_lba, SCRATCH_BLOCKS), data=saved)
    except (LoginError, ProtocolError, Gone, Silence) as error:
        raise Failed(f"the scratch blocks cannot be saved: {error}", "a disk that can be read") from None
    finally:
        bench.close()
        bench.places.clear()
    if outcome.status == CHECK_CONDITION and outcome.sense is not None and outcome.sense.key == _DATA_PROTECT:
        raise NotApplicable("the disk is write protected")
    if not outcome.good:
        raise NotApplicable(f"the disk cannot be written: {outcome}")
    return saved


async def _clean_up(bench: Bench, saved: bytes) -> str:
    """Undo what the check asked to have undone, end its connections, put the scratch blocks back; what went wrong."""
    troubles = []
    for work in (bench.undo, lambda: _put_back(bench, saved)):
        try:
            async with asyncio.timeout(CLEANING_S):
                await work()
        except (
            Failed,
            NotApplicable,
            LoginError,
            ProtocolError,
            Gone,
            Silence,
            Unreachable,
            TimeoutError,
        ) as error:
            troubles.append(f"cleaning up failed: {error or 'no answer'}")
        bench.close()
    return "; ".join(troubles)


async def _put_back(bench: Bench, saved: bytes) -> None:
    bench.close()
    if saved:
        session = await bench.ready()
        await bench.write(session, bench.scratch_lba, saved)
        await session.logout()


def report(setting: Setting, results: Iterable[Result]) -> dict[str, Any]:
    """The document of --json."""
    results = list(results)
    return {
        "portals": list(setting.portals),
        "iqn": setting.iqn,
        **{verdict.name.lower(): sum(each.verdict is verdict for each in results) for verdict in Verdict},
        "checks": [each.as_json() for each in results],
    }
