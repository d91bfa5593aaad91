"""Lines of a batch into outcomes that count, with their price."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_llm_tiers.core.batches import Batch, BatchCounts, BatchState
from prefect_llm_tiers.core.outcomes import Billing, Outcome, OutcomeKind, Usage
from prefect_llm_tiers.core.ports import ResultLine
from prefect_llm_tiers.core.prices import price
from prefect_llm_tiers.core.requests import custom_id
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.engine.pricing import Pricing
from prefect_llm_tiers.engine.reading import Reading

AT = datetime(2026, 11, 21, tzinfo=UTC)
TOKEN = "t" * 20
A, B = "a" * 43, "b" * 43

BATCH = Batch(
    id=1,
    version=1,
    state=BatchState.COMPLETED,
    step_run_id="run",
    provider="openai",
    account="org",
    model="gpt-6-luna",
    endpoint="/v1/responses",
    token=TOKEN,
    submission=1,
    rows=2,
    created_at=AT,
)


def answer(key: str, text: str = "yes", *, token: str = TOKEN, kind: OutcomeKind = OutcomeKind.ANSWER) -> ResultLine:
    """Return a line with a text."""
    reason = None if kind is OutcomeKind.ANSWER else "length"
    outcome = Outcome(
        key=key, kind=kind, text=text, reason=reason, usage=Usage(1000, 0, 0, 1000, 0), billing=Billing.BILLED
    )
    return ResultLine(custom_id(key, token), outcome)


def silent(key: str, kind: OutcomeKind = OutcomeKind.RETRY, billing: Billing = Billing.UNBILLED) -> ResultLine:
    """Return a line without a text."""
    return ResultLine(custom_id(key, TOKEN), Outcome(key=key, kind=kind, reason="x", billing=billing))


def read(*lines: ResultLine) -> tuple[list[tuple[str, OutcomeKind, str | None]], Reading]:
    """Return what lines come to, and their reading."""
    reading = Reading(BATCH, [TOKEN])
    found = [outcome for line in lines if (outcome := reading.take(line)) is not None]
    return [(outcome.key, outcome.kind, outcome.text) for outcome in [*found, *reading.rest()]], reading


ANSWER, REFUSAL, FAILURE, RETRY = OutcomeKind.ANSWER, OutcomeKind.REFUSAL, OutcomeKind.FAILURE, OutcomeKind.RETRY


@pytest.mark.parametrize(
    "other",
    [silent(A), silent(A, FAILURE), silent(A, REFUSAL), silent(A, billing=Billing.UNKNOWN), answer(A), answer(A, "no")],
)
def test_an_answer_stands_whatever_else_is_said(other: ResultLine) -> None:
    """Before or behind it, a line without a text gives way to an answer, and of two answers the first stands."""
    assert read(answer(A), other)[0] == [(A, ANSWER, "yes")]
    if other.outcome is not None and other.outcome.text is None:
        assert read(other, answer(A))[0] == [(A, ANSWER, "yes")]


def test_what_will_stay_so_goes_before_what_may_change() -> None:
    """Of two lines without a text the one that says why for good counts."""
    assert read(silent(A), silent(A, FAILURE))[0] == [(A, FAILURE, None)]
    assert read(silent(A, FAILURE), silent(A))[0] == [(A, FAILURE, None)]


def test_oddities_are_counted_and_told_without_a_word_of_theirs() -> None:
    """Strangers, lines without an id, broken ones, copies and contradictions are told apart."""
    _, reading = read(
        answer(A, "secret"),
        answer(A, "secret"),
        answer(A, "another secret"),
        answer(B, token="u" * 20),
        ResultLine("request-7", None),
        ResultLine(None, None),
        silent(B, billing=Billing.UNKNOWN),
    )
    reading.not_asked(1)
    assert (reading.repeated, reading.contradicting) == (2, 1)
    assert (reading.unknown, reading.unreadable, reading.broken) == (3, 1, 1)
    told = reading.oddities()
    assert told is not None
    assert "secret" not in told
    assert read(answer(A), silent(B))[1].oddities() is None


def test_what_came_is_held_against_what_was_promised() -> None:
    """Answers, cut answers and billed wrecks came; errors are what the provider counts as failed."""
    lines = (
        answer(A),
        answer(B, kind=FAILURE),
        silent("c" * 43, FAILURE),
        silent("d" * 43),
        silent("e" * 43, billing=Billing.BILLED),
    )
    _, reading = read(*lines)
    assert reading.came(BatchCounts(total=5, completed=3, failed=1)) == 3
    assert (reading.kept(), reading.failed()) == (1, 2)


@given(
    st.tuples(*[st.integers(0, 400_000)] * 4),
    st.sampled_from([None, *Tier]),
    st.sampled_from(["gpt-6-luna", "o3", "text-embedding-3-small", "nobody"]),
)
def test_many_prices_at_once_are_the_prices_one_by_one(
    tokens: tuple[int, int, int, int], served: Tier | None, model: str
) -> None:
    """Below and above the surcharge, in every tier, cached or not: exactly what each call alone costs."""
    read, cached, written_to_cache, written = tokens
    usage = Usage(read, cached, written_to_cache, written, 0)
    pricing = Pricing(provider="openai", model=model, tier_asked=Tier.BATCH, at=AT)
    outcome = Outcome(key=A, kind=ANSWER, text="yes", usage=usage, tier_served=served, billing=Billing.BILLED)

    def alone(tier: Tier) -> Decimal | None:
        found = price(usage, provider="openai", model=model, tier=tier, at=AT)
        return found.usd if found else None

    for _ in range(2):
        priced = pricing.priced(outcome)
        assert (priced.cost_usd, priced.list_usd) == (alone(served or Tier.BATCH), alone(Tier.STANDARD))
        assert (priced.price_source is None) == (priced.cost_usd is None)
