"""The operational parameters of a session and connection, as login left them (RFC 7143 section 13)."""

from dataclasses import dataclass


@dataclass(slots=True)
class Parameters:
    """Negotiated values. Lengths are bytes, times seconds.

    max_recv_data_segment_length is ours (what the initiator may send in one PDU); max_send_data_segment_length is the
    initiator's declared MaxRecvDataSegmentLength. Defaults are RFC 7143's defaults for an absent key.
    """

    header_digest: bool = False
    data_digest: bool = False
    max_recv_data_segment_length: int = 8192
    max_send_data_segment_length: int = 8192
    max_burst_length: int = 262144
    first_burst_length: int = 65536
    initial_r2t: bool = True
    immediate_data: bool = True
    max_outstanding_r2t: int = 1
    data_pdu_in_order: bool = True
    data_sequence_in_order: bool = True
    default_time2wait_s: int = 2
    default_time2retain_s: int = 20
    error_recovery_level: int = 0
    max_connections: int = 1
    iscsi_protocol_level: int = 1


@dataclass(slots=True, frozen=True)
class TargetLimits:
    """What this target offers in negotiation, and what one connection may cost.

    buffered_bytes_max: for the data of commands, each way: collected from the initiator, or on its way to it. What one
    command needs is always granted. unsent_bytes_max: output that the initiator has not taken yet, above which nothing
    more is read from it.
    """

    max_recv_data_segment_length: int = 1 << 20
    max_burst_length: int = 1 << 20
    first_burst_length: int = 262144
    max_outstanding_r2t: int = 8
    default_time2wait_s: int = 0
    default_time2retain_s: int = 20
    command_window: int = 256
    login_timeout_s: float = 15.0
    nop_interval_s: float = 30.0
    nop_timeout_s: float = 45.0
    buffered_bytes_max: int = 16 << 20
    unsent_bytes_max: int = 4 << 20
