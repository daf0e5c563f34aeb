"""Who gets a login: the policies, as tables."""

import pytest

from san_target.group.portal_group import Candidate, Choice, decide


def candidate(
    name: str,
    sessions: int | None = 0,
    portal: str | None = "",
    alive: bool = True,
    draining: bool = False,
) -> Candidate:
    return Candidate(name, f"{name}:3260" if portal == "" else portal, alive, draining, sessions)


def asked(
    policy: str, others: list[Candidate], *, name: str = "m2", sessions: int = 5, draining: bool = False, turn: int = 0
) -> str:
    """The members asked for a ticket, in order."""
    decision = decide(policy, name, sessions, draining, others, turn)
    assert all(choice == Choice(choice.member, f"{choice.member}:3260") for choice in decision.choices)
    assert decision.reason
    return " ".join(choice.member for choice in decision.choices)


FOUR = [candidate("m1"), candidate("m3"), candidate("m4")]
POLICIES = ("round-robin", "least-loaded", "adaptive", "none", "of-a-later-version")


@pytest.mark.parametrize(
    ("turn", "order"),
    # Own turn first, then the next in the ring; whoever refuses is passed over, until the turn is this member's own.
    [(0, ""), (1, "m3 m4 m1"), (2, "m4 m1"), (3, "m1"), (4, ""), (5, "m3 m4 m1")],
)
def test_round_robin_takes_turns(turn: int, order: str) -> None:
    assert asked("round-robin", FOUR, turn=turn) == order
    assert asked("round-robin", FOUR[::-1], turn=turn) == order


def test_round_robin_is_fair() -> None:
    first = [asked("round-robin", FOUR, turn=turn).partition(" ")[0] for turn in range(400)]
    assert {name: first.count(name) for name in set(first)} == {"": 100, "m1": 100, "m3": 100, "m4": 100}


def test_members_that_start_together_do_not_all_send_to_the_same_one() -> None:
    names = ["m1", "m2", "m3", "m4"]
    second = [
        asked("round-robin", [candidate(other) for other in names if other != name], name=name, turn=1).split()[0]
        for name in names
    ]
    assert sorted(second) == names


@pytest.mark.parametrize("policy", ["least-loaded", "adaptive"])
@pytest.mark.parametrize(
    ("own", "loads", "turn", "order"),
    [
        (0, (0, 0, 0), 0, ""),
        (5, (5, 5, 5), 0, ""),
        (5, (6, 9, 7), 0, ""),
        (5, (4, 9, 7), 0, "m1"),
        (5, (3, 1, 2), 0, "m3 m4 m1"),
        (5, (None, None, None), 0, ""),
        (5, (None, 4, None), 0, "m3"),
        # Equals take turns.
        (5, (0, 0, 0), 0, "m3 m4 m1"),
        (5, (0, 0, 0), 1, "m4 m1 m3"),
        (5, (0, 0, 0), 2, "m1 m3 m4"),
        (5, (0, 0, 0), 3, "m3 m4 m1"),
        (1, (0, 0, 0), 7, "m4 m1 m3"),
    ],
)
def test_least_loaded(policy: str, own: int, loads: tuple[int | None, ...], turn: int, order: str) -> None:
    others = [candidate(name, sessions) for name, sessions in zip(("m1", "m3", "m4"), loads, strict=True)]
    assert asked(policy, others, sessions=own, turn=turn) == order


@pytest.mark.parametrize("policy", ["none", "of-a-later-version", ""])
def test_without_a_policy_logins_stay(policy: str) -> None:
    assert asked(policy, FOUR, sessions=1000, turn=1) == ""


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "useless",
    [
        candidate("m1", alive=False),
        candidate("m1", draining=True),
        candidate("m1", portal=None),
        candidate("m2"),  # a view that holds this very member, too
    ],
)
@pytest.mark.parametrize("draining", [False, True])
def test_nobody_is_sent_where_he_cannot_be_served(policy: str, useless: Candidate, draining: bool) -> None:
    for turn in range(4):
        assert asked(policy, [useless], draining=draining, turn=turn) == ""
        assert useless.name not in asked(policy, [useless, candidate("m3")], draining=draining, turn=turn).split()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_draining_member_sends_everybody_away(policy: str) -> None:
    """Whatever the policy and the loads; those that have less to do are asked first, the unknown last."""
    others = [candidate("m1", 90), candidate("m3", None), candidate("m4", 7), candidate("m5", 7)]
    assert asked(policy, others, sessions=0, draining=True) == "m4 m5 m1 m3"


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("draining", [False, True])
def test_alone_everything_is_served_here(policy: str, draining: bool) -> None:
    for turn in range(3):
        assert asked(policy, [], draining=draining, turn=turn) == ""
