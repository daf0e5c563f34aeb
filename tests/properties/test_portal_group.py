"""No login is sent in circles, whatever the members believe of each other, and whatever is lost between them."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from san_target.group.portal_group import UNUSED_S, Candidate, Login, Tickets, decide

NAMES = ("m1", "m2", "m3", "m4")
POLICIES = st.sampled_from(["round-robin", "least-loaded", "adaptive", "none", "unknown"])


@dataclass
class View:
    """What one member believes when a login asks it: anything."""

    policy: str
    sessions: int
    draining: bool
    turn: int
    others: tuple[Candidate, ...]


@dataclass
class Answers:
    """How asking for tickets goes, one for each question: accepted, refused, or accepted with the answer lost."""

    kinds: list[str]
    asked: int = 0

    def next(self) -> str:
        self.asked += 1
        return self.kinds[(self.asked - 1) % len(self.kinds)]


def candidates(name: str) -> st.SearchStrategy[Candidate]:
    portals = st.sampled_from([None, name, name, name])
    loads = st.none() | st.integers(0, 9)
    return st.builds(Candidate, st.just(name), portals, st.booleans(), st.booleans(), loads)


VIEWS = st.builds(
    View, POLICIES, st.integers(0, 9), st.booleans(), st.integers(0, 20), st.tuples(*map(candidates, NAMES))
)
# Members that send everybody away whenever they can.
EAGER_VIEWS = st.builds(
    View,
    st.just("round-robin"),
    st.just(0),
    st.booleans(),
    st.integers(1, 3),
    st.just(tuple(Candidate(name, name) for name in NAMES)),
)
ANSWERS = st.builds(Answers, st.lists(st.sampled_from(["yes", "yes", "no", "lost"]), min_size=1, max_size=8))
ISID = bytes(6)


class Group:
    """Members that give out tickets rightly, and believe what they are told to."""

    def __init__(self, answers: Answers) -> None:
        self.tickets = {name: Tickets() for name in NAMES}
        self.answers = answers
        self.now_s = 0.0

    def ask(self, name: str, login: Login, view: View) -> str | None:
        """One Login Request at a member: where it sends it, None = served there."""
        if self.tickets[name].admits(login, self.now_s):
            return None
        decision = decide(view.policy, name, view.sessions, view.draining, view.others, view.turn)
        for choice in decision.choices:
            answer = self.answers.next()
            if answer == "no" or self.tickets[choice.member].issue(login, self.now_s):
                continue
            if answer == "yes":
                return choice.portal
        return None


def login_of(number: int) -> Login:
    return Login("iqn.2026-01.x:disk", "iqn.2026-01.x:host", number.to_bytes(6, "big"))


@settings(max_examples=150, deadline=None)
@given(st.lists(VIEWS, min_size=1, max_size=12), ANSWERS, st.lists(st.sampled_from(NAMES), min_size=1), st.booleans())
def test_a_login_is_redirected_once_at_most(
    views: list[View], answers: Answers, starts: list[str], changes_isid: bool
) -> None:
    """Also that of an initiator which takes a new ISID at each connection; and many logins one after the other."""
    group, step = Group(answers), 0
    for number, start in enumerate(starts):
        at, hops = start, 0
        while True:
            login = login_of(100 * number + (hops if changes_isid else 0))
            sent_to = group.ask(at, login, views[step % len(views)])
            step += 1
            if sent_to is None:
                break
            assert sent_to != at
            at, hops = sent_to, hops + 1
            assert hops <= 1


@settings(max_examples=150, deadline=None)
@given(
    st.lists(EAGER_VIEWS, min_size=1, max_size=6),
    ANSWERS,
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=4),
    st.booleans(),
    st.floats(0, UNUSED_S / 10),
)
def test_an_initiator_that_never_gets_where_it_is_sent_is_served(
    views: list[View], answers: Answers, arrivals: list[str], changes_isid: bool, delay_s: float
) -> None:
    """With a network that reaches only some of the members, or behind a balancer that all portals are told as: it
    arrives anywhere, is sent to each member once at most, and then served. delay_s: until it is back."""
    group = Group(answers)
    for attempt in range(len(NAMES) + 1):
        login = login_of(attempt if changes_isid else 0)
        if group.ask(arrivals[attempt % len(arrivals)], login, views[attempt % len(views)]) is None:
            return
        group.now_s += delay_s
    raise AssertionError("sent around without end")
