"""The live lane at a provider that fails in every way: every row has one outcome, and every call its bill."""

import contextlib
import random
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest

from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.errors import CredentialsRejected, LedgerUnusable, QuotaExhausted
from prefect_llm_tiers.planning.priors import LiveRate
from prefect_llm_tiers.providers.capabilities import Dialect
from prefect_llm_tiers.simulator.settings import FlexOutages, LiveLaw
from tests.unit.engine.box import START, Box, answered, documents, open_attempts, paid, unknown, until
from tests.unit.engine.faults import Call, Flaky, Reply, meddling

HOUR = timedelta(hours=1)
NO_CREDIT = b'{"error": {"code": "insufficient_quota", "message": "no"}}'
NO_ROOM = b'{"error": {"code": "resource_unavailable", "message": "no"}}'


def asks(call: Call) -> bool:
    """Return whether a call asks a row."""
    return call.method == "POST" and call.path in ("/v1/responses", "/v1/messages")


def on_flex(call: Call) -> bool:
    """Return whether a call asks a row on flex."""
    return asks(call) and b'"service_tier":"flex"' in call.body


def test_refusals_that_cost_nothing_leave_no_open_attempt(tmp_path: Path) -> None:
    """Rows that wait for flex when the tier is left have cost nothing, and are not listed as if they may have."""
    box = Box.at(tmp_path, flex_outages=FlexOutages(mean_up_s=1, mean_down_s=1e9), seed=4)
    process = box.carry_out(tiers=(Tier.FLEX, Tier.STANDARD), due_in=HOUR)
    assert box.account.capacity_refused > 0
    assert answered(box, process) == 20
    assert open_attempts(box) == 0
    assert unknown(box) == 0
    assert paid(box) == box.account.billed_usd


def test_a_retry_after_of_hours_does_not_hold_rows_past_the_switch_time(tmp_path: Path) -> None:
    """A throttle that must pause for hours is left when the rows are needed elsewhere."""
    box = Box.at(tmp_path)
    box.served = meddling(
        box.served, lambda call: Reply(429, b"{}", headers={"retry-after": "7200"}) if on_flex(call) else None
    )
    process = box.carry_out(tiers=(Tier.FLEX, Tier.STANDARD), due_in=HOUR)
    assert answered(box, process) == 20
    assert process.done is not None
    assert not process.done.late
    assert open_attempts(box) == unknown(box) == 0


def test_a_refusal_without_a_wait_is_not_repeated_at_once(tmp_path: Path) -> None:
    """`retry-after: 0` does not make the lane spin."""
    box = Box.at(tmp_path)
    refusals = Counter[str]()

    def judge(call: Call) -> Reply | None:
        if not asks(call) or box.clock.now() >= START + timedelta(minutes=1):
            return None
        refusals["all"] += 1
        return Reply(429, b"{}", headers={"retry-after": "0"})

    box.served = meddling(box.served, judge)
    process = box.carry_out(tiers=(Tier.STANDARD,))
    assert answered(box, process) == 20
    assert refusals["all"] < 200


def test_credit_that_runs_out_while_flex_is_probed_ends_the_lane(tmp_path: Path) -> None:
    """Rows that wait for a probe's verdict do not wait for ever where it is another one, deadline or none."""
    box = Box.at(tmp_path)
    tries = Counter[str]()

    def judge(call: Call) -> Reply | None:
        if not on_flex(call):
            return None
        tries["all"] += 1
        return Reply(429, NO_ROOM if tries["all"] <= 16 else NO_CREDIT)

    box.served = meddling(box.served, judge)
    with pytest.raises(QuotaExhausted):
        box.carry_out(tiers=(Tier.FLEX,), due_in=None)
    assert open_attempts(box) == unknown(box) == 0
    assert tries["all"] <= 40


@pytest.mark.parametrize("concurrency", [1, 16])
def test_a_probe_that_ends_in_a_rejection_lets_the_others_go(tmp_path: Path, concurrency: int) -> None:
    """A row that is refused for itself shows that flex takes calls."""
    box = Box.at(tmp_path)
    tries = Counter[str]()

    def judge(call: Call) -> Reply | None:
        if not on_flex(call):
            return None
        tries["all"] += 1
        if tries["all"] <= concurrency:
            return Reply(429, NO_ROOM)
        return Reply(400, b'{"error": {"code": "invalid_value"}}') if tries["all"] == concurrency + 1 else None

    box.served = meddling(box.served, judge)
    process = box.carry_out(tiers=(Tier.FLEX,), due_in=None, rate=LiveRate(concurrency=concurrency))
    assert answered(box, process) == 19
    assert process.done is not None
    assert process.done.reasons == {"invalid_value": 1}


@pytest.mark.parametrize("status", [502, 503])
def test_an_outage_fails_no_row(tmp_path: Path, status: int) -> None:
    """While the provider answers nothing for two hours rows wait; then each is answered."""
    box = Box.at(tmp_path)
    down = (START + timedelta(seconds=2), START + timedelta(hours=2))
    box.served = meddling(box.served, lambda call: Reply(status) if down[0] <= box.clock.now() < down[1] else None)
    process = box.carry_out(prompts=documents(30), tiers=(Tier.STANDARD,), due_in=12 * HOUR)
    assert answered(box, process) == 30
    assert process.done is not None
    assert process.done.failed == 0


@pytest.mark.parametrize("rows", [1, 40])
def test_a_row_that_is_always_lost_fails_and_holds_nobody_up(tmp_path: Path, rows: int) -> None:
    """Without a deadline a row whose every call ends in a 500 fails with that reason, in bounded time and calls."""
    box = Box.at(tmp_path)
    tries = Counter[str]()

    def judge(call: Call) -> Reply | None:
        if b"Document 0." not in call.body:
            return None
        tries["all"] += 1
        return Reply(500)

    box.served = meddling(box.served, judge)
    process = box.carry_out(prompts=documents(rows), tiers=(Tier.STANDARD,), due_in=None)
    assert answered(box, process) == rows - 1
    assert process.done is not None
    assert process.done.failed == 1
    assert tries["all"] < 150
    assert box.clock.now() < START + 2 * HOUR


def test_a_gateways_refusal_may_have_been_billed(tmp_path: Path) -> None:
    """A bare 503 after the work is listed as `billed_unknown`, and never as free."""
    box = Box.at(tmp_path)
    first = [True] * 5
    box.served = meddling(
        box.served, lambda call: Reply(503, does_it=True) if asks(call) and first and first.pop() else None
    )
    process = box.carry_out(tiers=(Tier.STANDARD,))
    assert answered(box, process) == 20
    assert unknown(box) == 5
    assert open_attempts(box) == 0


@pytest.mark.parametrize("dialect", list(Dialect))
def test_a_third_of_a_thousand_calls_cut_or_mangled(tmp_path: Path, dialect: Dialect) -> None:
    """Every row has one outcome; what may have been billed is bounded by the calls cut, and covers the difference."""
    box = Box.at(tmp_path)
    chance = random.Random(7)
    cut = Counter[str]()

    def judge(call: Call) -> Reply | None:
        if not asks(call) or chance.random() >= 0.3:
            return None
        cut["all"] += 1
        return Reply(200, b'{"id": "x", "outp', does_it=True) if chance.random() < 0.5 else Reply(502, does_it=True)

    box.served = meddling(box.served, judge)
    process = box.carry_out(dialect=dialect, prompts=documents(1000), tiers=(Tier.STANDARD,), due_in=None)
    assert process.done is not None
    assert answered(box, process) == 1000
    assert unknown(box) == cut["all"]
    assert open_attempts(box) == 0
    assert paid(box) < box.account.billed_usd


def test_a_tier_that_is_not_offered_after_all_is_left_for_good(tmp_path: Path) -> None:
    """A 400 that names the tier gives it up, fails no row, and asks none of them twice."""
    box = Box.at(tmp_path, without_flex=("gpt-6-luna",))
    process = box.carry_out(tiers=(Tier.FLEX, Tier.STANDARD), due_in=HOUR)
    assert answered(box, process) == 20
    assert [tier for _, tier, _ in process.notes.switches] == [Tier.FLEX, Tier.STANDARD]
    assert open_attempts(box) == unknown(box) == 0
    assert paid(box) == box.account.billed_usd


@pytest.mark.parametrize(
    ("reply", "error"),
    [(Reply(401, b"{}"), CredentialsRejected), (Reply(429, NO_CREDIT), QuotaExhausted)],
    ids=["key", "credit"],
)
def test_a_key_or_an_account_that_ends_in_mid_run_keeps_what_came_back(
    tmp_path: Path, reply: Reply, error: type[Exception]
) -> None:
    """The step stops with the error; its answers stand, and the next run pays for the others alone."""
    box = Box.at(tmp_path)
    calls = Counter[str]()

    def judge(call: Call) -> Reply | None:
        calls["all"] += asks(call)
        return reply if asks(call) and calls["all"] > 30 else None

    box.served = meddling(box.served, judge)
    with pytest.raises(error):
        box.carry_out(prompts=documents(60), tiers=(Tier.STANDARD,))
    assert open_attempts(box) == unknown(box) == 0
    assert box.account.answered == 30
    box.served = box.simulation.app
    process = box.carry_out("second", prompts=documents(60), tiers=(Tier.STANDARD,))
    assert answered(box, process) == 60
    assert box.account.asked_more_than_once == 0
    assert paid(box) == box.account.billed_usd


@pytest.mark.parametrize("failing", [1, 2, 5])
def test_calls_that_never_answer_do_not_outlast_the_switch_time(tmp_path: Path, failing: int) -> None:
    """A stall on flex is cut when the rows are needed elsewhere; the deadline is kept."""
    box = Box.at(tmp_path)
    calls = Counter[str]()

    def judge(call: Call) -> Reply | None:
        calls["all"] += on_flex(call)
        return Reply(0) if on_flex(call) and calls["all"] % failing == 0 else None

    box.served = meddling(box.served, judge)
    process = box.carry_out(tiers=(Tier.FLEX, Tier.STANDARD), due_in=timedelta(minutes=20))
    assert answered(box, process) == 20
    assert process.done is not None
    assert not process.done.late
    assert open_attempts(box) == 0


@pytest.mark.parametrize("due_s", [240, 400])
def test_a_tier_that_is_left_lets_its_calls_come_in(tmp_path: Path, due_s: int) -> None:
    """Calls that are about to come back when the tier is left, or looked at, are not cut and paid for twice."""
    box = Box.at(tmp_path, live={Tier.FLEX: LiveLaw(base_s=8.0, sigma=0.1)})
    process = box.carry_out(
        prompts=documents(600),
        tiers=(Tier.FLEX, Tier.STANDARD),
        due_in=timedelta(seconds=due_s),
        infeasible="best_effort",
    )
    assert answered(box, process) == 600
    assert process.done is not None
    assert not process.done.late
    assert box.account.asked_more_than_once == unknown(box) == 0
    assert paid(box) == box.account.billed_usd


@pytest.mark.parametrize("at", [1, 3, 6])
@pytest.mark.parametrize("name", ["begin_calls", "record_calls", "record_tier", "stand", "observe"])
def test_a_ledger_that_fails_in_the_middle_stops_the_run(tmp_path: Path, name: str, at: int) -> None:
    """The error reaches the caller, nothing hangs, and the next run pays again only for calls whose reply was lost."""
    box = Box.at(tmp_path)
    prompts = documents(100)
    flaky = Flaky(box.ledger, name, at)
    with contextlib.suppress(LedgerUnusable):
        box.process("first", until(START + 9 * HOUR), prompts=prompts, tiers=(Tier.STANDARD,), ledger=flaky)
    process = box.carry_out("second", prompts=prompts, tiers=(Tier.STANDARD,))
    assert answered(box, process) == 100
    assert open_attempts(box) == 0
    assert unknown(box) >= box.account.asked_more_than_once
    assert unknown(box) <= 32
