"""Prometheus metrics, read from the member's plain counters at the moment of a scrape; docs/api.md lists the names."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

import san_target

if TYPE_CHECKING:
    from san_target.admin.service import MemberService

MEMBER_COUNTERS = {
    "commands": "SCSI commands completed",
    "read_bytes": "bytes sent to initiators as SCSI data",
    "written_bytes": "bytes received from initiators as SCSI data",
    "errors": "SCSI commands that ended with CHECK CONDITION or worse",
    "connections_accepted": "TCP connections accepted on iSCSI portals",
    "logins": "logins that reached the full feature phase, discovery included",
    "login_failures": "logins refused, given up or timed out; redirections left out",
    "redirections": "logins sent to another member",
    "reinstatements": "live sessions ended by another login of their initiator port",
    "rejects": "Reject PDUs sent",
    "digest_errors": "PDUs with a wrong header or data digest",
    "task_management": "task management requests received",
    "migrated_bytes": "bytes of blocks that went from this member to others, holes left out",
    "migration_restarts": "pieces that had to be copied to another member anew",
    "mirrored_writes": "changes by initiators that were made at another member, too, as their blocks went there",
    "sessions_moved": "sessions moved to other members",
    "sessions_not_moved": "sessions that were to be moved, and could not be, or did not arrive",
    "sessions_disobeyed": "sessions that did not go when asked to, so that their connection was closed",
}
MEMBER_GAUGES = {
    "migrations": "migrations that this member works on",
    "sessions": "sessions logged in",
    "shared_initiator_ports": "initiator ports that several machines use, ending each other's sessions",
    "connections": "open iSCSI connections",
    "pool_capacity_bytes": "size of the file system that holds the pool",
    "pool_free_bytes": "free space of the pool",
}
VOLUME_COUNTERS = {
    "commands": "SCSI commands completed",
    "read_commands": "commands that read blocks",
    "write_commands": "commands that wrote blocks",
    "read_bytes": "bytes sent to initiators as SCSI data",
    "written_bytes": "bytes received from initiators as SCSI data",
    "errors": "SCSI commands that ended with CHECK CONDITION or worse",
}
VOLUME_GAUGES = {
    "sessions": "sessions logged in",
    "size_bytes": "size as initiators see it",
    "allocated_bytes": "pool space taken",
}
# Of the member's last own load report: the numbers that the others decide by.
LOAD_GAUGES = {
    "client_iops": "commands per second of sessions here",
    "client_bytes_per_second": "data per second of sessions here",
    "depth": "commands at a time, of all sessions here",
    "read_share": "share of reads in what sessions here ask for",
    "sequential_share": "share of commands that begin where the one before ended",
    "owned_iops": "I/O per second on blocks of this member",
    "owned_bytes_per_second": "data per second of blocks of this member",
    "served_iops": "of that, for other members",
    "served_bytes_per_second": "of that, for other members",
    "forwarded_iops": "I/O per second of sessions here on blocks of other members",
    "forwarded_bytes_per_second": "data per second of sessions here of blocks of other members",
    "storage_latency_s": "mean time that I/O waits which the cache cannot serve",
    "storage_waits": "I/O per second that the cache cannot serve",
    "cpu_share": "CPU time per second of this process",
    "cpu_limit": "CPU time per second that this process may use, at most 1",
    "loop_delay_s": "how late the member comes to what is to be done",
    "network_bytes_per_second": "data per second to and from initiators and members",
}
HEALTH_STATES = ("ok", "degraded", "starting", "stopping", "failed")


class MemberCollector(Collector):
    """Nothing is counted here: each scrape reads `MemberService.counters()` once."""

    def __init__(self, service: "MemberService") -> None:
        self._service = service

    def describe(self) -> list[Metric]:
        """Nothing to say at registration: names are fixed, and the service may not serve yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("san_target", "this member's program", value={"version": san_target.__version__})
        health = GaugeMetricFamily("san_target_health", "1 for the member's present state", labels=["state"])
        present = self._service.health().status
        for state in HEALTH_STATES:
            health.add_metric([state], float(state == present))
        yield health
        counters = self._service.counters()
        for field, text in MEMBER_COUNTERS.items():
            yield CounterMetricFamily(f"san_target_{field}", text, value=getattr(counters, field))
        for field, text in MEMBER_GAUGES.items():
            yield GaugeMetricFamily(f"san_target_{field}", text, value=getattr(counters, field))
        yield from self._load()
        families: list[tuple[str, CounterMetricFamily | GaugeMetricFamily]] = [
            (field, CounterMetricFamily(f"san_target_volume_{field}", text, labels=["volume"]))
            for field, text in VOLUME_COUNTERS.items()
        ]
        families += [
            (field, GaugeMetricFamily(f"san_target_volume_{field}", text, labels=["volume"]))
            for field, text in VOLUME_GAUGES.items()
        ]
        for field, family in families:
            for volume in counters.volumes:
                family.add_metric([volume.volume], getattr(volume, field))
            yield family

    def _load(self) -> Iterator[Metric]:
        """Each member tells of itself only; a scraper asks all of them."""
        own = next((one.report for one in self._service.loads() if one.report and one.is_own), None)
        for field, text in LOAD_GAUGES.items():
            value = 0.0 if own is None else getattr(own, field)
            yield GaugeMetricFamily(f"san_target_load_{field}", text, value=value)


def registry_for(service: "MemberService") -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(MemberCollector(service))
    return registry


def exposition(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """The scrape's body and content type, in the format the scraper asks for."""
    encoder, content_type = choose_encoder(accept)
    return encoder(registry), content_type
