"""Where new volumes go: whatever the size and the members, the shares are whole, few, aligned, and in proportion."""

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from san_target.group.spread import RANGES_MAX, SPREAD_BYTES_MIN, STRIPE_BYTES_MIN, Candidate, Share, spread

MIB = 1 << 20
GIB = 1 << 30
REGION = MIB

candidates = st.lists(
    st.builds(Candidate, st.sampled_from([f"m{number}" for number in range(80)]), st.integers(0, 1 << 50)),
    min_size=1,
    max_size=80,
    unique_by=lambda candidate: candidate.name,
)
sizes = st.integers(1, 1 << 45) | st.integers(1, 3 * SPREAD_BYTES_MIN)
block_sizes = st.sampled_from([512, 4096])
seeds = st.uuids().map(lambda one: one.hex)


def owned(shares: list[Share]) -> Counter[str]:
    blocks: Counter[str] = Counter()
    for share in shares:
        blocks[share.owner] += share.end - share.start
    return blocks


@given(seeds, sizes, st.integers(0, 1 << 20), block_sizes, candidates, st.booleans())
def test_shares_are_whole_few_and_aligned(seed, size_bytes, first_region, block_size, members, every_one) -> None:
    region = REGION // block_size
    start = first_region * region
    end = start + -(-size_bytes // block_size)
    shares = spread(seed, start, end, block_size, REGION, members, every_one)
    assert (shares[0].start, shares[-1].end) == (start, end)
    assert all(left.end == right.start and left.owner != right.owner for left, right in itertools.pairwise(shares))
    assert all(share.start < share.end and share.start % region == 0 for share in shares)
    assert len(shares) <= RANGES_MAX
    assert {share.owner for share in shares} <= {member.name for member in members}
    assert shares == spread(seed, start, end, block_size, REGION, members, every_one)


@given(seeds, st.integers(SPREAD_BYTES_MIN, 1 << 45), candidates)
def test_shares_are_in_proportion_to_free_space(seed, size_bytes, members) -> None:
    """To the stripe, of which there are up to RANGES_MAX; the last one may be short."""
    end = -(-size_bytes // 512)
    shares = owned(spread(seed, 0, end, 512, REGION, members))
    total = sum(member.free_bytes for member in members)
    stripe = max(STRIPE_BYTES_MIN, -(-size_bytes // RANGES_MAX) + REGION) / 512
    for member in members:
        fair = end * member.free_bytes / total if total else end / len(members)
        assert abs(shares[member.name] - fair) <= 2 * stripe


@given(seeds, st.integers(1, SPREAD_BYTES_MIN - 512), candidates)
def test_a_small_volume_lies_on_one_member_that_has_space(seed, size_bytes, members) -> None:
    [share] = spread(seed, 0, -(-size_bytes // 512), 512, REGION, members)
    assert share.owner in {member.name for member in members if member.free_bytes} or not any(
        member.free_bytes for member in members
    )


@given(seeds, st.integers(1, 64), st.integers(0, 100 * GIB), st.data())
def test_whoever_is_named_gets_something(seed, count, more_bytes, data) -> None:
    members = [Candidate(f"m{number}", data.draw(st.integers(0, 1 << 50))) for number in range(count)]
    end = (count * REGION + more_bytes) // 512
    assert len(owned(spread(seed, 0, end, 512, REGION, members, every_one=True))) >= min(count, 32)


def test_three_equal_members_share_a_gibibyte_in_turns() -> None:
    members = [Candidate(name, GIB) for name in ("a", "b", "c")]
    shares = spread("0" * 32, 0, GIB // 512, 512, REGION, members)
    assert len(shares) == 64
    assert {share.end - share.start for share in shares} == {16 * MIB // 512}
    assert sorted(owned(shares).values()) == [n * 16 * MIB // 512 for n in (21, 21, 22)]
    assert all(len({share.owner for share in shares[first : first + 3]}) == 3 for first in range(0, 60, 3))


def test_stripes_grow_with_the_volume() -> None:
    members = [Candidate(name, GIB) for name in ("a", "b")]
    shares = spread("0" * 32, 0, (1 << 40) // 512, 512, REGION, members)
    assert {share.end - share.start for share in shares} == {(16 << 30) // 512}


def test_two_named_members_share_even_a_small_volume() -> None:
    members = [Candidate("a", GIB), Candidate("b", 100 * GIB)]
    assert set(owned(spread("0" * 32, 0, 2 * REGION // 512, 512, REGION, members, every_one=True)).values()) == {2048}


def test_small_volumes_are_spread_over_members_by_their_space() -> None:
    members = [Candidate("a", 10 * GIB), Candidate("b", 20 * GIB), Candidate("c", 10 * GIB), Candidate("full", 0)]
    counts = Counter(spread(f"{number:032x}", 0, MIB // 512, 512, REGION, members)[0].owner for number in range(4000))
    assert counts.keys() == {"a", "b", "c"}
    assert abs(counts["b"] - 2000) < 150
    assert abs(counts["a"] - 1000) < 150


def test_nowhere_to_go_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(AssertionError):
        spread("0" * 32, 0, 10, 512, REGION, [])
