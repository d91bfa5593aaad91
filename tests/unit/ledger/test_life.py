"""The life of batches and calls under two processes, in any order: no sequence reaches an illegal state."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import text

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
from prefect_llm_tiers.core.outcomes import Billing, Outcome, OutcomeKind
from prefect_llm_tiers.core.runs import Entry, Lease, RequestState, Spending, StepRun
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.errors import IllegalTransition, LeaseLost
from prefect_llm_tiers.ledger import SqlLedger, open_ledger

AT = datetime(2026, 11, 1, 6, tzinfo=UTC)
LEASE = timedelta(hours=1)
RELEASED = frozenset({BatchState.OVERDUE, BatchState.SETTLED, BatchState.DISCARDED})

PROCESSES = st.integers(0, 1)
RUNS = st.integers(0, 1)
ANY = st.integers(0, 20)
"""An index into whatever there is, modulo its length."""
SOME_KEYS = st.sets(st.integers(0, 3), min_size=1)
# Making a failure small takes minutes; put `Phase.shrink` in to look into one.
LONG = settings(max_examples=40, stateful_step_count=40, phases=[Phase.generate])
MOVES = st.tuples(st.sampled_from(BatchState), ANY, st.sampled_from("---np"))
KINDS = st.sampled_from(OutcomeKind)

OPEN_IN_A_FINISHED_BATCH = text(
    "SELECT count(*) FROM attempts JOIN batches ON batches.id = attempts.batch_id WHERE batches.state IN "
    "('overdue', 'settled', 'discarded') AND attempts.closed IS NULL AND NOT EXISTS "
    "(SELECT 1 FROM outcomes WHERE outcomes.attempt_id = attempts.id) AND batches.id > :since"
)
COUNTING_TWICE = text(
    "SELECT count(*) FROM (SELECT request_id FROM outcomes WHERE standing = 'counts' GROUP BY request_id "
    "HAVING count(*) > 1)"
)
ONE_ID_TWICE = text(
    "SELECT count(*) FROM (SELECT provider_batch_id FROM batches WHERE provider_batch_id IS NOT NULL AND id > :since "
    "GROUP BY provider_batch_id HAVING count(*) > 1)"
)


class Life(RuleBasedStateMachine):
    """Two processes, two runs that ask the same keys, and whatever they decide and hear of."""

    ledgers: ClassVar[tuple[SqlLedger, SqlLedger]]
    examples: ClassVar[Iterator[int]] = count(1)

    @initialize()
    def enter(self) -> None:
        """Each process knows both runs; nobody holds anything."""
        number = next(self.examples)
        self.now = AT
        self.turn = 0
        self.keys = [f"{number}-{name}" for name in "abcd"]
        self.runs = [f"{number}-run-{name}" for name in "xy"]
        self.ids = (f"{number}-batch-{one}" for one in count(1))
        self.prices = (Decimal(one) / 1000 for one in count(1))
        self.texts = (f"answer {one}" for one in count(1))
        self.leases: dict[tuple[int, str], Lease] = {}
        self.batches: list[int] = []
        self.known_ids: list[str] = []
        self.calls: list[tuple[int, str, str]] = []
        self.seen_runs: dict[tuple[int, str], StepRun] = {}
        self.seen: dict[tuple[int, int], Batch] = {}
        self.told: set[tuple[int | None, int | str]] = set()
        self.answered: dict[str, str] = {}
        self.spent: dict[str, Decimal] = defaultdict(Decimal)
        self.since = max(self.batches_since(0), default=0)
        for run in self.runs:
            entry = Entry(
                id=run,
                flow_run_id=str(number),
                step="s",
                key_digest="",
                requests=4,
                rows=4,
                provider="openai",
                account="org",
                deadline=None,
                entered_at=AT,
            )
            for process in (0, 1):
                self.seen_runs[process, run] = self.ledgers[process].enter(entry, stamp=AT)

    # What the processes know and hold

    @rule(process=PROCESSES, what=st.sampled_from(["takes", "gives back", "looks", "waits", "sleeps"]), which=ANY)
    def does(self, process: int, what: str, which: int) -> None:
        """Take a lease if it is free, give back what one may have lost, read everything again, or let time pass."""
        names = [f"step:{run}" for run in self.runs] + [f"batch:{batch}" for batch in self.batches]
        name = names[which % len(names)]
        match what:
            case "takes":
                self.acquire(process, name)
            case "gives back":
                lease = self.leases.pop((process, name), None)
                if lease is not None:
                    self.ledgers[process].release(lease)
            case "looks":
                self.looks(process)
            case "waits":
                self.now += timedelta(minutes=30)
            case _:
                # Every lease has ended, and whoever is first takes it.
                self.now += timedelta(minutes=61)
                self.acquire(process, name)

    def acquire(self, process: int, name: str) -> Lease | None:
        held = self.ledgers[process].lease(name)
        free = held is None or held.until <= self.now or held.owner == f"p{process}"
        lease = self.ledgers[process].acquire(name, owner=f"p{process}", now=self.now, until=self.now + LEASE)
        assert (lease is not None) == free
        if lease is not None:
            self.leases[process, name] = lease
        return lease

    def looks(self, process: int) -> None:
        """Read everything again."""
        for run in self.runs:
            found = self.ledgers[process].step_run(run)
            assert found is not None
            self.seen_runs[process, run] = found
        for batch in self.batches:
            self.seen[process, batch] = self.ledgers[process].batch(batch)

    def decided(self, process: int, name: str, legal: bool, decide: Callable[[Lease], object]) -> object | None:
        """Decide under a lease, which works if it is still held and the decision is legal, and else changes nothing."""
        lease = self.leases.get((process, name)) or self.acquire(process, name)
        if lease is None:
            return None
        held = self.ledgers[process].lease(name)
        holds = held is not None and (held.owner, held.epoch) == (lease.owner, lease.epoch)
        if holds and legal:
            return decide(lease)
        with pytest.raises(IllegalTransition if holds else LeaseLost):
            decide(lease)
        if not holds:
            del self.leases[process, name]
        self.looks(process)
        return None

    def is_current(self, process: int, run: str) -> bool:
        found = self.ledgers[process].step_run(run)
        return found is not None and found.version == self.seen_runs[process, run].version

    # Decisions on runs

    @rule(process=PROCESSES, run=RUNS, tier=st.sampled_from(Tier))
    def switches(self, process: int, run: int, tier: Tier) -> None:
        """Decide on the tier, which makes what others have seen of the run old."""
        name = self.runs[run]
        stored = self.decided(
            process,
            f"step:{name}",
            self.is_current(process, name),
            lambda lease: self.ledgers[process].record_tier(
                self.seen_runs[process, name], tier, lease=lease, at=self.now
            ),
        )
        if isinstance(stored, StepRun):
            self.seen_runs[process, name] = stored

    @rule(process=PROCESSES, run=RUNS, chosen=SOME_KEYS)
    def plans(self, process: int, run: int, chosen: set[int]) -> None:
        """Pack keys into a batch; one that is out stops it."""
        name, keys = self.runs[run], [self.keys[one] for one in sorted(chosen)]
        legal = self.is_current(process, name) and self.carried(name).keys().isdisjoint(keys)
        batch = self.decided(
            process,
            f"step:{name}",
            legal,
            lambda lease: self.ledgers[process].plan_batch(
                keys,
                run=self.seen_runs[process, name],
                provider="openai",
                account="org",
                model="m",
                endpoint="/v1/responses",
                lease=lease,
                at=self.now,
            ),
        )
        if isinstance(batch, Batch):
            self.add(batch)

    def carried(self, run: str) -> dict[str, set[str]]:
        """The keys that a `batch` or another run's `call` carries, by the rows of the tables and not by `stand`."""
        with self.ledgers[0]._database.read() as connection:
            rows = connection.execute(
                text(
                    "SELECT requests.key, attempts.batch_id, batches.state, step_runs.id, leases.owner, leases.until, "
                    "(SELECT left_at FROM attachments JOIN step_runs me ON me.number = attachments.step_run "
                    " WHERE me.id = :run AND attachments.batch_id = attempts.batch_id) "
                    "FROM attempts JOIN requests ON requests.id = attempts.request_id "
                    "JOIN step_runs ON step_runs.number = attempts.step_run "
                    "LEFT JOIN batches ON batches.id = attempts.batch_id "
                    "LEFT JOIN leases ON leases.name = 'step:' || step_runs.id "
                    "LEFT JOIN outcomes ON outcomes.attempt_id = attempts.id "
                    "WHERE attempts.closed IS NULL AND outcomes.id IS NULL AND step_runs.flow_run_id = :flow"
                ),
                {"run": run, "flow": self.runs[0].split("-")[0]},
            ).all()
        micros = int((self.now - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))
        carried: dict[str, set[str]] = defaultdict(set)
        for key, batch, state, sender, owner, until, left in rows:
            if batch is not None:
                if state in LIVE_STATES and left is None:
                    carried[key].add("batch")
            elif sender != run and owner is not None and until > micros:
                carried[key].add("call")
        return dict(carried)

    def add(self, batch: Batch) -> None:
        if batch.id not in self.batches:
            self.batches.append(batch.id)
        for process in (0, 1):
            self.seen.setdefault((process, batch.id), batch)

    @rule(process=PROCESSES, run=RUNS, chosen=SOME_KEYS, share=st.booleans())
    def calls_live(self, process: int, run: int, chosen: set[int], share: bool) -> None:
        """Begin calls; a key that is answered, out in a batch, or, if shared, in another's call is not sent."""
        name, keys = self.runs[run], [self.keys[one] for one in sorted(chosen)]
        carried = self.carried(name)
        stopping = {key for key, where in carried.items() if share or "batch" in where} | set(self.answered)
        begun = self.decided(
            process,
            f"step:{name}",
            self.is_current(process, name),
            lambda lease: self.ledgers[process].begin_calls(
                keys,
                run=self.seen_runs[process, name],
                tier=Tier.FLEX,
                lease=lease,
                at=self.now,
                not_before=None,
                share=share,
            ),
        )
        if not isinstance(begun, list):
            return
        for key, attempt in zip(keys, begun, strict=True):
            assert (attempt is None) == (key in stopping)
            if attempt is not None:
                self.calls.append((attempt, key, name))

    @rule(process=PROCESSES, run=RUNS)
    def abandons(self, process: int, run: int) -> None:
        """Give up what a run has in flight: every call without an outcome may be on the bill, and stops nobody."""
        name = self.runs[run]
        closed = self.decided(
            process,
            f"step:{name}",
            self.is_current(process, name),
            lambda lease: self.ledgers[process].abandon_calls(
                run=self.seen_runs[process, name], lease=lease, at=self.now
            ),
        )
        if closed is not None:
            assert not any(line.outcome == "open" for line in self.live_lines(name))

    def live_lines(self, run: str) -> list[Spending]:
        return [line for line in self.ledgers[0].spending(run) if line.tier_asked is not Tier.BATCH]

    # Batches

    @precondition(lambda self: self.batches)
    @rule(process=PROCESSES, which=ANY, moves=st.lists(MOVES, min_size=1, max_size=5))
    def steps(self, process: int, which: int, moves: list[tuple[BatchState, int, str]]) -> None:
        """Take a batch on, mostly to a state that may follow, with a look at it, at another one, or with none."""
        for state, hint, tell in moves:
            self.step(process, which, state, hint, tell)

    def step(self, process: int, which: int, state: BatchState, hint: int, tell: str) -> None:
        batch = self.seen[process, self.batches[which % len(self.batches)]]
        following = sorted(TRANSITIONS[batch.state])
        if following and hint % 4:
            state = following[hint % len(following)]
        seen = None
        if tell != "-" and state not in (BatchState.PLANNED, BatchState.SUBMITTING):
            seen = looked_at(batch.provider_batch_id or self.new_id() if tell == "n" else self.some_id(hint))
        now = self.ledgers[process].batch(batch.id)
        bearer = self.bearer(seen.id) if seen else None
        legal = (
            now.version == batch.version
            and state in TRANSITIONS[now.state]
            and not (state is BatchState.PLANNED and now.provider_batch_id is not None)
            and (seen is None or (bearer in (None, batch.id) and now.provider_batch_id in (None, seen.id)))
        )
        stored = self.decided(
            process,
            f"batch:{batch.id}",
            legal,
            lambda lease: self.ledgers[process].advance_batch(
                batch, state, lease=lease, at=self.now, provider_batch=seen
            ),
        )
        if isinstance(stored, Batch):
            self.seen[process, batch.id] = stored

    def new_id(self) -> str:
        self.known_ids.append(next(self.ids))
        return self.known_ids[-1]

    def some_id(self, hint: int) -> str:
        return self.known_ids[hint % len(self.known_ids)] if self.known_ids else self.new_id()

    def bearer(self, provider_id: str) -> int | None:
        bearers = [one for one in self.batches if self.ledgers[0].batch(one).provider_batch_id == provider_id]
        return bearers[0] if bearers else None

    @precondition(lambda self: self.batches)
    @rule(process=PROCESSES, which=ANY, hint=ANY, new=st.booleans(), token=st.integers(0, 3))
    def hears_of(self, process: int, which: int, hint: int, new: bool, token: int) -> None:
        """Note what the provider has, whoever holds what: no id is lost, and none is in two rows."""
        batch = self.seen[process, self.batches[which % len(self.batches)]]
        tokens = [*self.ledgers[process].tokens(batch), None]
        seen = looked_at(self.new_id() if new else self.some_id(hint), token=tokens[token % len(tokens)])
        before = self.ledgers[process].batch(batch.id)
        noted = self.ledgers[process].note_batch(batch, provider_batch=seen)
        assert noted.id == batch.id
        assert before.provider_batch_id in (None, noted.provider_batch_id)
        self.find_copies()
        assert self.bearer(seen.id) is not None

    @precondition(lambda self: self.batches)
    @rule(process=PROCESSES, which=ANY, hint=ANY, new=st.booleans())
    def finds_a_copy(self, process: int, which: int, hint: int, new: bool) -> None:
        """Write down that the provider has a batch again; what bears the id already is returned."""
        batch = self.seen[process, self.batches[which % len(self.batches)]]
        seen = looked_at(self.new_id() if new else self.some_id(hint))
        bearer = self.bearer(seen.id)
        copy = self.ledgers[process].note_copy(batch, seen, token=batch.token, at=self.now)
        assert copy.id == bearer if bearer is not None else copy.copy_of == (batch.copy_of or batch.id)
        self.find_copies()

    def find_copies(self) -> None:
        for number in self.batches_since(self.since):
            self.add(self.ledgers[0].batch(number))

    def batches_since(self, number: int) -> list[int]:
        with self.ledgers[0]._database.read() as connection:
            return list(
                connection.execute(text("SELECT id FROM batches WHERE id > :number"), {"number": number}).scalars()
            )

    @precondition(lambda self: self.batches)
    @rule(process=PROCESSES, which=ANY, lines=st.lists(st.tuples(st.integers(0, 4), KINDS), max_size=6))
    def reads_lines(self, process: int, which: int, lines: list[tuple[int, OutcomeKind]]) -> None:
        """Record lines in any state and order, known keys and others, once and again."""
        batch = self.seen[process, self.batches[which % len(self.batches)]]
        carried = {key for keys in self.ledgers[process].batch_keys(batch.id) for key in keys}
        outcomes = [self.outcome([*self.keys, "never"][key], kind) for key, kind in lines]
        recorded = self.ledgers[process].record_results(batch, outcomes, at=self.now, stamp=AT)
        assert recorded.unknown == sum(outcome.key not in carried for outcome in outcomes)
        for outcome in outcomes:
            if outcome.key in carried:
                self.came((batch.id, outcome.key), outcome, batch.step_run_id)

    @precondition(lambda self: self.calls)
    @rule(process=PROCESSES, which=ANY, kind=KINDS)
    def hears_back(self, process: int, which: int, kind: OutcomeKind) -> None:
        """Record what came of a call, once and again."""
        attempt, key, run = self.calls[which % len(self.calls)]
        outcome = self.outcome(key, kind)
        assert self.ledgers[process].record_calls([(attempt, outcome)], at=self.now, stamp=AT).unknown == 0
        self.came((None, attempt), outcome, run)

    def outcome(self, key: str, kind: OutcomeKind) -> Outcome:
        return Outcome(
            key=key, kind=kind, text=next(self.texts), reason="r", billing=Billing.BILLED, cost_usd=next(self.prices)
        )

    def came(self, attempt: tuple[int | None, int | str], outcome: Outcome, run: str) -> None:
        """Keep in mind what an attempt's first outcome must have come to."""
        if attempt in self.told:
            return
        self.told.add(attempt)
        assert outcome.cost_usd is not None
        self.spent[run] += outcome.cost_usd
        if outcome.kind in (OutcomeKind.ANSWER, OutcomeKind.REFUSAL):
            self.answered.setdefault(outcome.key, outcome.text or "")

    @precondition(lambda self: self.batches)
    @rule(process=PROCESSES, which=ANY)
    def settles(self, process: int, which: int) -> None:
        """End an ended batch: what had no line is open again, once."""
        batch = self.seen[process, self.batches[which % len(self.batches)]]
        now = self.ledgers[process].batch(batch.id)
        ended = self.decided(
            process,
            f"batch:{batch.id}",
            now.version == batch.version and now.state in ENDED_STATES,
            lambda lease: self.ledgers[process].settle_batch(batch, lease=lease, at=self.now),
        )
        if isinstance(ended, tuple):
            self.seen[process, batch.id] = ended[0]

    @precondition(lambda self: self.batches)
    @rule(process=PROCESSES, run=RUNS, which=ANY)
    def leaves(self, process: int, run: int, which: int) -> None:
        """Stop waiting for a batch."""
        name, batch = self.runs[run], self.batches[which % len(self.batches)]
        left = self.decided(
            process,
            f"step:{name}",
            self.is_current(process, name),
            lambda lease: self.ledgers[process].leave(
                batch, run=self.seen_runs[process, name], lease=lease, at=self.now
            ),
        )
        if left is not None:
            assert name not in self.ledgers[process].waiting_for(batch)
            assert left == len(self.ledgers[process].waiting_for(batch))

    @precondition(lambda self: self.batches)
    @rule(run=RUNS, which=ANY)
    def attaches(self, run: int, which: int) -> None:
        """Wait for a batch, unless one has left it."""
        self.ledgers[0].attach(self.batches[which % len(self.batches)], step_run_id=self.runs[run])

    # What always holds

    def teardown(self) -> None:
        """Look at everything once more."""
        for number in range(len(self.batches)):
            self.life_is_legal(number)
        for number in range(len(self.runs)):
            self.keys_have_one_place(number)

    @invariant()
    def what_is_looked_at_is_in_order(self) -> None:
        """After each step another batch and another run are looked at; all of them are at the end."""
        if hasattr(self, "runs"):
            self.turn += 1
            self.keys_have_one_place(self.turn)
            if self.batches:
                self.life_is_legal(self.turn)

    def life_is_legal(self, turn: int) -> None:
        """A batch went the ways of `TRANSITIONS`, from its first event to the state it is in."""
        for number in [self.batches[turn % len(self.batches)]]:
            batch = self.ledgers[1].batch(number)
            state = None
            for event in self.ledgers[1].events("batch", str(number)):
                assert event.before == state
                if state is None:
                    assert event.after == (BatchState.PLANNED if batch.copy_of is None else BatchState.IN_PROGRESS)
                else:
                    assert event.after in TRANSITIONS[BatchState(state)]
                state = event.after
            assert batch.state == state

    def keys_have_one_place(self, turn: int) -> None:
        """A key is answered, refused, failed, out where it says, or open; the first answer and every bill stand."""
        for run in [self.runs[turn % len(self.runs)]]:
            found = self.ledgers[1].answers(self.keys, step_run_id=run)
            standing = self.ledgers[1].stand(self.keys, step_run_id=run, not_before=None, now=self.now)
            carried = self.carried(run)
            for key, answer, one in zip(self.keys, found, standing, strict=True):
                assert (one.state in (RequestState.ANSWERED, RequestState.REFUSED)) == (key in self.answered)
                match one.state:
                    case RequestState.ANSWERED | RequestState.REFUSED:
                        assert answer is not None
                        assert answer.text == self.answered[key]
                    case RequestState.FAILED:
                        assert answer is not None
                        assert answer.state is RequestState.FAILED
                    case RequestState.OUT:
                        assert key in carried
                        if one.batch_id is not None:
                            assert self.ledgers[1].batch(one.batch_id).state in LIVE_STATES - RELEASED
                    case RequestState.OPEN:
                        assert key not in carried
            assert sum(line.cost_usd for line in self.ledgers[1].spending(run)) == self.spent[run]

    @invariant()
    def the_tables_contradict_nothing(self) -> None:
        """No attempt is open in a batch that is over, no request answered twice, no provider id in two rows."""
        with self.ledgers[1]._database.read() as connection:
            assert connection.execute(OPEN_IN_A_FINISHED_BATCH, {"since": getattr(self, "since", 0)}).scalar() == 0
            assert connection.execute(COUNTING_TWICE).scalar() == 0
            assert connection.execute(ONE_ID_TWICE, {"since": getattr(self, "since", 0)}).scalar() == 0


def looked_at(name: str, *, token: str | None = None) -> ProviderBatch:
    """A look at a batch."""
    return ProviderBatch(
        id=name, status=ProviderBatchStatus.IN_PROGRESS, counts=BatchCounts(), created_at=AT, token=token
    )


def test_no_sequence_reaches_an_illegal_state(tmp_path: Path) -> None:
    """Whatever two processes decide and hear, with leases that get lost, every law of the ledger holds after."""
    with closing(open_ledger(tmp_path / "life.db")) as one, closing(open_ledger(tmp_path / "life.db")) as other:
        Life.ledgers = (one, other)
        Life.examples = count(1)
        run_state_machine_as_test(Life, settings=LONG)
