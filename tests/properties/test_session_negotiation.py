"""Negotiation and login under arbitrary input: never a crash, always a legal answer, and both sides agree.

The model below is written from RFC 7143 sections 6.2 and 13 alone and shares no code with the key table: it is what an
initiator makes of its own offers and the target's answers.
"""

import asyncio
import re
from dataclasses import asdict
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from san_target.session.discovery import TextExchange, TextRequest
from san_target.session.parameters import Parameters, TargetLimits
from san_target.session.target import Access, Credentials
from tests.unit.session.login_support import (
    DISCOVERY_NAMES,
    INITIATOR,
    NAMES,
    PORTAL,
    TARGET,
    FakeDirectory,
    make_login,
    make_request,
    make_target,
    status,
    text,
)

RESERVED = 0xFFFFFFFF
STATUSES = {0x0000, 0x0101, 0x0301, 0x0302} | {*range(0x0200, 0x0204), *range(0x0205, 0x0208), *range(0x0209, 0x020C)}

# name -> (parameter, result function, lowest, highest, default)
NUMBERS = {
    "MaxConnections": ("max_connections", min, 1, 65535, 1),
    "MaxBurstLength": ("max_burst_length", min, 512, 16777215, 262144),
    "FirstBurstLength": ("first_burst_length", min, 512, 16777215, 65536),
    "DefaultTime2Wait": ("default_time2wait_s", max, 0, 3600, 2),
    "DefaultTime2Retain": ("default_time2retain_s", min, 0, 3600, 20),
    "MaxOutstandingR2T": ("max_outstanding_r2t", min, 1, 65535, 1),
    "ErrorRecoveryLevel": ("error_recovery_level", min, 0, 2, 0),
    "iSCSIProtocolLevel": ("iscsi_protocol_level", min, 0, 31, 1),
}
FLAGS = {
    "InitialR2T": ("initial_r2t", any),
    "ImmediateData": ("immediate_data", all),
    "DataPDUInOrder": ("data_pdu_in_order", any),
    "DataSequenceInOrder": ("data_sequence_in_order", any),
}
DIGESTS = {"HeaderDigest": "header_digest", "DataDigest": "data_digest"}
NOT_IN_DISCOVERY = {*NUMBERS, *FLAGS, "TaskReporting"} - {
    "DefaultTime2Wait",
    "DefaultTime2Retain",
    "ErrorRecoveryLevel",
}
OBSOLETE = {
    "IFMarker": {"No", "Reject"},
    "OFMarker": {"No", "Reject"},
    "IFMarkInt": {"Reject"},
    "OFMarkInt": {"Reject"},
}
NUMBER_TEXT = re.compile(r"(0|[1-9][0-9]*)|0[xX]([0-9a-fA-F]+)")

LIMITS = st.builds(
    TargetLimits,
    max_recv_data_segment_length=st.integers(512, 1 << 24),
    max_burst_length=st.integers(512, 16777215),
    first_burst_length=st.integers(512, 16777215),
    max_outstanding_r2t=st.integers(1, 65535),
    default_time2wait_s=st.integers(0, 3600),
    default_time2retain_s=st.integers(0, 3600),
)


def number_texts() -> st.SearchStrategy[str]:
    edges = st.sampled_from(
        [0, 1, 2, 3, 31, 32, 511, 512, 3600, 3601, 65535, 65536, 262144, 16777215, 16777216, 1 << 64]
    )
    numbers = edges | st.integers(0, 1 << 25)
    return numbers.map(str) | numbers.map(hex) | st.sampled_from(["", "-1", "007", "1.5", "0x", "Yes", "1~2"])


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
DIGEST_LISTS = st.lists(st.sampled_from(["CRC32C", "None", "X-md5", "crc32c", ""]), min_size=1, max_size=4).map(
    ",".join
)
OFFERS = st.one_of(
    st.tuples(st.sampled_from(sorted(NUMBERS)), number_texts()),
    st.tuples(st.sampled_from(sorted(FLAGS)), st.sampled_from(["Yes", "No", "yes", "", "Irrelevant", "Reject"])),
    st.tuples(st.sampled_from(sorted(DIGESTS)), DIGEST_LISTS),
    st.tuples(
        st.just("TaskReporting"), st.sampled_from(["RFC3720", "FastAbort", "FastAbort,RFC3720", "ResponseFence"])
    ),
    st.tuples(st.sampled_from(sorted(OBSOLETE)), st.sampled_from(["Yes", "No", "2048", "1~65535"])),
    st.tuples(st.just("MaxRecvDataSegmentLength"), st.integers(512, 16777215).map(str)),
    st.tuples(st.from_regex(r"\A[XYZ]-[a-z.]{1,20}\Z"), WORDS),
)
OFFER_SETS = st.lists(OFFERS, max_size=25, unique_by=lambda offer: offer[0])


def number(value: str, lowest: int, highest: int) -> int | None:
    found = NUMBER_TEXT.fullmatch(value)
    if not found:
        return None
    result = int(found[1]) if found[1] else int(found[2], 16)
    return result if lowest <= result <= highest else None


def initiators_view(offers: dict[str, str], answers: dict[str, str]) -> dict[str, Any]:
    """The parameters as the initiator takes them: an answer that is a value counts, else the default."""
    view: dict[str, Any] = {}
    for name, (parameter, _, lowest, highest, default) in NUMBERS.items():
        answered = number(answers.get(name, ""), lowest, highest)
        view[parameter] = default if answered is None else answered
    for name, (parameter, function) in FLAGS.items():
        default_flag = True
        view[parameter] = {"Yes": True, "No": False}.get(answers.get(name, ""), default_flag)
        if name in offers and answers[name] in ("Yes", "No"):
            # OR with Yes is Yes, AND with No is No, whatever the target wants.
            forced = function is any
            if (offers[name] == "Yes") is forced:
                assert view[parameter] is forced
    for name, parameter in DIGESTS.items():
        view[parameter] = answers.get(name) == "CRC32C"
    view["max_send_data_segment_length"] = int(offers.get("MaxRecvDataSegmentLength", "8192"))
    view["max_recv_data_segment_length"] = int(answers.get("MaxRecvDataSegmentLength", "8192"))
    # RFC 7143 13.14: FirstBurstLength must not exceed MaxBurstLength, whatever was said of either.
    view["first_burst_length"] = min(view["first_burst_length"], view["max_burst_length"])
    return view


def check_answer(name: str, offered: str, answered: str, limits: TargetLimits, discovery: bool) -> None:
    if discovery and name in NOT_IN_DISCOVERY:
        assert answered == "Irrelevant"
    elif name in NUMBERS:
        _, function, lowest, highest, _ = NUMBERS[name]
        value = number(offered, lowest, highest)
        if value is None:
            assert answered == "Reject"
            return
        answer = number(answered, lowest, highest)
        assert answer is not None
        assert answered == str(answer)
        assert function(value, answer) == answer
        wanted = {
            "MaxBurstLength": limits.max_burst_length,
            "DefaultTime2Wait": limits.default_time2wait_s,
            "DefaultTime2Retain": limits.default_time2retain_s,
            "MaxOutstandingR2T": limits.max_outstanding_r2t,
            "MaxConnections": 1,
            "ErrorRecoveryLevel": 0,
            "iSCSIProtocolLevel": 2,
        }
        if name in wanted:
            assert answer == function(value, wanted[name])
        else:
            assert answer <= limits.first_burst_length
    elif name in FLAGS:
        assert answered in ({"Yes", "No"} if offered in ("Yes", "No") else {"Reject"})
    elif name in DIGESTS:
        known = [item for item in offered.split(",") if item in ("CRC32C", "None")]
        assert answered == (known[0] if known else "Reject")
    elif name == "TaskReporting":
        assert answered == ("RFC3720" if "RFC3720" in offered.split(",") else "Reject")
    elif name in OBSOLETE:
        assert answered in OBSOLETE[name]
    else:
        assert answered == "NotUnderstood"


@settings(deadline=None)
@given(offers=OFFER_SETS, limits=LIMITS, discovery=st.booleans(), cuts=st.lists(st.integers(0, 25), max_size=3))
def test_both_sides_end_with_the_same_parameters(
    offers: list[tuple[str, str]], limits: TargetLimits, discovery: bool, cuts: list[int]
) -> None:
    """The offers may come in one request or be spread over several; every one is answered exactly once."""
    login = make_login(limits=limits)
    ends = sorted({*(cut for cut in cuts if cut < len(offers)), len(offers)})
    answered: list[tuple[str, str]] = []
    start = 0
    for end in ends:
        names = (DISCOVERY_NAMES if discovery else NAMES) if start == 0 and not login._identified else ()
        data = text(*names, *(f"{name}={value}" for name, value in offers[start:end]))
        response = asyncio.run(login.respond(make_request(data, transit=end == len(offers))))
        assert status(response) == 0, login.reason
        answered += [
            (key, value) for key, _, value in (line.partition("=") for line in response.data.decode().split("\0")[:-1])
        ]
        start = end
    answers = dict(answered)
    assert len(answers) == len(answered)
    assert answers.pop("TargetPortalGroupTag", None) == (None if discovery else "1")
    assert answers["MaxRecvDataSegmentLength"] == str(limits.max_recv_data_segment_length)
    offered = dict(offers)
    declared = {"MaxRecvDataSegmentLength"}
    assert answers.keys() - declared == offered.keys() - declared
    for name in offered.keys() - declared:
        check_answer(name, offered[name], answers[name], limits, discovery)
    assert login.result is not None
    assert asdict(login.result.parameters) == initiators_view(offered, answers)


# --- Arbitrary input --------------------------------------------------------------------------------------------------

IDENTITY_NAMES = ("InitiatorName", "InitiatorAlias", "TargetName", "SessionType", "SendTargets", "X#NodeArchitecture")
TARGET_NAMES = ("TargetAlias", "TargetAddress", "TargetPortalGroupTag", "MaxRecvDataSegmentLength", "TaskReporting")
CHAP_NAMES = ("AuthMethod", "CHAP_A", "CHAP_I", "CHAP_C", "CHAP_N", "CHAP_R", "X-net.example.a")
KEY_NAMES = [*NUMBERS, *FLAGS, *DIGESTS, *OBSOLETE, *IDENTITY_NAMES, *TARGET_NAMES, *CHAP_NAMES]
VALUES = st.one_of(
    number_texts(),
    WORDS,
    st.sampled_from(["Yes", "No", "None", "CHAP", "CHAP,None", "5", "7,8", "0x00", "0bAAAA", "alice", "All"]),
    st.sampled_from(["Reject", "Irrelevant", "NotUnderstood", "Normal", "Discovery", INITIATOR, TARGET]),
    st.integers(200, 300).map(lambda length: "v" * length),
)
PAIRS = st.tuples(st.sampled_from(KEY_NAMES), VALUES).map("=".join)
DATA = st.one_of(
    st.lists(PAIRS, max_size=5).map(lambda pairs: text(*pairs)),
    st.lists(PAIRS, max_size=3).map(lambda pairs: text(*NAMES, *pairs)),
    st.lists(PAIRS, max_size=3).map(lambda pairs: text(*NAMES, "AuthMethod=CHAP", *pairs)),
    st.sampled_from([text(*NAMES), text(*DISCOVERY_NAMES), text(*NAMES, "AuthMethod=CHAP"), text("CHAP_A=7"), b""]),
    st.binary(max_size=60),
)
STAGES = st.sampled_from([0, 0, 0, 1, 1, 1, 2, 3])
LOGIN_REQUESTS = st.builds(
    make_request,
    DATA,
    transit=st.booleans(),
    continue_=st.sampled_from([False, False, False, True]),
    current_stage=STAGES,
    next_stage=st.sampled_from([1, 3, 3, 0, 2]),
    version_min=st.sampled_from([0] * 9 + [1]),
    tsih=st.sampled_from([0] * 9 + [5]),
    itt=st.sampled_from([1] * 9 + [2]),
)


@settings(max_examples=300, deadline=None)
@given(requests=st.lists(LOGIN_REQUESTS, max_size=12), chap=st.booleans(), weak_chap=st.booleans(), ready=st.booleans())
def test_any_login_ends_in_a_documented_way(requests: list[Any], chap: bool, weak_chap: bool, ready: bool) -> None:
    access = Access(chap=(Credentials("alice", b"alice-secret-1"),)) if chap else Access()
    login = make_login(FakeDirectory([make_target(access=access, ready=ready)]), weak_chap)
    ended = False
    for request in requests:
        response = asyncio.run(login.respond(request))
        assert status(response) in STATUSES
        assert login.failed is (status(response) != 0)
        assert len(response.data) <= 8192
        assert (response.itt, response.isid) == (request.itt, request.isid)
        if ended:
            assert status(response) == 0x020B
        if status(response) != 0:
            assert not response.transit
            assert not response.continue_
            ended = True
            continue
        assert response.current_stage == request.current_stage
        assert not (response.transit and response.continue_)
        if response.transit:
            assert request.transit
            assert response.next_stage == request.next_stage
        if request.continue_:
            assert response.data == b""
        final = response.transit and response.next_stage == 3
        assert final is (login.result is not None)
        ended = final
    if login.result is not None and login.result.target is not None:
        # alice's secret is not among the values tried.
        assert not chap


TEXT_REQUESTS = st.tuples(
    st.booleans(),
    st.sampled_from([False, False, True]),
    st.integers(1, 2),
    st.sampled_from([None, None, 0, RESERVED]),
    DATA,
)


@settings(max_examples=300, deadline=None)
@given(
    requests=st.lists(TEXT_REQUESTS, max_size=12),
    normal=st.booleans(),
    segment_length=st.integers(512, 700),
    targets=st.integers(1, 12),
)
def test_any_text_exchange_is_answered_by_the_rules(
    requests: list[Any], normal: bool, segment_length: int, targets: int
) -> None:
    directory = FakeDirectory([make_target(f"iqn.2020-01.net.example:{'x' * 100}{n}") for n in range(targets)])
    parameters = Parameters(max_send_data_segment_length=segment_length)
    exchange = TextExchange(directory, parameters, INITIATOR, directory.targets[0] if normal else None, PORTAL)
    open_tag = None
    for final, continue_, itt, tag, data in requests:
        ttt = RESERVED if tag is None and open_tag is None else open_tag if tag is None else tag
        limit = parameters.max_send_data_segment_length
        response = exchange.respond(TextRequest(final, continue_, itt, ttt or 0, bytes(8), data))
        if response is None:
            open_tag = None
            continue
        assert len(response.data) <= limit
        assert response.final is (response.ttt == RESERVED)
        assert not (response.final and response.continue_)
        assert final or not response.final
        assert not (continue_ and response.data)
        open_tag = None if response.final else response.ttt
        assert 512 <= parameters.max_send_data_segment_length <= 16777215
