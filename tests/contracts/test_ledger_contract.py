"""The contract of `core.ports.Ledger`, held against every ledger there is."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefect_llm_tiers.core.batches import (
    ENDED_STATES,
    LIVE_STATES,
    TRANSITIONS,
    Batch,
    BatchCounts,
    BatchState,
    ProviderBatch,
    ProviderBatchStatus,
)
from prefect_llm_tiers.core.observations import ObservedBatch, ObservedLane
from prefect_llm_tiers.core.outcomes import Billing, Outcome, OutcomeKind, Usage
from prefect_llm_tiers.core.ports import Ledger
from prefect_llm_tiers.core.requests import derived_token, request_key
from prefect_llm_tiers.core.runs import (
    Entry,
    Lease,
    Recorded,
    RequestState,
    Spending,
    Standing,
    StepRun,
    StepRunState,
)
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.errors import IllegalTransition, LeaseLost, LedgerError, LedgerUnusable
from prefect_llm_tiers.ledger import open_ledger

T = TypeVar("T")

AT = datetime(2026, 11, 1, 6, tzinfo=UTC)
STAMP = datetime(2026, 11, 20, 12, 30, 15, 123_456, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
NEVER = STAMP + 1000 * DAY
"""An answer of another run is never as new as this."""
OPEN = Standing(RequestState.OPEN)

OpenLedger = Callable[[], Ledger]


@pytest.fixture(params=["sqlite", "postgresql"])
def connect(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenLedger]:
    """Open one and the same ledger, each time as another process would."""
    opened: list[Ledger] = []
    match request.param:
        case "sqlite":
            where = str(tmp_path / "ledger.db")
        case "postgresql":
            where = request.getfixturevalue("postgres").empty_ledger()
        case name:
            raise AssertionError(name)

    def open_again() -> Ledger:
        opened.append(open_ledger(where))
        return opened[-1]

    yield open_again
    for ledger in opened:
        ledger.close()


@pytest.fixture
def ledger(connect: OpenLedger) -> Ledger:
    """A new ledger."""
    return connect()


class Seat:
    """A step run with a lease on it, and short names for what it decides."""

    def __init__(self, ledger: Ledger, name: str = "a", *, stamp: datetime = STAMP) -> None:
        self.ledger = ledger
        self.id = f"run-{name}"
        self.run = ledger.enter(entry(self.id), stamp=stamp)
        self.lease = taken(ledger, f"step:{self.id}", owner=name)

    def stand(self, *keys: str, not_before: datetime | None = None, now: datetime | None = None) -> list[Standing]:
        return self.ledger.stand(keys, step_run_id=self.id, not_before=not_before, now=now)

    def begin(self, *keys: str, tier: Tier = Tier.STANDARD) -> list[int]:
        """Begin calls, whoever has some out already and whatever was answered before the run began."""
        begun = self.try_to_begin(*keys, tier=tier, not_before=NEVER, share=False)
        return [attempt for attempt in begun if attempt is not None]

    def try_to_begin(self, *keys: str, tier: Tier = Tier.STANDARD, **how: Any) -> list[int | None]:
        how = {"at": AT, "not_before": None} | how
        return self.ledger.begin_calls(keys, run=self.run, tier=tier, lease=self.lease, **how)

    def ask(self, outcome: Outcome, *, tier: Tier = Tier.STANDARD, stamp: datetime = STAMP) -> Recorded:
        (attempt,) = self.begin(outcome.key, tier=tier)
        return self.ledger.record_calls([(attempt, outcome)], at=AT, stamp=stamp)

    def plan(self, *keys: str) -> Batch:
        return self.ledger.plan_batch(
            keys,
            run=self.run,
            provider="openai",
            account="org/project",
            model="gpt-6-luna",
            endpoint="/v1/responses",
            lease=self.lease,
            at=AT,
        )

    def fail(self, *failures: tuple[str, str]) -> int:
        return self.ledger.fail(failures, run=self.run, lease=self.lease, stamp=STAMP)

    def advance(self, batch: Batch, *states: BatchState, **told: Any) -> Batch:
        for state in states:
            batch = self.ledger.advance_batch(batch, state, lease=self.lease, at=AT, **told)
        return batch

    def leave(self, batch: Batch) -> int:
        return self.ledger.leave(batch.id, run=self.run, lease=self.lease, at=AT)

    def results(self, batch: Batch, *outcomes: Outcome, stamp: datetime = STAMP) -> Recorded:
        return self.ledger.record_results(batch, outcomes, at=AT + HOUR, stamp=stamp)

    def spent(self) -> dict[str, int]:
        """Attempts by what came of them, whatever their tiers."""
        spent: Counter[str] = Counter()
        for line in self.ledger.spending(self.id):
            spent[line.outcome] += line.attempts
        return dict(spent)


def entry(run_id: str, **changes: Any) -> Entry:
    """What a process brings to a step run."""
    told: dict[str, Any] = {
        "id": run_id,
        "flow_run_id": "flow-1",
        "step": "summary",
        "key_digest": "digest",
        "requests": 3,
        "rows": 4,
        "provider": "openai",
        "account": "org/project",
        "deadline": AT + 3 * HOUR,
        "entered_at": AT,
    }
    return Entry(**(told | changes))


def taken(ledger: Ledger, name: str, *, owner: str, now: datetime = AT) -> Lease:
    """A lease that must be free."""
    lease = ledger.acquire(name, owner=owner, now=now, until=now + HOUR)
    assert lease is not None
    return lease


def key(name: str | int) -> str:
    """A request's key."""
    return request_key(account="org", endpoint="/v1/responses", body=str(name).encode())


def answer(name: str, text: str = "Fine.", **changes: Any) -> Outcome:
    """A billed and priced answer."""
    told: dict[str, Any] = {
        "key": name,
        "kind": OutcomeKind.ANSWER,
        "text": text,
        "usage": Usage(100, 10, 5, 20, 7),
        "tier_served": Tier.STANDARD,
        "billing": Billing.BILLED,
        "cost_usd": Decimal("0.0000123"),
        "list_usd": Decimal("0.0000246"),
        "price_source": "genai-prices",
        "provider_request_id": "req_1",
    }
    return Outcome(**(told | changes))


def retry(name: str, reason: str = "broken_line", **changes: Any) -> Outcome:
    """An attempt that brought nothing usable; asking again may."""
    return Outcome(key=name, kind=OutcomeKind.RETRY, reason=reason, **changes)


def failure(name: str, reason: str = "content_too_long", **changes: Any) -> Outcome:
    """A permanent failure."""
    return Outcome(key=name, kind=OutcomeKind.FAILURE, reason=reason, **changes)


def told(name: str = "batch_1", **changes: Any) -> ProviderBatch:
    """A look at a running batch."""
    fields: dict[str, Any] = {
        "id": name,
        "status": ProviderBatchStatus.IN_PROGRESS,
        "counts": BatchCounts(3, 1, 0),
        "created_at": AT,
    }
    return ProviderBatch(**(fields | changes))


def at_once(*works: Callable[[], T]) -> list[T | LedgerError]:
    """Run each in a thread of its own, started together; a ledger's refusal is a result."""
    barrier = threading.Barrier(len(works))

    def started(work: Callable[[], T]) -> T | LedgerError:
        barrier.wait()
        try:
            return work()
        except LedgerError as refusal:
            return refusal

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(started, works))


A, B, C, D = (key(name) for name in "abcd")

PATHS: dict[BatchState, tuple[BatchState, ...]] = {
    BatchState.PLANNED: (),
    BatchState.SUBMITTING: (BatchState.SUBMITTING,),
    BatchState.IN_PROGRESS: (BatchState.SUBMITTING, BatchState.IN_PROGRESS),
    BatchState.CANCELLING: (BatchState.SUBMITTING, BatchState.IN_PROGRESS, BatchState.CANCELLING),
    BatchState.OVERDUE: (BatchState.SUBMITTING, BatchState.OVERDUE),
    BatchState.DISCARDED: (BatchState.DISCARDED,),
    **{state: (BatchState.SUBMITTING, BatchState.IN_PROGRESS, state) for state in ENDED_STATES},
    BatchState.SETTLED: (
        BatchState.SUBMITTING,
        BatchState.IN_PROGRESS,
        BatchState.COMPLETED,
        BatchState.SETTLED,
    ),
}
"""A way from PLANNED to each state."""

RUNNING = PATHS[BatchState.IN_PROGRESS]


class TestLeases:
    """One holder at a time, whatever dies."""

    def test_a_lease_has_one_holder(self, ledger: Ledger) -> None:
        """While one holds a lease, nobody else gets it, and `lease` tells who has it."""
        lease = taken(ledger, "step:a", owner="one")
        assert ledger.acquire("step:a", owner="two", now=AT, until=AT + HOUR) is None
        assert ledger.lease("step:a") == lease
        assert ledger.lease("step:b") is None

    def test_an_owner_keeps_its_epoch(self, ledger: Ledger) -> None:
        """Taking again what one holds extends it under the same epoch, also past its end."""
        first = taken(ledger, "step:a", owner="one")
        again = ledger.acquire("step:a", owner="one", now=AT + 2 * HOUR, until=AT + 3 * HOUR)
        assert again == msgspec.structs.replace(first, until=AT + 3 * HOUR)

    def test_an_ended_lease_can_be_taken(self, ledger: Ledger) -> None:
        """A lease may be taken from the instant it ends, not before, and under another epoch."""
        first = taken(ledger, "step:a", owner="one")
        just_before = first.until - timedelta(microseconds=1)
        assert ledger.acquire("step:a", owner="two", now=just_before, until=AT + DAY) is None
        second = taken(ledger, "step:a", owner="two", now=first.until)
        assert second.epoch != first.epoch

    def test_only_the_holder_renews(self, ledger: Ledger) -> None:
        """Renewing extends a lease that is still held, and raises where it was taken over."""
        first = taken(ledger, "step:a", owner="one")
        longer = ledger.renew(first, until=AT + 2 * HOUR)
        assert ledger.lease("step:a") == longer
        taken(ledger, "step:a", owner="two", now=AT + 2 * HOUR)
        with pytest.raises(LeaseLost, match=r"'two' holds it in epoch 2 until 2026-11-01 09:00:00Z"):
            ledger.renew(longer, until=AT + DAY)

    def test_releasing_frees(self, ledger: Ledger) -> None:
        """A lease given back is nobody's, and its next holder, the same one too, has another epoch."""
        first = taken(ledger, "step:a", owner="one")
        ledger.release(first)
        assert ledger.lease("step:a") is None
        with pytest.raises(LeaseLost, match="nobody holds it"):
            ledger.renew(first, until=AT + DAY)
        assert taken(ledger, "step:a", owner="one").epoch != first.epoch

    def test_releasing_what_was_lost_does_nothing(self, ledger: Ledger) -> None:
        """Giving back a lease that another has taken over leaves it with the other."""
        first = taken(ledger, "step:a", owner="one")
        second = taken(ledger, "step:a", owner="two", now=AT + HOUR)
        ledger.release(first)
        assert ledger.lease("step:a") == second

    def test_no_epoch_returns(self, ledger: Ledger) -> None:
        """However often a lease changes hands, each holder has an epoch of its own."""
        epochs = []
        for number in range(6):
            lease = taken(ledger, "step:a", owner=f"owner-{number % 2}", now=AT + number * HOUR)
            epochs.append(lease.epoch)
            if number % 3 == 0:
                ledger.release(lease)
        assert len(set(epochs)) == len(epochs)

    def test_a_race_has_one_winner(self, connect: OpenLedger) -> None:
        """Of processes that take a lease in the same instant, exactly one gets it."""
        ledgers = [connect() for _ in range(4)]
        for name in ("x", "y", "z"):

            def take(number: int, name: str = name) -> Lease | None:
                return ledgers[number].acquire(name, owner=f"p{number}", now=AT, until=AT + HOUR)

            won = [lease for lease in at_once(*(lambda n=n: take(n) for n in range(4))) if lease is not None]
            assert len(won) == 1
            assert ledgers[0].lease(name) == won[0]


class TestStepRuns:
    """The first entry binds, the first decision wins."""

    def test_the_first_entry_binds(self, ledger: Ledger) -> None:
        """A later entry is given what the first one stored, and counted; a decision's version holds."""
        first = ledger.enter(entry("r"), stamp=STAMP)
        assert first == StepRun(
            id="r",
            version=first.version,
            flow_run_id="flow-1",
            step="summary",
            key_digest="digest",
            requests=3,
            rows=4,
            provider="openai",
            account="org/project",
            deadline=AT + 3 * HOUR,
            entered_at=AT,
            first_stamp=STAMP,
            state=StepRunState.RUNNING,
        )
        later = entry("r", key_digest="other", deadline=None, entered_at=AT + HOUR, requests=9)
        assert ledger.enter(later, stamp=STAMP + DAY) == msgspec.structs.replace(first, entries=2)
        assert ledger.step_run("r") == msgspec.structs.replace(first, entries=2)
        assert ledger.step_run("unknown") is None

    def test_a_race_to_enter_makes_one_run(self, connect: OpenLedger) -> None:
        """Processes that enter one step run in the same instant share it."""
        ledgers = [connect() for _ in range(3)]
        at_once(*(lambda each=each: each.enter(entry("r"), stamp=STAMP) for each in ledgers))
        stored = ledgers[0].step_run("r")
        assert stored is not None
        assert stored.entries == 3
        assert len(ledgers[0].events("step_run", "r")) == 1

    def test_the_step_runs_of_a_flow_run(self, ledger: Ledger) -> None:
        """A flow run's step runs come in the order of their first entries, whatever entered again since."""
        for name, flow in (("z", "flow-1"), ("a", "flow-1"), ("other", "flow-2"), ("z", "flow-1")):
            ledger.enter(entry(name, flow_run_id=flow), stamp=STAMP)
        assert [run.id for run in ledger.step_runs_of("flow-1")] == ["z", "a"]
        assert ledger.step_runs_of("flow-1")[0] == ledger.step_run("z")
        assert ledger.step_runs_of("unknown") == []

    def test_the_step_runs_of_a_period(self, ledger: Ledger) -> None:
        """Those that were first entered in it by the wall clock, whatever time the runs live in."""
        for number, name in enumerate("abc"):
            ledger.enter(entry(name, entered_at=AT + 100 * DAY), stamp=STAMP + number * HOUR)
        ledger.enter(entry("a"), stamp=STAMP + DAY)
        assert [run.id for run in ledger.step_runs_between(STAMP, STAMP + 2 * HOUR)] == ["a", "b"]
        assert ledger.step_runs_between(STAMP + DAY, STAMP + 2 * DAY) == []

    def test_rebase(self, ledger: Ledger) -> None:
        """A rebase changes digest and counts and nothing that the run is due or aged by."""
        seat = Seat(ledger)
        changed = entry(seat.id, key_digest="new", requests=7, rows=8, deadline=None, entered_at=AT + HOUR)
        rebased = ledger.rebase(seat.run, changed, lease=seat.lease)
        assert rebased == msgspec.structs.replace(
            seat.run, version=rebased.version, key_digest="new", requests=7, rows=8
        )
        assert rebased.version > seat.run.version

    def test_the_latest_plan_counts(self, ledger: Ledger) -> None:
        """A plan comes back byte for byte, and the last one stored is the one."""
        seat = Seat(ledger)
        run = ledger.record_plan(seat.run, b"\x00one\xff", lease=seat.lease, at=AT)
        assert run.plan == b"\x00one\xff"
        ledger.record_plan(run, b"two", lease=seat.lease, at=AT)
        assert (ledger.step_run(seat.id) or run).plan == b"two"

    def test_a_tier_is_recorded_with_its_event(self, ledger: Ledger) -> None:
        """The tier, since when, and the change with its reason are stored together."""
        seat = Seat(ledger)
        run = ledger.record_tier(seat.run, Tier.BATCH, lease=seat.lease, at=AT)
        run = ledger.record_tier(run, Tier.STANDARD, lease=seat.lease, at=AT + HOUR, detail="switch time")
        assert (run.tier, run.tier_since) == (Tier.STANDARD, AT + HOUR)
        events = ledger.events("step_run", seat.id)
        assert [(event.before, event.after, event.at, event.detail) for event in events] == [
            (None, "running", AT, None),
            (None, "batch", AT, None),
            ("batch", "standard", AT + HOUR, "switch time"),
        ]
        assert [event.sequence for event in events] == sorted(event.sequence for event in events)

    @pytest.mark.parametrize("end", [StepRunState.COMPLETED, StepRunState.FAILED])
    def test_an_end_and_a_reopening(self, ledger: Ledger, end: StepRunState) -> None:
        """A run ends once, asks for nothing after its end, and can be reopened."""
        seat = Seat(ledger)
        seat.run = ledger.finish(seat.run, end, lease=seat.lease, at=AT)
        assert seat.run.state is end
        for other in (StepRunState.COMPLETED, StepRunState.FAILED):
            with pytest.raises(IllegalTransition, match=f"is {end}"):
                ledger.finish(seat.run, other, lease=seat.lease, at=AT)
        for decide in (
            lambda: seat.begin(A),
            lambda: seat.plan(A),
            lambda: ledger.record_tier(seat.run, Tier.FLEX, lease=seat.lease, at=AT),
        ):
            with pytest.raises(IllegalTransition, match=f"is {end}; this needs it to be running"):
                decide()
        seat.run = ledger.finish(seat.run, StepRunState.RUNNING, lease=seat.lease, at=AT + HOUR)
        assert seat.begin(A)
        assert [event.after for event in ledger.events("step_run", seat.id)] == ["running", end, "running"]

    def test_the_first_decision_wins(self, connect: OpenLedger) -> None:
        """Of two decisions on one version one is stored, and the other one changes nothing and says so."""
        ledgers = [connect(), connect()]
        seat = Seat(ledgers[0])
        tiers = (Tier.STANDARD, Tier.PRIORITY)
        results = at_once(
            *(
                lambda each=each, tier=tier: each.record_tier(seat.run, tier, lease=seat.lease, at=AT)
                for each, tier in zip(ledgers, tiers, strict=True)
            )
        )
        (run,) = (result for result in results if isinstance(result, StepRun))
        (refusal,) = (result for result in results if isinstance(result, LedgerError))
        assert isinstance(refusal, IllegalTransition)
        assert ledgers[1].step_run(seat.id) == run
        assert [event.after for event in ledgers[0].events("step_run", seat.id)] == ["running", run.tier]

    def test_no_decision_about_an_unknown_run(self, connect: OpenLedger, ledger: Ledger) -> None:
        """A run that this ledger never saw is refused by name: nothing may be paid on its account."""
        seat = Seat(ledger)
        stranger = msgspec.structs.replace(seat.run, id="elsewhere")
        with pytest.raises(LedgerError, match="knows no step run 'elsewhere'"):
            ledger.begin_calls([A], run=stranger, tier=Tier.FLEX, lease=seat.lease, at=AT, not_before=None)


DECISIONS: dict[str, Callable[[Seat], object]] = {
    "rebase": lambda seat: seat.ledger.rebase(seat.run, entry(seat.id), lease=seat.lease),
    "record_plan": lambda seat: seat.ledger.record_plan(seat.run, b"", lease=seat.lease, at=AT),
    "record_tier": lambda seat: seat.ledger.record_tier(seat.run, Tier.FLEX, lease=seat.lease, at=AT),
    "finish": lambda seat: seat.ledger.finish(seat.run, StepRunState.COMPLETED, lease=seat.lease, at=AT),
    "forget_failures": lambda seat: seat.ledger.forget_failures(seat.run, lease=seat.lease, at=AT),
    "reopen": lambda seat: seat.ledger.reopen([A], run=seat.run, lease=seat.lease, reason="x"),
    "fail": lambda seat: seat.fail((B, "upstream")),
    "begin_calls": lambda seat: seat.begin(B),
    "abandon_calls": lambda seat: seat.ledger.abandon_calls(run=seat.run, lease=seat.lease, at=AT),
    "plan_batch": lambda seat: seat.plan(B),
    "leave": lambda seat: seat.ledger.leave(1, run=seat.run, lease=seat.lease, at=AT),
}
"""Every decision on a step run."""


class TestDecisions:
    """What holds for every decision on a step run."""

    @pytest.fixture
    def seat(self, ledger: Ledger) -> Seat:
        """A run with an answer, an open call, a batch and a failure: each decision has its object."""
        seat = Seat(ledger)
        seat.ask(answer(A))
        seat.begin(C)
        seat.plan(D)
        seat.fail((key("e"), "upstream"))
        return seat

    def everything(self, seat: Seat) -> tuple[object, ...]:
        """All that a decision could have changed."""
        keys = (A, B, C, D, key("e"))
        return (
            seat.ledger.step_run(seat.id),
            seat.stand(*keys),
            seat.ledger.answers(keys, step_run_id=seat.id),
            seat.ledger.spending(seat.id),
            seat.ledger.batches_of(seat.id),
            seat.ledger.live_batches(),
            seat.ledger.events("step_run", seat.id),
            seat.ledger.events("batch", "1"),
        )

    @pytest.mark.parametrize("decide", DECISIONS.values(), ids=DECISIONS)
    def test_no_decision_without_the_lease(self, seat: Seat, decide: Callable[[Seat], object]) -> None:
        """A process whose lease was taken over, or given back, decides nothing."""
        before = self.everything(seat)
        taken(seat.ledger, seat.lease.name, owner="other", now=AT + HOUR)
        with pytest.raises(LeaseLost, match="Nothing was changed"):
            decide(seat)
        assert self.everything(seat) == before

    @pytest.mark.parametrize("decide", DECISIONS.values(), ids=DECISIONS)
    def test_no_decision_on_what_is_no_longer_true(self, seat: Seat, decide: Callable[[Seat], object]) -> None:
        """A decision made on an older version changes nothing, and the message names both versions."""
        seat.ledger.record_tier(seat.run, Tier.FLEX, lease=seat.lease, at=AT)
        before = self.everything(seat)
        with pytest.raises(IllegalTransition, match=r"is at version 2 .* decided on version 1"):
            decide(seat)
        assert self.everything(seat) == before

    @pytest.mark.parametrize("decide", DECISIONS.values(), ids=DECISIONS)
    def test_a_lease_past_its_end_still_decides(self, seat: Seat, decide: Callable[[Seat], object]) -> None:
        """Only a taker judges that a lease has ended: until somebody took it, its holder may decide."""
        ended = seat.ledger.renew(seat.lease, until=AT - HOUR)
        seat.lease = ended
        decide(seat)
        assert seat.ledger.lease(ended.name) == ended


class TestStanding:
    """Where a key stands, seen from one step run."""

    def test_what_was_never_asked_is_open(self, ledger: Ledger) -> None:
        """Unknown keys stand open, in the order asked, for a run that is unknown as well."""
        assert ledger.stand([], step_run_id="r", not_before=None, now=None) == []
        assert ledger.stand([B, A], step_run_id="r", not_before=None, now=None) == [OPEN, OPEN]
        assert ledger.answers([B, A], step_run_id="r") == [None, None]

    def test_each_way_to_stand(self, ledger: Ledger) -> None:
        """Answered, refused, failed, out and open keys come back as such, in order, duplicates too."""
        seat = Seat(ledger)
        seat.ask(answer(A))
        seat.ask(answer(B, kind=OutcomeKind.REFUSAL, reason="refusal"))
        seat.ask(failure(C))
        batch = seat.plan(D)
        assert seat.stand(D, C, key("new"), B, A, D) == [
            Standing(RequestState.OUT, batch_id=batch.id),
            Standing(RequestState.FAILED, reason="content_too_long"),
            OPEN,
            Standing(RequestState.REFUSED),
            Standing(RequestState.ANSWERED),
            Standing(RequestState.OUT, batch_id=batch.id),
        ]

    def test_a_call_in_flight_is_open(self, ledger: Ledger) -> None:
        """A live call shields no key: whoever sent it knows, and whoever takes over asks again."""
        seat = Seat(ledger)
        seat.begin(A)
        assert seat.stand(A) == [OPEN]

    def test_an_answer_ages(self, ledger: Ledger) -> None:
        """An answer stamped before `not_before` does not count; at that instant, or for None, it does."""
        asker = Seat(ledger, "asker")
        asker.ask(answer(A))
        asker.ask(answer(B, kind=OutcomeKind.REFUSAL))
        seat = Seat(ledger, "other")
        answered = [Standing(RequestState.ANSWERED), Standing(RequestState.REFUSED)]
        assert seat.stand(A, B, not_before=STAMP) == answered
        assert seat.stand(A, B) == answered
        assert seat.stand(A, B, not_before=STAMP + timedelta(microseconds=1)) == [OPEN, OPEN]

    def test_a_run_believes_its_own_answers_whatever_the_wall_clock_does(self, ledger: Ledger) -> None:
        """With a clock that was set back a run would find its answers too old, and pay for them for ever."""
        seat = Seat(ledger)
        seat.ask(answer(A), stamp=STAMP - 40 * DAY)
        assert seat.stand(A, not_before=STAMP) == [Standing(RequestState.ANSWERED)]

    def test_a_newer_answer_takes_the_place_of_one_too_old(self, ledger: Ledger) -> None:
        """Who asks again because the answer is too old gets the new one, and so does everybody after."""
        old = Seat(ledger, "old", stamp=STAMP - 40 * DAY)
        old.ask(answer(A, "old"), stamp=STAMP - 40 * DAY)
        new = Seat(ledger, "new")
        assert new.stand(A, not_before=STAMP - 30 * DAY) == [OPEN]
        assert new.ask(answer(A, "new")) == Recorded(settled=1)
        assert new.stand(A, not_before=STAMP - 30 * DAY) == [Standing(RequestState.ANSWERED)]
        (found,) = ledger.answers([A], step_run_id=old.id)
        assert found is not None
        assert (found.text, found.fresh) == ("new", False)
        assert old.spent() == {"answer": 1}

    def test_a_batch_replaces_answers_too_old(self, ledger: Ledger) -> None:
        """Lines of a batch follow the same rule: they replace what was old when it was planned."""
        old = Seat(ledger, "old", stamp=STAMP - 40 * DAY)
        old.ask(answer(A, "old"), stamp=STAMP - 40 * DAY)
        new = Seat(ledger, "new")
        batch = new.advance(new.plan(A, B), *RUNNING)
        assert new.results(batch, answer(A, "new"), answer(B)) == Recorded(settled=2)
        assert [found and found.text for found in ledger.answers([A, B], step_run_id=new.id)] == [
            "new",
            "Fine.",
        ]

    def test_only_one_of_two_new_answers_replaces_the_old(self, ledger: Ledger) -> None:
        """Two runs that ask an old answer again: the first to come counts and the second is superseded."""
        Seat(ledger, "old", stamp=STAMP - 40 * DAY).ask(answer(A, "old"), stamp=STAMP - 40 * DAY)
        first, second = Seat(ledger, "first"), Seat(ledger, "second")
        (late,) = second.begin(A)
        first.ask(answer(A, "first"))
        recorded = ledger.record_calls([(late, answer(A, "second"))], at=AT, stamp=STAMP)
        assert recorded == Recorded(superseded=1)
        (found,) = ledger.answers([A], step_run_id=second.id)
        assert found is not None
        assert found.text == "first"

    def test_an_answer_tells_what_brought_it(self, ledger: Ledger) -> None:
        """An answer comes back with its attempt, fresh for the run that paid and not for another."""
        seat, other = Seat(ledger), Seat(ledger, "b")
        sent = answer(A, "Grüße 🚀\n\x00", tier_served=Tier.PRIORITY)
        seat.ask(sent)
        (mine,) = ledger.answers([A], step_run_id=seat.id)
        assert mine is not None
        assert mine.fresh
        assert (mine.key, mine.state, mine.text, mine.reason) == (A, RequestState.ANSWERED, sent.text, None)
        assert (mine.tier_served, mine.usage, mine.cost_usd) == (Tier.PRIORITY, sent.usage, sent.cost_usd)
        assert ledger.answers([A], step_run_id=other.id) == [msgspec.structs.replace(mine, fresh=False)]

    def test_a_text_that_cannot_be_encoded_costs_no_answer(self, ledger: Ledger) -> None:
        """Half of a surrogate pair is replaced, and the answers beside it are kept as they are."""
        seat = Seat(ledger)
        batch = seat.advance(seat.plan(A, B), *RUNNING)
        assert seat.results(batch, answer(A, "half \ud83d."), answer(B, "whole")) == Recorded(settled=2)
        found = ledger.answers([A, B], step_run_id=seat.id)
        assert [one and one.text for one in found] == ["half ?.", "whole"]

    def test_many_keys_at_once(self, ledger: Ledger) -> None:
        """There is no number of keys past which one question has to be two."""
        seat = Seat(ledger)
        keys = [key(number) for number in range(40_000)]
        batch = seat.plan(*keys)
        out = Standing(RequestState.OUT, batch_id=batch.id)
        assert seat.stand(*keys, A) == [out] * len(keys) + [OPEN]


class TestFailures:
    """Failures and tries belong to the step run that had them."""

    def test_a_failure_sticks_to_its_step_run(self, ledger: Ledger) -> None:
        """What failed for one run is failed there and open everywhere else."""
        one, other = Seat(ledger, "one"), Seat(ledger, "other")
        one.ask(failure(A, billing=Billing.BILLED, usage=Usage(5), cost_usd=Decimal("0.1")))
        assert one.stand(A) == [Standing(RequestState.FAILED, reason="content_too_long")]
        assert other.stand(A) == [OPEN]
        assert ledger.answers([A], step_run_id=other.id) == [None]
        (found,) = ledger.answers([A], step_run_id=one.id)
        assert found is not None
        assert (found.state, found.text, found.reason) == (RequestState.FAILED, None, "content_too_long")
        assert (found.usage, found.cost_usd, found.fresh) == (Usage(5), Decimal("0.1"), True)

    def test_tries_stick_to_their_step_run(self, ledger: Ledger) -> None:
        """A counted retry is a try of the run whose attempt it was, an uncounted one of nobody."""
        one, other = Seat(ledger, "one"), Seat(ledger, "other")
        one.ask(retry(A))
        one.ask(retry(A, "unparsable"))
        one.ask(retry(A, "resource_unavailable", counted=False))
        assert one.stand(A) == [Standing(RequestState.OPEN, tries=2, reason="unparsable")]
        assert other.stand(A) == [OPEN]

    def test_failing_marks_open_keys_only(self, ledger: Ledger) -> None:
        """What is answered, out or failed already stays as it is; the count tells how many were marked."""
        seat = Seat(ledger)
        seat.ask(answer(A))
        batch = seat.plan(B)
        seat.fail((C, "first"))
        marked = seat.fail((A, "late"), (B, "late"), (C, "late"), (D, "null_input"), (D, "again"))
        assert marked == 1
        assert seat.stand(A, B, C, D) == [
            Standing(RequestState.ANSWERED),
            Standing(RequestState.OUT, batch_id=batch.id),
            Standing(RequestState.FAILED, reason="first"),
            Standing(RequestState.FAILED, reason="null_input"),
        ]
        assert ledger.failures(seat.id) == {"first": 1, "null_input": 1}
        (found,) = ledger.answers([D], step_run_id=seat.id)
        assert found is not None
        assert (found.reason, found.usage, found.cost_usd, found.fresh) == ("null_input", None, None, False)

    def test_a_key_whose_answer_is_too_old_can_fail(self, ledger: Ledger) -> None:
        """An answer older than the run does not stop a failure, and that failure holds beside it."""
        Seat(ledger, "old", stamp=STAMP - 40 * DAY).ask(answer(A, "old"), stamp=STAMP - 40 * DAY)
        seat = Seat(ledger)
        assert seat.fail((A, "max_attempts")) == 1
        failed = [Standing(RequestState.FAILED, reason="max_attempts")]
        assert seat.stand(A, not_before=STAMP - 30 * DAY) == failed
        (found,) = ledger.answers([A], step_run_id=seat.id)
        assert found is not None
        assert found.state is RequestState.FAILED

    def test_an_answer_ends_a_failure(self, ledger: Ledger) -> None:
        """An answer that arrives after the failure was recorded is what counts: it was paid for."""
        seat = Seat(ledger)
        (late,) = seat.begin(A)
        seat.fail((A, "deadline"))
        assert ledger.record_calls([(late, answer(A))], at=AT, stamp=STAMP) == Recorded(settled=1)
        assert seat.stand(A) == [Standing(RequestState.ANSWERED)]
        assert ledger.failures(seat.id) == {}
        assert ledger.forget_failures(seat.run, lease=seat.lease, at=AT) == 0

    def test_forgetting_opens_failures_with_no_tries(self, ledger: Ledger) -> None:
        """Forgetting concerns this run's failures: its tries on them go, other tries and runs stay."""
        one, other = Seat(ledger, "one"), Seat(ledger, "other")
        one.ask(retry(A))
        one.fail((A, "max_attempts"), (B, "upstream"))
        one.ask(retry(C))
        other.fail((A, "upstream"))
        assert ledger.forget_failures(one.run, lease=one.lease, at=AT) == 2
        assert one.stand(A, B, C) == [OPEN, OPEN, Standing(RequestState.OPEN, tries=1, reason="broken_line")]
        assert other.stand(A) == [Standing(RequestState.FAILED, reason="upstream")]
        assert ledger.forget_failures(one.run, lease=one.lease, at=AT) == 0

    def test_reopening_sets_answers_aside(self, ledger: Ledger) -> None:
        """An answer that cannot be read is open again with a try; its money stays on the account."""
        seat = Seat(ledger)
        seat.ask(answer(A))
        seat.ask(answer(B, kind=OutcomeKind.REFUSAL))
        again = ledger.reopen([A, A, B, C], run=seat.run, lease=seat.lease, reason="unreadable")
        assert again == 1
        tried = Standing(RequestState.OPEN, tries=1, reason="unreadable")
        assert seat.stand(A, B) == [tried, Standing(RequestState.REFUSED)]
        assert seat.spent() == {"refusal": 1, "superseded": 1}
        assert seat.ask(answer(A, "better")) == Recorded(settled=1)
        assert seat.stand(A) == [Standing(RequestState.ANSWERED, tries=1)]

    def test_an_answer_is_set_aside_for_the_run_that_cannot_read_it_alone(self, ledger: Ledger) -> None:
        """A run that reads an answer keeps it, whatever another run makes of it."""
        reads, other = Seat(ledger, "reads"), Seat(ledger, "other")
        reads.ask(answer(A))
        assert ledger.reopen([A], run=other.run, lease=other.lease, reason="unreadable") == 1
        assert other.stand(A)[0].state is RequestState.OPEN
        assert reads.stand(A) == [Standing(RequestState.ANSWERED)]
        (kept,) = ledger.answers([A], step_run_id=reads.id)
        assert kept is not None
        assert kept.text == "Fine."
        assert reads.spent() == {"answer": 1}
        assert reads.try_to_begin(A) == [None]

    def test_only_an_answer_that_came_since_counts_as_a_try(self, ledger: Ledger) -> None:
        """What was there before a run entered has cost it no attempt, and is looked at once."""
        Seat(ledger, "before").ask(answer(A), stamp=STAMP - DAY)
        seat = Seat(ledger, "later")
        assert ledger.reopen([A], run=seat.run, lease=seat.lease, reason="unreadable") == 1
        assert seat.stand(A) == [Standing(RequestState.OPEN, reason="unreadable")]
        assert ledger.reopen([A], run=seat.run, lease=seat.lease, reason="unreadable") == 0

    def test_an_answer_set_aside_gives_way_to_a_readable_one(self, ledger: Ledger) -> None:
        """The run that asks again is answered by what comes then, and so is whoever asks later."""
        Seat(ledger, "before").ask(answer(A), stamp=STAMP - DAY)
        seat = Seat(ledger, "later")
        ledger.reopen([A], run=seat.run, lease=seat.lease, reason="unreadable")
        batch = seat.advance(seat.plan(A), BatchState.SUBMITTING)
        assert seat.results(batch, answer(A, "better")) == Recorded(settled=1)
        assert seat.stand(A) == [Standing(RequestState.ANSWERED)]
        (found,) = ledger.answers([A], step_run_id=seat.id)
        assert found is not None
        assert found.text == "better"

    def test_a_failure_stays_one_beside_an_answer_set_aside(self, ledger: Ledger) -> None:
        """Attempts that are used up fail the row; the next entry asks again and does not take the answer back."""
        seat = Seat(ledger)
        seat.ask(answer(A))
        ledger.reopen([A], run=seat.run, lease=seat.lease, reason="unreadable")
        assert seat.fail((A, "unreadable")) == 1
        assert seat.stand(A) == [Standing(RequestState.FAILED, tries=1, reason="unreadable")]
        assert seat.spent() == {"superseded": 1}
        assert ledger.forget_failures(seat.run, lease=seat.lease, at=AT) == 1
        assert seat.stand(A) == [OPEN]
        assert seat.ask(answer(A, "better")) == Recorded(settled=1)
        assert seat.spent() == {"answer": 1, "superseded": 1}

    def test_a_failure_for_an_answered_key_is_superseded(self, ledger: Ledger) -> None:
        """The first answer stands against a failure that comes later."""
        seat = Seat(ledger)
        (late,) = seat.begin(A)
        seat.ask(answer(A))
        assert ledger.record_calls([(late, failure(A))], at=AT, stamp=STAMP) == Recorded(superseded=1)
        assert seat.stand(A) == [Standing(RequestState.ANSWERED)]


class TestCalls:
    """Live calls, from before they are sent to whatever comes back."""

    def test_attempts_are_distinct_and_in_order(self, ledger: Ledger) -> None:
        """Each key of each sending has an attempt of its own."""
        seat = Seat(ledger)
        first, second = seat.begin(A, B), seat.begin(B, A, A)
        assert len({*first, *second}) == 5
        assert ledger.record_calls([(second[0], answer(B))], at=AT, stamp=STAMP) == Recorded(settled=1)
        assert seat.begin() == []

    def test_the_first_answer_stands(self, ledger: Ledger) -> None:
        """A later answer changes nothing but the bill, in one write or in two."""
        seat = Seat(ledger)
        one, two, three = seat.begin(A, A, A)
        recorded = ledger.record_calls([(one, answer(A, "one")), (two, answer(A, "two"))], at=AT, stamp=STAMP)
        assert recorded == Recorded(settled=1, superseded=1)
        recorded = ledger.record_calls([(three, answer(A, "three"))], at=AT, stamp=STAMP)
        assert recorded == Recorded(superseded=1)
        (found,) = ledger.answers([A], step_run_id=seat.id)
        assert found is not None
        assert found.text == "one"
        assert seat.spent() == {"answer": 1, "superseded": 2}

    def test_an_attempt_ends_once(self, ledger: Ledger) -> None:
        """Telling an attempt's outcome twice changes nothing, in one write or in two."""
        seat = Seat(ledger)
        attempt, other = seat.begin(A, B)
        told_twice = [(attempt, retry(A)), (attempt, answer(A)), (other, answer(B))]
        assert ledger.record_calls(told_twice, at=AT, stamp=STAMP) == Recorded(settled=1)
        assert ledger.record_calls(told_twice, at=AT, stamp=STAMP) == Recorded()
        tried = Standing(RequestState.OPEN, tries=1, reason="broken_line")
        assert seat.stand(A, B) == [tried, Standing(RequestState.ANSWERED)]

    def test_an_outcome_of_no_attempt_is_kept_out(self, ledger: Ledger) -> None:
        """An attempt that was never begun, or another key's, takes no outcome; the others are stored."""
        seat = Seat(ledger)
        attempt, other = seat.begin(A, B)
        recorded = ledger.record_calls(
            [(attempt + 100, answer(A)), (other, answer(A)), (attempt, answer(A))], at=AT, stamp=STAMP
        )
        assert recorded == Recorded(settled=1, unknown=2)
        assert seat.stand(A, B) == [Standing(RequestState.ANSWERED), OPEN]

    def test_a_fact_needs_no_lease(self, ledger: Ledger) -> None:
        """Who lost the lease may still write down what it got, and that counts."""
        seat = Seat(ledger)
        (attempt,) = seat.begin(A)
        taken(ledger, seat.lease.name, owner="other", now=AT + HOUR)
        assert ledger.record_calls([(attempt, answer(A))], at=AT, stamp=STAMP) == Recorded(settled=1)
        assert ledger.record_calls([], at=AT, stamp=STAMP) == Recorded()

    def test_abandoned_calls_may_be_billed(self, ledger: Ledger) -> None:
        """Calls of a process that is gone are listed as perhaps billed; ended ones and batches are not."""
        seat, other = Seat(ledger), Seat(ledger, "b")
        seat.begin(A, B, tier=Tier.FLEX)
        seat.ask(answer(C))
        seat.plan(D)
        other.begin(A)
        assert ledger.abandon_calls(run=seat.run, lease=seat.lease, at=AT) == 2
        assert ledger.abandon_calls(run=seat.run, lease=seat.lease, at=AT) == 0
        lines = {line.outcome: line for line in ledger.spending(seat.id)}
        assert (lines["retry"].attempts, lines["retry"].billed, lines["retry"].billed_unknown) == (2, 0, 2)
        assert (lines["retry"].tier_asked, lines["retry"].tier_served) == (Tier.FLEX, None)
        assert lines["open"].attempts == 1
        assert seat.stand(A) == [OPEN]
        assert other.spent() == {"open": 1}

    def test_a_late_outcome_of_an_abandoned_call_counts(self, ledger: Ledger) -> None:
        """An abandoned call whose answer arrives after all is an answer, and its bill is known."""
        seat = Seat(ledger)
        (attempt,) = seat.begin(A)
        ledger.abandon_calls(run=seat.run, lease=seat.lease, at=AT)
        assert ledger.record_calls([(attempt, answer(A))], at=AT, stamp=STAMP) == Recorded(settled=1)
        (line,) = ledger.spending(seat.id)
        assert (line.outcome, line.billed, line.billed_unknown) == ("answer", 1, 0)

    def test_threads_share_a_ledger(self, connect: OpenLedger) -> None:
        """Threads and processes that write at once lose nothing and settle every key exactly once."""
        ledgers = [connect(), connect()]
        seat = Seat(ledgers[0])
        keys = [key(number) for number in range(40)]
        sendings = [seat.begin(*keys) for _ in range(4)]

        def write(number: int) -> list[Recorded]:
            return [
                ledgers[number % 2].record_calls([(attempt, answer(name))], at=AT, stamp=STAMP)
                for attempt, name in zip(sendings[number], keys, strict=True)
            ]

        results = at_once(*(lambda n=n: write(n) for n in range(4)))
        recorded = [one for result in results if isinstance(result, list) for one in result]
        assert sum(one.settled for one in recorded) == 40
        assert sum(one.superseded for one in recorded) == 120
        assert seat.spent() == {"answer": 40, "superseded": 120}


class TestBatches:
    """Which rows are out where, and who waits for them."""

    def test_planning(self, ledger: Ledger) -> None:
        """A planned batch has its rows, its run attached, a token derived from the ledger, and an event."""
        seat = Seat(ledger)
        batch = seat.plan(A, B)
        assert batch == Batch(
            id=batch.id,
            version=batch.version,
            state=BatchState.PLANNED,
            step_run_id=seat.id,
            provider="openai",
            account="org/project",
            model="gpt-6-luna",
            endpoint="/v1/responses",
            tier=Tier.BATCH,
            token=derived_token(ledger.ledger_id, "batch", batch.id, 1),
            submission=1,
            rows=2,
            created_at=AT,
        )
        assert ledger.batch(batch.id) == batch
        assert ledger.batches_of(seat.id) == [batch]
        assert ledger.live_batches() == [batch]
        assert ledger.waiting_for(batch.id) == [seat.id]
        assert seat.spent() == {"open": 2}
        (event,) = ledger.events("batch", str(batch.id))
        assert (event.before, event.after, event.at) == (None, "planned", AT)

    def test_a_key_that_is_out_is_not_planned_again(self, ledger: Ledger) -> None:
        """A key in a live batch that the run has not left cannot be paid a second time by a race."""
        one, other = Seat(ledger, "one"), Seat(ledger, "other")
        batch = one.plan(A)
        with pytest.raises(IllegalTransition, match=f"1 of 2 keys are out already, batch {batch.id}"):
            other.plan(A, B)
        assert ledger.batches_of(other.id) == []
        assert other.stand(B) == [OPEN]
        ledger.leave(batch.id, run=other.run, lease=other.lease, at=AT)
        assert other.plan(A, B).rows == 2

    @pytest.mark.parametrize("keys", [(), (A, B, A)], ids=["none", "twice"])
    def test_a_batch_that_a_provider_would_refuse(self, ledger: Ledger, keys: tuple[str, ...]) -> None:
        """A batch without rows, or with one of them twice, is never planned."""
        with pytest.raises(LedgerError, match="cannot be sent"):
            Seat(ledger).plan(*keys)
        assert ledger.live_batches() == []

    def test_keys_stream_in_the_order_packed(self, ledger: Ledger) -> None:
        """A batch's keys come back as they were packed, in chunks, also those that were known before."""
        seat = Seat(ledger)
        seat.ask(retry(key(7_000)))
        keys = [key(number) for number in range(12_000)]
        batch = seat.plan(*keys)
        chunks = list(ledger.batch_keys(batch.id))
        assert [name for chunk in chunks for name in chunk] == keys
        assert max(len(chunk) for chunk in chunks) < len(keys)

    def test_an_unknown_batch(self, ledger: Ledger) -> None:
        """Asking for a batch that is not there names it; it has no keys and nobody waits for it."""
        seat = Seat(ledger)
        for ask in (
            lambda: ledger.batch(7),
            lambda: ledger.attach(7, step_run_id=seat.id),
            lambda: ledger.leave(7, run=seat.run, lease=seat.lease, at=AT),
        ):
            with pytest.raises(LedgerError, match="holds no batch 7"):
                ask()
        assert list(ledger.batch_keys(7)) == []
        assert ledger.waiting_for(7) == []
        assert ledger.batches_of("unknown") == []

    @pytest.mark.parametrize("state", BatchState)
    def test_out_only_while_live(self, ledger: Ledger, state: BatchState) -> None:
        """A row is out exactly while its batch is live and has not released it; live batches are listed."""
        seat = Seat(ledger)
        batch = seat.advance(seat.plan(A), *PATHS[state])
        assert batch.state is state
        out = state in LIVE_STATES and state is not BatchState.OVERDUE
        assert (seat.stand(A)[0].state is RequestState.OUT) == out
        assert ledger.live_batches() == ([batch] if state in LIVE_STATES else [])

    def test_attaching_and_leaving(self, ledger: Ledger) -> None:
        """Runs share a batch until each of them leaves it; the last one to leave is told so."""
        one, other = Seat(ledger, "one"), Seat(ledger, "other")
        batch = one.plan(A)
        assert other.stand(A) == [Standing(RequestState.OUT, batch_id=batch.id)]
        for _ in range(2):
            ledger.attach(batch.id, step_run_id=other.id)
        assert ledger.batches_of(other.id) == [batch]
        assert ledger.waiting_for(batch.id) == [one.id, other.id]
        assert ledger.leave(batch.id, run=one.run, lease=one.lease, at=AT) == 1
        assert one.stand(A) == [OPEN]
        assert other.stand(A) == [Standing(RequestState.OUT, batch_id=batch.id)]
        assert ledger.batches_of(one.id) == []
        assert ledger.batches_of(one.id, left=True) == [batch]
        assert ledger.waiting_for(batch.id) == [other.id]
        assert ledger.leave(batch.id, run=one.run, lease=one.lease, at=AT) == 1
        assert ledger.leave(batch.id, run=other.run, lease=other.lease, at=AT) == 0

    def test_leaving_is_for_good(self, ledger: Ledger) -> None:
        """A late note that a run waits does not undo its decision to leave."""
        seat = Seat(ledger)
        batch = seat.plan(A)
        ledger.leave(batch.id, run=seat.run, lease=seat.lease, at=AT)
        ledger.attach(batch.id, step_run_id=seat.id)
        assert ledger.waiting_for(batch.id) == []
        assert seat.stand(A) == [OPEN]

    def test_only_a_known_run_attaches(self, ledger: Ledger) -> None:
        """A run that never entered cannot wait for a batch."""
        batch = Seat(ledger).plan(A)
        with pytest.raises(LedgerError, match="knows no step run 'nobody'"):
            ledger.attach(batch.id, step_run_id="nobody")

    def test_lines_of_a_left_batch_still_count(self, ledger: Ledger) -> None:
        """What a batch delivers after a run left it is an answer for everybody."""
        seat = Seat(ledger)
        batch = seat.advance(seat.plan(A), *RUNNING)
        ledger.leave(batch.id, run=seat.run, lease=seat.lease, at=AT)
        assert seat.results(batch, answer(A)) == Recorded(settled=1)
        assert seat.stand(A) == [Standing(RequestState.ANSWERED)]


class TestResults:
    """Lines of a batch, in any order, once, twice or late."""

    def test_lines_by_key_in_any_order(self, ledger: Ledger) -> None:
        """Lines find their attempts whatever their order; foreign keys are counted and kept out."""
        one, other = Seat(ledger, "one"), Seat(ledger, "other")
        batch = one.advance(one.plan(A, B, C), *RUNNING)
        other.plan(D)
        recorded = one.results(batch, answer(C), answer(D), answer(key("never")), retry(A), answer(B))
        assert recorded == Recorded(settled=2, unknown=2)
        assert one.stand(A, B, C, D) == [
            Standing(RequestState.OPEN, tries=1, reason="broken_line"),
            Standing(RequestState.ANSWERED),
            Standing(RequestState.ANSWERED),
            Standing(RequestState.OUT, batch_id=batch.id + 1),
        ]
        assert one.results(batch) == Recorded()

    def test_a_second_line_changes_nothing(self, ledger: Ledger) -> None:
        """Harvesting a batch twice, whole or in part, leaves it as once."""
        seat = Seat(ledger)
        batch = seat.advance(seat.plan(A, B, C), *RUNNING)
        lines = [answer(A, "one"), answer(A, "two"), retry(B), failure(C)]
        assert seat.results(batch, *lines) == Recorded(settled=2)
        before = (seat.stand(A, B, C), ledger.spending(seat.id))
        assert seat.results(batch, *lines, answer(B)) == Recorded()
        assert seat.results(batch, answer(A, "three")) == Recorded()
        assert (seat.stand(A, B, C), ledger.spending(seat.id)) == before

    def test_a_line_for_an_answered_key_is_superseded(self, ledger: Ledger) -> None:
        """A row that went live beside its batch keeps the live answer; both bills are on the account."""
        seat = Seat(ledger)
        batch = seat.advance(seat.plan(A, B), *RUNNING)
        seat.leave(batch)
        seat.ask(answer(A, "live"))
        recorded = seat.results(batch, answer(A, "batch", tier_served=Tier.BATCH), answer(B))
        assert recorded == Recorded(settled=1, superseded=1)
        (found,) = ledger.answers([A], step_run_id=seat.id)
        assert found is not None
        assert found.text == "live"
        assert seat.spent() == {"answer": 2, "superseded": 1}

    def test_a_line_that_fails_fails_for_the_run_that_packed_it(self, ledger: Ledger) -> None:
        """An attached run sees the row open: the failure is not its own."""
        one, other = Seat(ledger, "one"), Seat(ledger, "other")
        batch = one.advance(one.plan(A), *RUNNING)
        ledger.attach(batch.id, step_run_id=other.id)
        one.results(batch, failure(A))
        assert one.stand(A) == [Standing(RequestState.FAILED, reason="content_too_long")]
        assert other.stand(A) == [OPEN]

    @pytest.mark.parametrize("state", [BatchState.OVERDUE, BatchState.DISCARDED, BatchState.SETTLED])
    def test_a_late_line_still_counts(self, ledger: Ledger, state: BatchState) -> None:
        """A line for a released row is an answer; where the row was answered meanwhile, it is a bill."""
        seat = Seat(ledger)
        batch = seat.advance(seat.plan(A, B), *PATHS[state])
        assert seat.spent() == {"released": 2}
        seat.ask(answer(A, "live"))
        assert seat.results(batch, answer(A), answer(B)) == Recorded(settled=1, superseded=1)
        assert seat.spent() == {"answer": 2, "superseded": 1}

    def test_a_large_harvest_in_groups(self, connect: OpenLedger) -> None:
        """Groups of a harvest, with what went live or came twice among them, settle every row once."""
        ledger, elsewhere = connect(), connect()
        seat = Seat(ledger)
        keys = [key(number) for number in range(600)]
        batch = seat.advance(seat.plan(*keys), *RUNNING)
        seat.leave(batch)
        live = seat.begin(*keys[150:300], tier=Tier.FLEX)
        assert seat.results(batch, *map(answer, keys[:200])) == Recorded(settled=200)
        raced = [(attempt, answer(name)) for attempt, name in zip(live, keys[150:300], strict=True)]
        assert elsewhere.record_calls(raced, at=AT, stamp=STAMP) == Recorded(settled=100, superseded=50)
        assert seat.results(batch, *map(answer, keys[190:400])) == Recorded(settled=100, superseded=100)
        assert seat.results(batch, *map(answer, keys[400:])) == Recorded(settled=200)
        assert seat.stand(*keys) == [Standing(RequestState.ANSWERED)] * 600
        assert seat.spent() == {"answer": 600, "superseded": 150}

    def test_settling_opens_what_had_no_line(self, ledger: Ledger) -> None:
        """Rows that a completed batch says nothing of are open again, and the silence counts as a try."""
        seat = Seat(ledger)
        batch = seat.advance(seat.plan(A, B, C), *RUNNING, BatchState.COMPLETED)
        seat.results(batch, answer(A))
        settled, opened = ledger.settle_batch(batch, lease=seat.lease, at=AT + HOUR)
        assert (settled.state, opened) == (BatchState.SETTLED, 2)
        tried = Standing(RequestState.OPEN, tries=1, reason="missing_in_results")
        assert seat.stand(A, B, C) == [Standing(RequestState.ANSWERED), tried, tried]
        assert seat.spent() == {"answer": 1, "released": 2}
        assert ledger.events("batch", str(batch.id))[-1].after == "settled"

    @pytest.mark.parametrize("end", [BatchState.EXPIRED, BatchState.FAILED, BatchState.CANCELLED])
    def test_an_end_of_the_whole_batch_is_no_try(self, ledger: Ledger, end: BatchState) -> None:
        """Rows that were cut off with their batch are open again as if they had not been asked."""
        seat = Seat(ledger)
        batch = seat.advance(seat.plan(A, B), *RUNNING, end)
        seat.results(batch, answer(A))
        assert ledger.settle_batch(batch, lease=seat.lease, at=AT)[1] == 1
        assert seat.stand(A, B) == [Standing(RequestState.ANSWERED), OPEN]

    def test_overdue_rows_are_released_once(self, ledger: Ledger) -> None:
        """A batch that ends after its rows were released neither opens nor tries them a second time."""
        seat = Seat(ledger)
        batch = seat.advance(seat.plan(A, B), *RUNNING, BatchState.OVERDUE, BatchState.COMPLETED)
        assert seat.stand(A) == [OPEN]
        assert ledger.settle_batch(batch, lease=seat.lease, at=AT)[1] == 0
        assert seat.stand(A, B) == [OPEN, OPEN]

    @pytest.mark.parametrize("state", sorted(set(BatchState) - ENDED_STATES))
    def test_only_an_ended_batch_is_settled(self, ledger: Ledger, state: BatchState) -> None:
        """Settling what may still answer would lose what was paid for."""
        seat = Seat(ledger)
        batch = seat.advance(seat.plan(A), *PATHS[state])
        before = (ledger.batch(batch.id), seat.stand(A))
        with pytest.raises(IllegalTransition, match=f"is {state}, which .* may follow, and not settled"):
            ledger.settle_batch(batch, lease=seat.lease, at=AT)
        assert (ledger.batch(batch.id), seat.stand(A)) == before


class TestBatchLife:
    """The states of a batch and the facts noted beside them."""

    def test_the_instants_of_a_life(self, ledger: Ledger) -> None:
        """Each change leaves its instant, what the provider told, and an event."""
        seat = Seat(ledger)

        def step(batch: Batch, state: BatchState, hours: int, **more: Any) -> Batch:
            return ledger.advance_batch(batch, state, lease=seat.lease, at=AT + hours * HOUR, **more)

        batch = step(seat.plan(A), BatchState.SUBMITTING, 1, input_file_id="file_1")
        batch = step(
            batch,
            BatchState.IN_PROGRESS,
            2,
            provider_batch=told("batch_9"),
            next_poll_at=AT + 3 * HOUR,
            detail="found",
        )
        batch = ledger.note_batch(batch, provider_batch=told("batch_9", counts=BatchCounts(3, 2, 1)))
        batch = step(batch, BatchState.CANCELLING, 4)
        ended = told(
            "batch_9",
            status=ProviderBatchStatus.CANCELLED,
            ended_at=AT + 5 * HOUR,
            error_codes=("a", "b"),
        )
        batch = step(batch, BatchState.CANCELLED, 6, provider_batch=ended)
        assert batch == msgspec.structs.replace(
            ledger.batch(batch.id),
            input_file_id="file_1",
            provider_batch_id="batch_9",
            counts=BatchCounts(3, 1, 0),
            error_codes=("a", "b"),
            submitting_at=AT + HOUR,
            submitted_at=AT + 2 * HOUR,
            next_poll_at=AT + 3 * HOUR,
            cancel_at=AT + 4 * HOUR,
            ended_at=AT + 5 * HOUR,
            polls=2,
        )
        events = ledger.events("batch", str(batch.id))
        assert [(event.before, event.after, event.detail) for event in events] == [
            (None, "planned", None),
            ("planned", "submitting", None),
            ("submitting", "in_progress", "found"),
            ("in_progress", "cancelling", None),
            ("cancelling", "cancelled", None),
        ]

    def test_proven_absent(self, ledger: Ledger) -> None:
        """A submission that never arrived is planned anew: another token, no file, the same rows out."""
        seat = Seat(ledger)
        batch = seat.advance(seat.plan(A), BatchState.SUBMITTING, input_file_id="file_1")
        again = seat.advance(batch, BatchState.PLANNED)
        assert (again.submission, again.token) == (2, derived_token(ledger.ledger_id, "batch", batch.id, 2))
        assert (again.input_file_id, again.submitting_at, again.provider_batch_id) == (None, None, None)
        assert seat.stand(A) == [Standing(RequestState.OUT, batch_id=batch.id)]
        assert seat.advance(again, *RUNNING).submission == 2

    @pytest.mark.parametrize("after", BatchState)
    @pytest.mark.parametrize("before", BatchState)
    def test_the_lifecycle(self, ledger: Ledger, before: BatchState, after: BatchState) -> None:
        """Exactly the steps of `TRANSITIONS` are taken; any other is refused and leaves no trace."""
        seat = Seat(ledger)
        batch = seat.advance(seat.plan(A), *PATHS[before])
        events = ledger.events("batch", str(batch.id))
        if after in TRANSITIONS[before]:
            moved = seat.advance(batch, after)
            assert (moved.state, moved.version) == (after, batch.version + 1)
            assert ledger.batch(batch.id) == moved
            assert len(ledger.events("batch", str(batch.id))) == len(events) + 1
        else:
            with pytest.raises(IllegalTransition, match=f"is {before}, which .* may follow, and not {after}"):
                seat.advance(batch, after)
            assert ledger.batch(batch.id) == batch
            assert ledger.events("batch", str(batch.id)) == events

    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(steps=st.lists(st.tuples(st.sampled_from(BatchState), st.integers(0, 2)), max_size=14))
    def test_random_lives(self, ledger: Ledger, steps: list[tuple[BatchState, int]]) -> None:
        """Whatever is tried, on the current version or on older ones, only legal steps of it happen."""
        seat = Seat(ledger, "random")
        seen = [seat.plan(key(f"life-{ledger.live_batches()[-1].id if ledger.live_batches() else 0}"))]
        lived = [seen[0].state]
        for state, age in steps:
            decided_on = seen[max(0, len(seen) - 1 - age)]
            legal = decided_on is seen[-1] and state in TRANSITIONS[lived[-1]]
            if legal:
                seen.append(seat.advance(decided_on, state))
                lived.append(state)
            else:
                with pytest.raises(IllegalTransition):
                    seat.advance(decided_on, state)
            assert ledger.batch(seen[0].id) == seen[-1]
        assert [event.after for event in ledger.events("batch", str(seen[0].id))] == lived
        # Out of the way of the next life, whose key must be free.
        for state in {BatchState.PLANNED, BatchState.SUBMITTING, BatchState.OVERDUE} & {lived[-1]}:
            assert BatchState.DISCARDED in TRANSITIONS[state]
            seat.advance(seen[-1], BatchState.DISCARDED)

    def test_the_first_step_wins(self, connect: OpenLedger) -> None:
        """Of two processes that take a batch on from one version, one does and the other is refused."""
        ledgers = [connect(), connect()]
        seat = Seat(ledgers[0])
        batch = seat.advance(seat.plan(A), BatchState.SUBMITTING)
        states = (BatchState.PLANNED, BatchState.IN_PROGRESS)
        results = at_once(
            *(
                lambda each=each, state=state: each.advance_batch(batch, state, lease=seat.lease, at=AT)
                for each, state in zip(ledgers, states, strict=True)
            )
        )
        (moved,) = (result for result in results if isinstance(result, Batch))
        assert sum(isinstance(result, IllegalTransition) for result in results) == 1
        assert ledgers[1].batch(batch.id) == moved

    @pytest.mark.parametrize(
        "step",
        [
            lambda ledger, batch, lease: ledger.advance_batch(batch, BatchState.SETTLED, lease=lease, at=AT),
            lambda ledger, batch, lease: ledger.settle_batch(batch, lease=lease, at=AT),
        ],
        ids=["advance_batch", "settle_batch"],
    )
    def test_no_step_without_the_lease(self, ledger: Ledger, step: Callable[[Ledger, Batch, Lease], object]) -> None:
        """A process that lost the batch's lease takes it no step further."""
        seat = Seat(ledger)
        lease = taken(ledger, "batch:1", owner="one")
        batch = seat.advance(seat.plan(A), *RUNNING, BatchState.COMPLETED)
        taken(ledger, "batch:1", owner="two", now=AT + HOUR)
        with pytest.raises(LeaseLost, match="'two' holds it"):
            step(ledger, batch, lease)
        assert ledger.batch(batch.id) == batch

    def test_progress_spoils_no_decision(self, ledger: Ledger) -> None:
        """A look that tells counts only, by whoever, leaves the version that decisions are made on."""
        seat = Seat(ledger)
        batch = seat.advance(seat.plan(A), *RUNNING, provider_batch=told())
        noted = ledger.note_batch(batch, provider_batch=told(counts=BatchCounts(3, 3, 0)), next_poll_at=AT + MINUTE)
        assert noted == msgspec.structs.replace(
            batch, counts=BatchCounts(3, 3, 0), next_poll_at=AT + MINUTE, polls=batch.polls + 1
        )
        assert seat.advance(batch, BatchState.COMPLETED).state is BatchState.COMPLETED

    def test_an_id_that_becomes_known_does(self, ledger: Ledger) -> None:
        """No proof of absence goes through once somebody has noted the batch's id at the provider."""
        seat = Seat(ledger)
        batch = seat.advance(seat.plan(A), BatchState.SUBMITTING)
        noted = ledger.note_batch(batch, provider_batch=told("batch_9"))
        assert noted.provider_batch_id == "batch_9"
        with pytest.raises(IllegalTransition, match="Read it again"):
            seat.advance(batch, BatchState.PLANNED)
        assert ledger.note_batch(noted, input_file_id="file_1").input_file_id == "file_1"

    def test_absent_is_only_what_has_no_id(self, ledger: Ledger) -> None:
        """A batch whose id is on record is at the provider, whatever a list did not show."""
        seat = Seat(ledger)
        batch = seat.advance(seat.plan(A), BatchState.SUBMITTING)
        noted = ledger.note_batch(batch, provider_batch=told("batch_9"))
        with pytest.raises(IllegalTransition, match="is at the provider as batch_9"):
            seat.advance(noted, BatchState.PLANNED)
        assert ledger.batch(batch.id) == noted

    def test_an_id_is_not_overwritten(self, ledger: Ledger) -> None:
        """No step is decided on another batch than the one on record, nor on one that is another's."""
        seat = Seat(ledger)
        batch = seat.advance(seat.plan(A), *RUNNING, provider_batch=told("batch_1"))
        with pytest.raises(IllegalTransition, match="as batch_1; batch_2 is another one"):
            seat.advance(batch, BatchState.COMPLETED, provider_batch=told("batch_2"))
        other = seat.advance(seat.plan(B), BatchState.SUBMITTING)
        with pytest.raises(IllegalTransition, match=f"batch_1 is batch {batch.id} of this ledger already"):
            seat.advance(other, BatchState.IN_PROGRESS, provider_batch=told("batch_1"))
        assert (ledger.batch(batch.id), ledger.batch(other.id)) == (batch, other)


class TestCopies:
    """What the provider has a second time is watched, harvested and priced like any batch."""

    def running(self, seat: Seat, *keys: str) -> Batch:
        """A batch that the provider confirmed as `batch_1`."""
        batch = seat.advance(seat.plan(*keys), BatchState.SUBMITTING, input_file_id="file_1")
        return seat.advance(batch, BatchState.IN_PROGRESS, provider_batch=told("batch_1"))

    def test_a_copy_is_a_batch_of_its_own(self, ledger: Ledger) -> None:
        """It has the rows, the run and the token of what it is a copy of, nobody waits for it, and an event tells."""
        seat = Seat(ledger)
        batch = self.running(seat, B, A)
        seen = told("batch_2", created_at=AT + MINUTE, counts=BatchCounts(2, 1, 0))
        copy = ledger.note_copy(batch, seen, token=batch.token, at=AT + HOUR)
        assert copy == msgspec.structs.replace(
            batch,
            id=copy.id,
            version=copy.version,
            provider_batch_id="batch_2",
            counts=BatchCounts(2, 1, 0),
            created_at=AT + HOUR,
            submitted_at=AT + MINUTE,
            polls=0,
            copy_of=batch.id,
        )
        assert copy.id != batch.id
        assert ledger.batch(copy.id) == copy
        assert ledger.batch(batch.id) == batch
        assert list(ledger.batch_keys(copy.id)) == [[B, A]]
        assert ledger.waiting_for(copy.id) == []
        assert ledger.batches_of(seat.id, left=True) == [batch]
        assert ledger.live_batches() == [batch, copy]
        (event,) = ledger.events("batch", str(copy.id))
        assert (event.before, event.after, event.at) == (None, "in_progress", AT + HOUR)
        assert event.detail == f"a copy of batch {batch.id}, at the provider as batch_2"

    def test_a_copy_is_written_down_once(self, ledger: Ledger) -> None:
        """A provider id that is on record, the batch's own too, adds nothing, by whichever way it comes."""
        seat = Seat(ledger)
        batch = self.running(seat, A)
        copy = ledger.note_copy(batch, told("batch_2"), token=batch.token, at=AT)
        assert ledger.note_copy(batch, told("batch_2"), token="other", at=AT + HOUR) == copy
        assert ledger.note_copy(copy, told("batch_2"), token=copy.token, at=AT) == copy
        assert ledger.note_copy(batch, told("batch_1"), token=batch.token, at=AT) == batch
        assert ledger.note_batch(batch, provider_batch=told("batch_2", counts=BatchCounts(9, 9, 9))) == batch
        assert ledger.live_batches() == [batch, copy]
        assert len(ledger.events("batch", str(copy.id))) == 1

    def test_processes_that_find_one_copy_write_it_down_once(self, connect: OpenLedger) -> None:
        """Of processes that note the same copy in the same instant one makes the row and all are given it."""
        ledgers = [connect() for _ in range(3)]
        batch = self.running(Seat(ledgers[0]), A)
        found = at_once(
            *(lambda each=each: each.note_copy(batch, told("batch_2"), token=batch.token, at=AT) for each in ledgers)
        )
        assert len(set(map(repr, found))) == 1
        assert len(ledgers[0].live_batches()) == 2

    def test_a_copy_of_a_copy_names_the_first(self, ledger: Ledger) -> None:
        """However many copies there are and whichever of them is at hand, each names the batch that was planned."""
        batch = self.running(Seat(ledger), A)
        copy = ledger.note_copy(batch, told("batch_2"), token=batch.token, at=AT)
        third = ledger.note_copy(copy, told("batch_3"), token=copy.token, at=AT)
        assert (copy.copy_of, third.copy_of) == (batch.id, batch.id)

    def test_a_look_that_tells_another_id_makes_a_copy(self, ledger: Ledger) -> None:
        """A second id for a batch takes no place, and is written down as a batch with what was told of it."""
        seat = Seat(ledger)
        batch = self.running(seat, A)
        assert ledger.note_batch(batch, provider_batch=told("batch_2", counts=BatchCounts(3, 3, 3))) == batch
        _, copy = ledger.live_batches()
        assert (copy.provider_batch_id, copy.copy_of, copy.counts) == ("batch_2", batch.id, BatchCounts(3, 3, 3))

    def test_what_came_of_an_earlier_submission_is_a_copy(self, ledger: Ledger) -> None:
        """A create that lands after it was proven absent bears the old token and takes no place."""
        seat = Seat(ledger)
        batch = seat.advance(seat.plan(A), BatchState.SUBMITTING, input_file_id="file_1")
        again = seat.advance(batch, BatchState.PLANNED, BatchState.SUBMITTING)
        noted = ledger.note_batch(again, provider_batch=told("batch_old", token=batch.token))
        assert noted == again
        _, copy = ledger.live_batches()
        assert (copy.provider_batch_id, copy.token, copy.submission) == ("batch_old", batch.token, 1)
        assert (copy.input_file_id, copy.submitting_at) == (None, None)
        assert ledger.note_batch(again, provider_batch=told("new", token=again.token)).provider_batch_id == "new"

    def test_a_provider_without_tokens_told_of_what_was_sent(self, ledger: Ledger) -> None:
        """Who confirms a submission that was proven absent meanwhile confirms a copy, not the next one."""
        seat = Seat(ledger)
        sent = seat.advance(seat.plan(A), BatchState.SUBMITTING)
        again = seat.advance(sent, BatchState.PLANNED, BatchState.SUBMITTING)
        assert ledger.note_batch(sent, provider_batch=told("late")) == again
        assert [one.provider_batch_id for one in ledger.live_batches()] == [None, "late"]

    def test_a_discarded_batch_that_turns_up_is_looked_after(self, ledger: Ledger) -> None:
        """Nobody looks at a discarded batch: what the provider has of it after all is a live one beside it."""
        seat = Seat(ledger)
        batch = seat.advance(seat.plan(A), BatchState.SUBMITTING, BatchState.DISCARDED)
        assert ledger.note_batch(batch, provider_batch=told("late")) == batch
        (copy,) = ledger.live_batches()
        assert (copy.provider_batch_id, copy.copy_of) == ("late", batch.id)
        assert seat.stand(A) == [Standing(RequestState.OUT, batch_id=copy.id)]

    def test_out_in_a_copy_only(self, ledger: Ledger) -> None:
        """A row whose batch is over is out in the copy, which is named, so that a run can wait for it or leave it."""
        seat, other = Seat(ledger), Seat(ledger, "b")
        batch = self.running(seat, A, B)
        copy = ledger.note_copy(batch, told("batch_2"), token=batch.token, at=AT)
        assert seat.stand(A) == [Standing(RequestState.OUT, batch_id=batch.id)]
        seat.advance(batch, BatchState.EXPIRED, BatchState.SETTLED)
        out = [Standing(RequestState.OUT, batch_id=copy.id)]
        assert (seat.stand(A), other.stand(A)) == (out, out)
        with pytest.raises(IllegalTransition, match=f"batch {copy.id} among"):
            other.plan(A)
        ledger.attach(copy.id, step_run_id=other.id)
        assert ledger.batches_of(other.id) == [copy]
        seat.leave(copy)
        assert (seat.stand(A), other.stand(A)) == ([OPEN], out)

    def test_a_copy_is_harvested_and_priced(self, ledger: Ledger) -> None:
        """Its lines answer what is open and are bills for the rest, on the account of the run that sent it."""
        seat = Seat(ledger)
        batch = self.running(seat, A, B)
        copy = ledger.note_copy(batch, told("batch_2"), token=batch.token, at=AT)
        assert seat.results(batch, answer(A, "first")) == Recorded(settled=1)
        assert seat.results(copy, answer(A, "copy"), answer(B, "copy")) == Recorded(settled=1, superseded=1)
        found = ledger.answers([A, B], step_run_id=seat.id)
        assert [one and one.text for one in found] == ["first", "copy"]
        assert seat.spent() == {"answer": 2, "superseded": 1, "open": 1}
        copy = seat.advance(copy, BatchState.CANCELLING, BatchState.CANCELLED)
        assert ledger.settle_batch(copy, lease=seat.lease, at=AT)[1] == 0
        assert ledger.batch(batch.id) == batch

    def test_a_copy_replaces_what_its_batch_may_replace(self, ledger: Ledger) -> None:
        """Where an answer too old was asked again, the line that comes first takes its place, and only that."""
        Seat(ledger, "old", stamp=STAMP - 40 * DAY).ask(answer(A, "old"), stamp=STAMP - 40 * DAY)
        seat = Seat(ledger)
        batch = self.running(seat, A)
        copy = ledger.note_copy(batch, told("batch_2"), token=batch.token, at=AT)
        assert seat.results(copy, answer(A, "copy")) == Recorded(settled=1)
        assert seat.results(batch, answer(A, "late")) == Recorded(superseded=1)
        (found,) = ledger.answers([A], step_run_id=seat.id)
        assert found is not None
        assert found.text == "copy"

    def test_tokens(self, ledger: Ledger) -> None:
        """Every submission's token is known, the first one's first; a copy has the one that it bears."""
        seat = Seat(ledger)
        first = seat.advance(seat.plan(A), BatchState.SUBMITTING)
        assert ledger.tokens(first) == [first.token]
        second = seat.advance(first, BatchState.PLANNED, BatchState.SUBMITTING)
        assert ledger.tokens(first) == [first.token, second.token]
        copy = ledger.note_copy(second, told("batch_old"), token=first.token, at=AT)
        assert ledger.tokens(copy) == [first.token]

    def test_doubt_is_for_good(self, ledger: Ledger) -> None:
        """A doubt is a fact: anybody may write it down, it spoils no decision, and nothing takes it away."""
        seat = Seat(ledger)
        batch = seat.advance(seat.plan(A), BatchState.SUBMITTING)
        assert not batch.doubtful
        doubted = ledger.doubt(batch)
        assert doubted == ledger.doubt(doubted) == msgspec.structs.replace(batch, doubtful=True)
        assert seat.advance(batch, BatchState.PLANNED, *RUNNING, BatchState.COMPLETED).doubtful

    def test_doubted_are_the_doubtful_that_are_over(self, ledger: Ledger) -> None:
        """Settled or discarded, of any run, planned since then, the oldest first; none that is live or certain."""
        seat, other = Seat(ledger, "a"), Seat(ledger, "b")
        assert ledger.doubted(since=AT) == []
        settled = ledger.doubt(seat.advance(seat.plan(A), BatchState.SUBMITTING))
        assert ledger.doubted(since=AT) == []
        certain = other.plan(B)
        discarded = other.advance(ledger.doubt(other.plan(C)), BatchState.DISCARDED)
        other.advance(certain, BatchState.DISCARDED)
        told_of = {"provider_batch": told("one")}
        settled = seat.advance(settled, BatchState.IN_PROGRESS, BatchState.COMPLETED, **told_of)
        assert ledger.doubted(since=AT) == [discarded]
        settled = seat.advance(settled, BatchState.SETTLED)
        assert ledger.doubted(since=AT) == [settled, discarded]
        assert ledger.doubted(since=AT + timedelta(microseconds=1)) == []

    def test_a_run_at_its_end_waits_for_nothing(self, ledger: Ledger) -> None:
        """Completed or failed, a run keeps no batch going; reopened, it waits again for what it has not left."""
        seat = Seat(ledger)
        batch = seat.plan(A)
        for end in (StepRunState.COMPLETED, StepRunState.FAILED):
            run = ledger.finish(seat.run, end, lease=seat.lease, at=AT)
            assert ledger.waiting_for(batch.id) == []
            seat.run = ledger.finish(run, StepRunState.RUNNING, lease=seat.lease, at=AT)
            assert ledger.waiting_for(batch.id) == [seat.id]
        assert [one.id for one in ledger.batches_of(seat.id)] == [batch.id]

    def test_what_is_known_of_the_providers_list(self, ledger: Ledger) -> None:
        """Every id of this provider since then is known: live or over, copy or not, sent late or planned late."""
        seat = Seat(ledger)
        first = seat.advance(seat.plan(A), BatchState.SUBMITTING)
        first = ledger.advance_batch(
            first, BatchState.IN_PROGRESS, lease=seat.lease, at=AT + 3 * HOUR, provider_batch=told("one")
        )
        seat.advance(first, BatchState.COMPLETED, BatchState.SETTLED)
        ledger.note_copy(first, told("two"), token=first.token, at=AT + 5 * HOUR)
        seat.plan(B)
        assert ledger.known_provider_batches(provider="openai", since=AT) == {"one", "two"}
        assert ledger.known_provider_batches(provider="openai", since=AT + 3 * HOUR) == {"one", "two"}
        assert ledger.known_provider_batches(provider="openai", since=AT + 4 * HOUR) == {"two"}
        assert ledger.known_provider_batches(provider="openai", since=AT + 6 * HOUR) == set()
        assert ledger.known_provider_batches(provider="anthropic", since=AT) == set()


class TestClaims:
    """Two runs, one key: what one has sent, the other does not send."""

    def test_a_live_call_of_a_run_that_is_alive_is_out(self, ledger: Ledger) -> None:
        """It is out for every other run until that run's lease ends, and for itself it is open."""
        one, other = Seat(ledger, "one"), Seat(ledger, "other")
        one.begin(A)
        just_before = one.lease.until - timedelta(microseconds=1)
        assert other.stand(A, B, now=just_before) == [Standing(RequestState.OUT), OPEN]
        assert other.stand(A, now=one.lease.until) == [OPEN]
        assert other.stand(A) == [OPEN]
        assert one.stand(A, now=AT) == [OPEN]
        assert ledger.stand([A], step_run_id="unknown", not_before=None, now=AT) == [Standing(RequestState.OUT)]

    @pytest.mark.parametrize("end", ["released", "renewed", "abandoned", "answered", "tried", "taken over"])
    def test_a_claim_lasts_as_long_as_the_call_and_the_lease(self, ledger: Ledger, end: str) -> None:
        """A lease given back, a call abandoned or ended, frees the key; a lease renewed or taken over holds it."""
        one, other = Seat(ledger, "one"), Seat(ledger, "other")
        (attempt,) = one.begin(A)
        now, expected = AT, OPEN
        match end:
            case "released":
                ledger.release(one.lease)
            case "renewed":
                ledger.renew(one.lease, until=AT + 9 * HOUR)
                now, expected = AT + 8 * HOUR, Standing(RequestState.OUT)
            case "abandoned":
                ledger.abandon_calls(run=one.run, lease=one.lease, at=AT)
            case "answered":
                ledger.record_calls([(attempt, answer(A))], at=AT, stamp=STAMP)
                expected = Standing(RequestState.ANSWERED)
            case "tried":
                ledger.record_calls([(attempt, retry(A))], at=AT, stamp=STAMP)
            case _:
                taken(ledger, one.lease.name, owner="heir", now=AT + HOUR)
                now, expected = AT + HOUR, Standing(RequestState.OUT)
        assert other.stand(A, now=now) == [expected]

    def test_a_batch_is_named_before_a_call(self, ledger: Ledger) -> None:
        """A key that is out both ways is out in the batch: that can be attached to."""
        one, other, third = Seat(ledger, "one"), Seat(ledger, "other"), Seat(ledger, "third")
        batch = one.plan(A)
        other.leave(batch)
        other.begin(A)
        assert third.stand(A, now=AT) == [Standing(RequestState.OUT, batch_id=batch.id)]

    def test_what_another_run_is_asking_is_not_asked(self, ledger: Ledger) -> None:
        """Of keys that one run has out, are answered or are in a batch, another one begins none, unless told so."""
        one, other = Seat(ledger, "one"), Seat(ledger, "other")
        one.begin(A)
        one.ask(answer(B))
        one.plan(C)
        begun = other.try_to_begin(A, B, C, D, A)
        assert [attempt is None for attempt in begun] == [True, True, True, False, True]
        begun = other.try_to_begin(A, B, C, share=False)
        assert [attempt is None for attempt in begun] == [False, True, True]
        assert other.try_to_begin(A, at=one.lease.until) != [None]
        assert other.spent() == {"open": 3}

    def test_what_one_asked_itself_does_not_stop_it(self, ledger: Ledger) -> None:
        """Who takes a run over asks again what was in flight, once or twice in one sending."""
        seat = Seat(ledger)
        seat.begin(A)
        begun = seat.try_to_begin(A, A, B)
        assert None not in begun
        assert len(set(begun)) == 3

    def test_an_answer_too_old_is_asked_again(self, ledger: Ledger) -> None:
        """What counts as answered is what `stand` says: the age for other runs' answers, any age for one's own."""
        Seat(ledger, "old", stamp=STAMP - 40 * DAY).ask(answer(A), stamp=STAMP - 40 * DAY)
        seat = Seat(ledger)
        assert seat.try_to_begin(A, not_before=STAMP - 50 * DAY) == [None]
        (attempt,) = seat.try_to_begin(A, not_before=STAMP - 30 * DAY)
        assert attempt is not None
        ledger.record_calls([(attempt, answer(A))], at=AT, stamp=STAMP - 35 * DAY)
        assert seat.try_to_begin(A, not_before=STAMP - 30 * DAY) == [None]

    def test_a_failure_does_not_stop_a_call(self, ledger: Ledger) -> None:
        """Whether a failed key is asked once more is the caller's to know."""
        seat = Seat(ledger)
        seat.fail((A, "upstream"))
        assert seat.try_to_begin(A) != [None]

    def test_what_another_run_is_asking_is_not_planned(self, ledger: Ledger) -> None:
        """A batch would pay a second time for what is on its way already; a dead run's calls stop nobody."""
        one, other = Seat(ledger, "one"), Seat(ledger, "other")
        one.begin(A)
        with pytest.raises(IllegalTransition, match="1 of 2 keys are out already, in live calls of another run"):
            other.plan(A, B)
        assert ledger.live_batches() == []
        ledger.release(one.lease)
        assert other.plan(A, B).rows == 2

    def test_a_race_for_new_keys_sends_each_once(self, connect: OpenLedger) -> None:
        """Two runs that begin the same new keys in the same instant share them out between them."""
        ledgers = [connect(), connect()]
        seats = [Seat(ledgers[0], "one"), Seat(ledgers[1], "other")]
        keys = [key(number) for number in range(300)]

        def begin(seat: Seat) -> list[int | None]:
            return [seat.try_to_begin(name)[0] for name in (keys if seat is seats[0] else reversed(keys))]

        one, other = at_once(*(lambda seat=seat: begin(seat) for seat in seats))
        assert isinstance(one, list)
        assert isinstance(other, list)
        assert all((mine is None) != (theirs is None) for mine, theirs in zip(one, reversed(other), strict=True))


class TestAccount:
    """What it came to."""

    def test_what_a_run_spent(self, ledger: Ledger) -> None:
        """One line for each tier and outcome, with what was billed, may be, and has no price."""
        seat = Seat(ledger)
        seat.ask(answer(A, tier_served=Tier.STANDARD), tier=Tier.PRIORITY)
        seat.ask(answer(B, tier_served=Tier.STANDARD, cost_usd=None, list_usd=None), tier=Tier.PRIORITY)
        seat.ask(retry(C, billing=Billing.UNKNOWN), tier=Tier.PRIORITY)
        seat.begin(D, tier=Tier.PRIORITY)
        no_usage = Usage()
        assert ledger.spending(seat.id) == [
            Spending(
                tier_asked=Tier.PRIORITY,
                tier_served=served,
                outcome=outcome,
                attempts=attempts,
                billed=billed,
                billed_unknown=unknown,
                unpriced=unpriced,
                usage=usage,
                cost_usd=cost,
                list_usd=listed,
            )
            for served, outcome, attempts, billed, unknown, unpriced, usage, cost, listed in (
                (None, "open", 1, 0, 0, 0, no_usage, Decimal(0), Decimal(0)),
                (None, "retry", 1, 0, 1, 0, no_usage, Decimal(0), Decimal(0)),
                (
                    Tier.STANDARD,
                    "answer",
                    2,
                    2,
                    0,
                    1,
                    Usage(200, 20, 10, 40, 14),
                    Decimal("0.0000123"),
                    Decimal("0.0000246"),
                ),
            )
        ]
        assert ledger.spending("unknown") == []

    def test_an_attempt_is_on_the_account_of_who_sent_it(self, ledger: Ledger) -> None:
        """A run that is answered by another's batch has spent nothing."""
        one, other = Seat(ledger, "one"), Seat(ledger, "other")
        batch = one.advance(one.plan(A), *RUNNING)
        ledger.attach(batch.id, step_run_id=other.id)
        other.results(batch, answer(A))
        assert ledger.spending(other.id) == []
        assert one.spent() == {"answer": 1}

    @settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        costs=st.lists(st.decimals(min_value=0, max_value=10_000, places=15, allow_nan=False), min_size=1, max_size=12)
    )
    def test_sums_are_exact(self, ledger: Ledger, costs: list[Decimal]) -> None:
        """Money adds up to the last decimal, and every amount comes back digit for digit."""
        run_id = f"sums-{len(ledger.step_runs_of('flow-1'))}"
        seat = Seat(ledger, run_id)
        for number, cost in enumerate(costs):
            name = key(f"{run_id}-{number}")
            seat.ask(answer(name, cost_usd=cost, list_usd=cost * 2))
            (found,) = ledger.answers([name], step_run_id=seat.id)
            assert found is not None
            assert str(found.cost_usd) == str(cost)
        (line,) = ledger.spending(seat.id)
        assert line.cost_usd == sum(costs)
        assert line.list_usd == 2 * sum(costs)


LANE = ObservedLane(
    step="summary",
    tier=Tier.FLEX,
    model="gpt-6-luna",
    began_at=AT,
    requests=40,
    busy=90 * timedelta(seconds=1),
    concurrency=16,
    spacing=timedelta(milliseconds=250),
    latency=timedelta(seconds=2, microseconds=3),
    output_tokens=120.0,
    found_down=True,
    down=30 * MINUTE,
    recoveries=1,
)
OF_LUNA: dict[str, Any] = {"provider": "openai", "model": "gpt-6-luna", "account": "org/project"}


class TestObservations:
    """What the laws of latency are learned from."""

    def seen(self, ledger: Ledger, now: datetime = AT + 9 * HOUR, **asked: Any) -> list[ObservedBatch]:
        return ledger.observed_batches(**(OF_LUNA | {"now": now} | asked))

    def ended(self, seat: Seat, batch: Batch, state: BatchState, counts: BatchCounts, after: timedelta) -> Batch:
        last = told(f"batch_{batch.id}", status=ProviderBatchStatus(state), counts=counts, ended_at=AT + after)
        return seat.advance(batch, state, provider_batch=last)

    def test_a_batch_tells_how_long_it_took_from_its_intent(self, ledger: Ledger) -> None:
        """From the intent to the provider's own end: one that was confirmed late was not short."""
        seat = Seat(ledger)
        batch = seat.advance(seat.plan(A, B), BatchState.SUBMITTING)
        batch = ledger.advance_batch(batch, BatchState.IN_PROGRESS, lease=seat.lease, at=AT + HOUR)
        self.ended(seat, batch, BatchState.COMPLETED, BatchCounts(2, 1, 1), 3 * HOUR)
        assert self.seen(ledger) == [
            ObservedBatch(model="gpt-6-luna", began_at=AT, duration=3 * HOUR, censored=False, requests=2, done=2)
        ]

    def test_a_batch_is_seen_once_however_often_it_is_looked_at(self, connect: OpenLedger) -> None:
        """Whoever dies after an end, settles it twice or reads it elsewhere adds nothing."""
        ledger = connect()
        seat = Seat(ledger)
        batch = self.ended(seat, seat.advance(seat.plan(A), *RUNNING), BatchState.COMPLETED, BatchCounts(1, 1, 0), HOUR)
        before = self.seen(connect())
        ledger.settle_batch(batch, lease=seat.lease, at=AT + 2 * HOUR)
        with pytest.raises(IllegalTransition):
            ledger.settle_batch(batch, lease=seat.lease, at=AT + 3 * HOUR)
        assert len(before) == 1
        assert self.seen(ledger) == self.seen(connect()) == before

    def test_a_running_batch_is_longer_than_it_has_run(self, ledger: Ledger) -> None:
        """What is out counts with its age, and with what it has done as far as is told."""
        seat = Seat(ledger)
        batch = seat.advance(seat.plan(A, B), *RUNNING)
        batch = ledger.note_batch(batch, provider_batch=told(counts=BatchCounts(2, 1, 0)))
        (seen,) = self.seen(ledger, now=AT + 5 * HOUR)
        assert seen == ObservedBatch(
            model="gpt-6-luna", began_at=AT, duration=5 * HOUR, censored=True, requests=2, done=1
        )
        ledger.advance_batch(batch, BatchState.OVERDUE, lease=seat.lease, at=AT + 26 * HOUR)
        (seen,) = self.seen(ledger, now=AT + 30 * HOUR)
        assert (seen.duration, seen.censored) == (30 * HOUR, True)

    def test_a_cancelled_batch_is_longer_than_until_its_cancel(self, ledger: Ledger) -> None:
        """The provider's time to stop it is none that it was worked on; an end that came first counts as it is."""
        seat = Seat(ledger)
        for number, counts in enumerate((BatchCounts(1, 0, 0), BatchCounts(1, 1, 0))):
            batch = seat.advance(seat.plan(key(f"cancel-{number}")), *RUNNING)
            batch = ledger.advance_batch(batch, BatchState.CANCELLING, lease=seat.lease, at=AT + HOUR)
            self.ended(seat, batch, BatchState.CANCELLED, counts, HOUR + 9 * MINUTE)
        too_late, cut = self.seen(ledger)
        assert (cut.duration, cut.censored) == (HOUR, True)
        assert (too_late.duration, too_late.censored) == (HOUR + 9 * MINUTE, False)

    def test_an_expired_batch_is_longer_than_its_window(self, ledger: Ledger) -> None:
        """It ended, and yet was not done."""
        seat = Seat(ledger)
        self.ended(seat, seat.advance(seat.plan(A, B), *RUNNING), BatchState.EXPIRED, BatchCounts(2, 1, 0), 24 * HOUR)
        (seen,) = self.seen(ledger)
        assert (seen.duration, seen.censored, seen.done) == (24 * HOUR, True, 1)

    def test_one_that_was_given_up_is_longer_than_until_then(self, ledger: Ledger) -> None:
        """A batch that never came back is the slowest of all, and not to be forgotten."""
        seat = Seat(ledger)
        batch = seat.advance(seat.plan(A), *RUNNING, BatchState.OVERDUE)
        ledger.advance_batch(batch, BatchState.DISCARDED, lease=seat.lease, at=AT + 27 * HOUR)
        (seen,) = self.seen(ledger, now=AT + 1000 * HOUR)
        assert (seen.duration, seen.censored) == (27 * HOUR, True)

    def test_what_never_ran_tells_nothing(self, ledger: Ledger) -> None:
        """Neither what was not sent or not confirmed, nor what failed its validation, nor a second copy."""
        seat = Seat(ledger)
        seat.plan(A)
        seat.advance(seat.plan(B), BatchState.SUBMITTING)
        batch = seat.advance(seat.plan(C), *RUNNING)
        self.ended(seat, batch, BatchState.FAILED, BatchCounts(), HOUR)
        ledger.note_copy(batch, told("batch_again"), token=batch.token, at=AT)
        assert self.seen(ledger) == []

    def test_the_newest_of_one_account_come_first(self, ledger: Ledger) -> None:
        """Of the provider, the model and the account that are asked for, or of every account; so many at most."""
        seat = Seat(ledger)
        for number in range(3):
            batch = seat.plan(key(f"one-{number}"))
            batch = ledger.advance_batch(batch, BatchState.SUBMITTING, lease=seat.lease, at=AT + number * HOUR)
            seat.advance(batch, BatchState.IN_PROGRESS)
        assert [one.began_at for one in self.seen(ledger)] == [AT + 2 * HOUR, AT + HOUR, AT]
        assert len(self.seen(ledger, limit=2)) == 2
        assert len(self.seen(ledger, account=None)) == 3
        others: list[dict[str, Any]] = [{"provider": "anthropic"}, {"model": "gpt-6"}, {"account": "org/other"}]
        assert [self.seen(ledger, **other) for other in others] == [[], [], []]

    def test_the_visits_of_a_lane_add_up(self, connect: OpenLedger) -> None:
        """One row for each step run and tier: sums, means over requests, and how the tier was first found."""
        ledger = connect()
        seat = Seat(ledger)
        second = ObservedLane(
            step="summary",
            tier=Tier.FLEX,
            model="gpt-6-luna",
            began_at=AT + HOUR,
            requests=120,
            busy=MINUTE,
            concurrency=32,
            latency=timedelta(seconds=6, microseconds=3),
            output_tokens=40.0,
        )
        for lane in (LANE, second):
            ledger.observe_lane(lane, step_run_id=seat.id)
        account: dict[str, Any] = {"provider": seat.run.provider, "account": seat.run.account, "model": "gpt-6-luna"}
        assert connect().observed_lanes(**account, tier=Tier.FLEX) == [
            ObservedLane(
                step="summary",
                tier=Tier.FLEX,
                model="gpt-6-luna",
                began_at=AT,
                visits=2,
                requests=160,
                busy=150 * timedelta(seconds=1),
                concurrency=32,
                latency=timedelta(seconds=5, microseconds=3),
                output_tokens=60.0,
                found_down=True,
                down=30 * MINUTE,
                recoveries=1,
            )
        ]
        assert ledger.observed_lanes(**account, tier=Tier.STANDARD) == []
        assert ledger.observed_lanes(**(account | {"account": "org/other"}), tier=Tier.FLEX) == []

    def test_what_one_step_run_saw(self, ledger: Ledger) -> None:
        """Its own batches and its own lanes, and no other run's."""
        seat, other = Seat(ledger), Seat(ledger, "b")
        seat.advance(seat.plan(A), *RUNNING)
        ledger.observe_lane(LANE, step_run_id=seat.id)
        made, entered = ledger.observed_of(seat.id, now=AT + HOUR)
        assert [batch.requests for batch in made] == [1]
        assert entered == [LANE]
        assert ledger.observed_of(other.id, now=AT) == ([], [])

    def test_the_newest_lanes_come_first(self, ledger: Ledger) -> None:
        """So many at most, of one account or of all."""
        for number in range(3):
            seat = Seat(ledger, f"lane-{number}")
            lane = msgspec.structs.replace(LANE, began_at=AT + number * HOUR, requests=0, model="m")
            ledger.observe_lane(lane, step_run_id=seat.id)
        seen = ledger.observed_lanes(provider=seat.run.provider, model="m", account=None, tier=Tier.FLEX, limit=2)
        assert [one.began_at for one in seen] == [AT + 2 * HOUR, AT + HOUR]


class TestTheWhole:
    """What holds for a ledger as such."""

    def test_every_ledger_has_its_own_id_and_keeps_it(self, connect: OpenLedger) -> None:
        """Whoever opens a ledger finds the id it was given when it was made."""
        first, second = connect(), connect()
        assert first.ledger_id == second.ledger_id
        assert len(first.ledger_id) >= 32

    def test_what_is_committed_is_there_for_others(self, connect: OpenLedger) -> None:
        """When a write returns, another process sees it, also after the first one has closed."""
        first = connect()
        seat = Seat(first)
        seat.ask(answer(A))
        assert connect().stand([A], step_run_id=seat.id, not_before=None, now=None) == [Standing(RequestState.ANSWERED)]
        first.close()
        assert connect().step_run(seat.id) == seat.run

    def test_a_closed_ledger_says_so(self, ledger: Ledger) -> None:
        """Nothing is read from or written to a ledger after it was closed."""
        ledger.close()
        ledger.close()
        with pytest.raises(LedgerUnusable, match="was closed"):
            ledger.live_batches()
        with pytest.raises(LedgerUnusable, match="was closed"):
            ledger.enter(entry("r"), stamp=STAMP)

    def test_naive_instants_are_refused(self, ledger: Ledger) -> None:
        """An instant without a time zone is stored nowhere: it would be hours off somewhere else."""
        with pytest.raises(ValueError, match="no time zone"):
            ledger.stand([A], step_run_id="r", not_before=datetime(2026, 11, 1), now=None)  # noqa: DTZ001
