"""What a plan looks like to a person."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import msgspec
import pytest

from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.planning.making import plan
from prefect_llm_tiers.planning.plan import (
    Leg,
    Plan,
    StepPlan,
    decode_plan,
    encode_plan,
    show_chance,
    show_instant,
    show_span,
    show_usd,
)
from tests.unit.planning.worlds import LIVE, NOW, chain, step


def at(text: str) -> datetime:
    """Return an instant written as `21 06:18`, of November 2026."""
    return datetime.strptime(f"2026-11-{text}", "%Y-%m-%d %H:%M").replace(tzinfo=UTC)


def planned(name: str, **changes: object) -> StepPlan:
    """Return a step's plan of 600 requests, with changes."""
    made = StepPlan(
        name=name,
        requests=600,
        answered=0,
        legs=(Leg(Tier.BATCH, at("22 06:18")), Leg(Tier.STANDARD)),
        starts_at=NOW,
        finish_expected=at("21 23:40"),
        finish_p95=at("22 02:05"),
        latest_finish=at("22 06:40"),
        sure=((Tier.STANDARD, LIVE[Tier.STANDARD]),),
        flex=None,
        batch=None,
        worthwhile=True,
        cancel_s=600,
        poll_s=60,
        cost_usd=Decimal("1.3"),
        list_usd=Decimal("2.5"),
        unpriced=False,
        fallback=Tier.STANDARD,
    )
    return msgspec.structs.replace(made, **changes)


def of(*steps: StepPlan, **changes: object) -> Plan:
    """Return a plan of some steps that are due at 07:00 on the next day."""
    made = Plan(
        made_at=NOW,
        due=at("22 07:00"),
        on_time=0.99,
        reserve=0.995,
        chance=0.9959,
        rule="latest safe start",
        basis="priors",
        steps=steps,
    )
    return msgspec.structs.replace(made, **changes)


def test_a_chain_over_midnight() -> None:
    """A line for the chain, one for each step; switch times bear a date where the day is another."""
    made = of(
        planned("summary"),
        planned(
            "label",
            answered=40,
            starts_at=at("21 23:40"),
            legs=(Leg(Tier.FLEX, at("22 06:31")), Leg(Tier.PRIORITY)),
            finish_expected=at("22 00:10"),
            finish_p95=at("22 02:30"),
            cost_usd=Decimal("0.6042"),
            list_usd=Decimal("1.2"),
        ),
    )
    assert str(made) == (
        "Plan for 2 steps; due 2026-11-22 07:00Z (in 9 h), on time with 99.5 % (asked: 99 %); "
        "$1.90 expected, $3.70 at list price: saves $1.80 (49 %)\n"
        "  summary  600 requests; batch until 2026-11-22 06:18Z, then standard; "
        "done 23:40Z (p95 2026-11-22 02:05Z); $1.30\n"
        "  label    600 requests, 40 answered before; if it starts at 23:40Z: flex until 2026-11-22 06:31Z, "
        "then priority; done 2026-11-22 00:10Z (p95 2026-11-22 02:30Z); $0.6042"
    )


def test_nothing_to_ask() -> None:
    """A plan without work says so, and promises no saving."""
    made = of(
        planned("summary", requests=0, answered=1200, legs=(), cost_usd=Decimal(0), list_usd=Decimal(0)), due=None
    )
    assert str(made) == (
        "Plan for 1 step; no deadline; nothing to pay\n  summary  nothing to ask, 1,200 answered before"
    )


def test_a_plan_that_is_late_and_dear() -> None:
    """A due time that is past is called past, and a plan that costs more than list price says how much."""
    made = of(planned("summary", cost_usd=Decimal(5)), due=at("21 20:00"), chance=0.0, on_time=0.999)
    assert made.headline() == (
        "Plan for 1 step; due 20:00Z (2 h past), on time with under 0.1 % (asked: 99.9 %); "
        "$5.00 expected, $2.50 at list price: costs $2.50 more (100 %)"
    )


def test_a_step_without_a_chain_shows_its_own_deadline() -> None:
    """Where there is no chain, the step's deadline is the plan's; where there is one, it stands at its step."""
    alone = of(planned("summary", deadline=at("21 23:30")), due=None)
    assert "due 23:30Z (in 1 h 30 min)" in alone.headline()
    both = of(planned("summary", deadline=at("21 23:30")))
    assert "then standard (due 23:30Z); done" in str(both)


def test_what_is_unpriced_is_not_free() -> None:
    """A step without a price shows no dollars, and the sum says that it is not the whole bill."""
    made = of(planned("summary"), planned("label", unpriced=True, cost_usd=Decimal(0), list_usd=Decimal(0)))
    assert str(made).endswith("; unpriced")
    assert made.headline().endswith("some tiers are unpriced, and estimated or left out")
    nothing_known = of(planned("label", unpriced=True, cost_usd=Decimal(0), list_usd=Decimal(0)))
    assert nothing_known.headline().endswith("; no known price")


def test_a_wide_name_moves_only_its_own_line() -> None:
    """Names are aligned up to a width; a longer one is shown whole and does not push the others."""
    lines = str(of(planned("a"), planned("a_name_that_goes_on_and_on_and_on"))).splitlines()
    assert lines[1].startswith(f"  {'a':24}  600 requests")
    assert lines[2].startswith("  a_name_that_goes_on_and_on_and_on  600 requests")


@pytest.mark.parametrize(
    ("chance", "shown"),
    [
        (1.0, "over 99.9 %"),
        (0.99951, "over 99.9 %"),
        (0.999, "99.9 %"),
        (0.98999, "98.9 %"),
        (0.29, "29.0 %"),
        (0.0004, "under 0.1 %"),
        (0.0, "under 0.1 %"),
    ],
)
def test_chances_are_never_rounded_up(chance: float, shown: str) -> None:
    """A chance is rounded down, so that no asked one looks met that is not, and none looks certain."""
    assert show_chance(chance) == shown


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        ("0", "$0.00"),
        ("0.00000001", "under $0.0001"),
        ("0.0042", "$0.0042"),
        ("0.99996", "$1.00"),
        ("1234.5", "$1,234.50"),
        ("-0.5", "-$0.5000"),
        ("-2", "-$2.00"),
    ],
)
def test_dollars(amount: str, shown: str) -> None:
    """Cents from a dollar on, four digits below, and nothing that is paid looks free."""
    assert show_usd(Decimal(amount)) == shown


@pytest.mark.parametrize(
    ("span", "shown"),
    [
        (timedelta(0), "0 s"),
        (timedelta(seconds=59.6), "1 min"),
        (timedelta(hours=7, minutes=40, seconds=10), "7 h 40 min"),
        (timedelta(days=1, minutes=5), "1 d"),
        (timedelta(days=14_610), "14,610 d"),
        (-timedelta(hours=2, minutes=1), "-2 h 1 min"),
    ],
)
def test_spans(span: timedelta, shown: str) -> None:
    """The largest unit and the one below it; a negative span bears a sign."""
    assert show_span(span) == shown


def test_instants_are_shown_in_utc() -> None:
    """An instant of another zone is shown in UTC, with its date as soon as that differs in UTC."""
    tokyo = NOW.astimezone(timezone(timedelta(hours=9)))
    assert show_instant(tokyo, NOW) == "22:00Z"
    assert show_instant(tokyo + timedelta(hours=2), NOW) == "2026-11-22 00:00Z"


def test_a_plan_survives_the_ledger() -> None:
    """Encoding and decoding give the same plan, in every form of tier and law."""
    for problem in (
        chain(step(), step("label", tiers=(Tier.BATCH,), after=("summary",)), hours=72, on_time=0.9),
        chain(step(tiers=(Tier.FLEX,)), hours=None),
        chain(step(requests=0, deadline_h=1), hours=None),
    ):
        made = plan(problem)
        assert decode_plan(encode_plan(made)) == made
        assert str(decode_plan(encode_plan(made))) == str(made)
