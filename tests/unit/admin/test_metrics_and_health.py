"""What a scrape and a load balancer see."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from san_target.admin.metrics import MEMBER_COUNTERS, MEMBER_GAUGES, VOLUME_COUNTERS, VOLUME_GAUGES
from san_target.admin.service import Counters, Health, VolumeCounters
from tests.unit.admin.client import AppClient
from tests.unit.admin.fake_service import FakeService

ROOT = Path(__file__).resolve().parents[3]


def samples(client: AppClient) -> dict[tuple[str, str], float]:
    """(sample name, its label value or "") -> value."""
    found = {}
    for family in parse_text(client.get("/metrics").text):
        for sample in family.samples:
            found[sample.name, next(iter(sample.labels.values()), "")] = sample.value
    return found


def test_scrape_reads_the_counters(client: AppClient, service: FakeService) -> None:
    service.counters_value = Counters(
        commands=7, read_bytes=8192, written_bytes=512, errors=2, logins=3, rejects=4, pool_free_bytes=1 << 40
    )
    client.post("/api/v1/volumes", json={"name": "disk", "size_bytes": 1 << 20})
    service.log_in("disk")
    found = samples(client)
    assert found["san_target_commands_total", ""] == 7
    assert found["san_target_read_bytes_total", ""] == 8192
    assert found["san_target_written_bytes_total", ""] == 512
    assert found["san_target_errors_total", ""] == 2
    assert found["san_target_logins_total", ""] == 3
    assert found["san_target_rejects_total", ""] == 4
    assert found["san_target_sessions", ""] == 1
    assert found["san_target_pool_free_bytes", ""] == 1 << 40
    assert found["san_target_volume_size_bytes", "disk"] == 1 << 20
    service.counters_value = Counters(commands=9)
    assert samples(client)["san_target_commands_total", ""] == 9


def test_every_counter_is_shown() -> None:
    assert {*MEMBER_COUNTERS, *MEMBER_GAUGES, "volumes"} == {*Counters.__struct_fields__}
    assert {*VOLUME_COUNTERS, *VOLUME_GAUGES, "volume"} == {*VolumeCounters.__struct_fields__}


def test_openmetrics_is_spoken_when_asked_for(client: AppClient) -> None:
    accept = "application/openmetrics-text; version=1.0.0"
    answer = client.get("/metrics", headers={"Accept": accept})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert "san_target_commands" in {family.name for family in parse_openmetrics(answer.text)}  # type: ignore[no-untyped-call]


def test_every_metric_is_documented(client: AppClient) -> None:
    names = {re.sub(r"_(total|info)$", "", name) for name, _ in samples(client)}
    text = (ROOT / "docs" / "api.md").read_text()
    documented = {re.sub(r"_(total|info)$", "", name) for name in re.findall(r"`(san_target\w*)", text)}
    client.post("/api/v1/volumes", json={"name": "disk", "size_bytes": 512})
    names |= {re.sub(r"_(total|info)$", "", name) for name, _ in samples(client)}
    assert names == documented


@pytest.mark.parametrize(
    ("status", "code"), [("ok", 200), ("degraded", 200), ("starting", 503), ("stopping", 503), ("failed", 503)]
)
def test_health(
    client: AppClient,
    service: FakeService,
    status: Literal["ok", "degraded", "starting", "stopping", "failed"],
    code: int,
) -> None:
    service.health_value = Health(status=status, reasons=("why",))
    answer = client.get("/healthz")
    assert (answer.status_code, answer.json()) == (code, {"status": status, "reasons": ["why"]})
    assert samples(client)["san_target_health", status] == 1
    assert sum(value for (name, _), value in samples(client).items() if name == "san_target_health") == 1
