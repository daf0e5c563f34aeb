"""How a check makes the target do something to a session: the HTTP API of a san-target member, or any command."""

import asyncio
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from initiator_sim.conformance.check import NotApplicable

COMMAND_S: Final = 30.0
_MESSAGE_CHARACTERS: Final = 200


@dataclass(frozen=True, slots=True)
class Victim:
    """The session that something is to be done to."""

    portal: str
    iqn: str
    initiator: str
    isid: bytes
    tsih: int

    def environment(self) -> dict[str, str]:
        """What a trigger command finds in its environment."""
        return {
            "ISCSI_PORTAL": self.portal,
            "ISCSI_TARGET": self.iqn,
            "ISCSI_INITIATOR": self.initiator,
            "ISCSI_ISID": self.isid.hex(),
            "ISCSI_TSIH": str(self.tsih),
        }


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the user allowed. trigger: a shell command that makes the target ask a session to leave; api: the URL of a
    member's HTTP API, with its token."""

    trigger: str | None = None
    api: str | None = None
    token: str | None = None

    async def send_away(self, victim: Victim) -> str:
        """Have the session asked to go, or moved to another member, or dropped; says which. Raises NotApplicable."""
        if self.trigger is not None:
            await _run(self.trigger, victim.environment())
            return "by the trigger"
        if self.api is not None:
            return await self._by_api(victim)
        raise NotApplicable("nothing makes the target ask (--trigger COMMAND, or --api URL of a san-target member)")

    async def _by_api(self, victim: Victim) -> str:
        for session in await self._ask("GET", "/sessions"):
            if session.get("initiator") == victim.initiator and session.get("isid") == victim.isid.hex():
                break
        else:
            raise NotApplicable(f"the API at {self.api} does not list the session")
        path = f"/sessions/{quote(str(session['id']), safe='')}"
        others = [each["name"] for each in await self._ask("GET", "/members") if each["name"] != session.get("member")]
        for other in others:
            if await self._try("POST", f"{path}/move", {"to": other}):
                return f"moved to {other}"
        await self._ask("DELETE", path)
        return "dropped"

    async def _try(self, method: str, path: str, body: object) -> bool:
        try:
            await self._ask(method, path, body)
        except NotApplicable:
            return False
        return True

    async def _ask(self, method: str, path: str, body: object = None) -> Any:
        """The answer of the API; None where it has none. Raises NotApplicable for a refusal."""
        import httpx

        headers = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        try:
            async with httpx.AsyncClient(headers=headers, timeout=COMMAND_S, trust_env=False) as client:
                answer = await client.request(method, f"{str(self.api).rstrip('/')}/api/v1{path}", json=body)
            if answer.status_code < 300:
                return answer.json() if answer.content else None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise NotApplicable(f"the API at {self.api}: {error or type(error).__name__}") from None
        raise NotApplicable(f"the API at {self.api} answers {answer.status_code} to {method} {path}")


async def _run(command: str, environment: Mapping[str, str]) -> None:
    """Run a shell command to its end. Raises NotApplicable where it fails or takes too long."""
    process = await asyncio.create_subprocess_shell(
        command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(COMMAND_S):
            _, errors = await process.communicate()
    except TimeoutError:
        raise NotApplicable(f"the trigger did not end within {COMMAND_S:.0f} s") from None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)  # with all that it has started
            await process.wait()
    if process.returncode:
        told = errors.decode(errors="replace").strip()[-_MESSAGE_CHARACTERS:]
        raise NotApplicable(f"the trigger ended with status {process.returncode}: {told}")
