"""The live lane over hours, in the jumping clock: what an outage costs, and where a storm of refusals settles."""

from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.planning.priors import LiveRate
from tests.unit.engine.box import START, Box, answered, documents, open_attempts, paid
from tests.unit.engine.faults import Call, Reply, meddling

HOUR = timedelta(hours=1)
NO_ROOM = b'{"error": {"code": "resource_unavailable", "message": "no"}}'


@pytest.mark.parametrize("begins_s", [0, 5])
def test_a_flex_outage_of_three_hours_is_waited_out(tmp_path: Path, begins_s: int) -> None:
    """Inside a deadline of eight hours it costs no more than a tenth over the cheapest, and misses nothing."""
    box = Box.at(tmp_path)
    begins = START + timedelta(seconds=begins_s)

    def outage(call: Call) -> Reply | None:
        on_flex = call.method == "POST" and b'"service_tier":"flex"' in call.body
        return Reply(429, NO_ROOM) if on_flex and begins <= box.clock.now() < begins + 3 * HOUR else None

    box.served = meddling(box.served, outage)
    process = box.carry_out(tiers=(Tier.FLEX, Tier.STANDARD), due_in=8 * HOUR, prompts=documents(300))
    assert process.done is not None
    assert not process.done.late
    assert answered(box, process) == 300
    cheapest = sum((line.list_usd for line in box.ledger.spending("run-1")), Decimal(0)) / 2
    assert paid(box) == box.account.billed_usd
    assert paid(box) <= Decimal("1.1") * cheapest
    assert open_attempts(box) == 0


@pytest.mark.parametrize(("allowed", "rows"), [(120, 1_500), (600, 6_000)])
def test_a_storm_of_the_accounts_own_refusals_settles_at_what_it_allows(
    tmp_path: Path, allowed: int, rows: int
) -> None:
    """Nobody told the lane the limit: within a tenth of it, and with few calls that are refused."""
    box = Box.at(tmp_path, requests_per_minute=allowed)
    process = box.carry_out(
        tiers=(Tier.STANDARD,), prompts=documents(rows), due_in=None, rate=LiveRate(concurrency=256)
    )
    assert process.done is not None
    assert answered(box, process) == rows
    minutes = (process.done.finished_at - START) / timedelta(minutes=1)
    # A minute's worth may be had at once, from a bucket that is full at the start.
    assert (rows - allowed) / minutes >= 0.9 * allowed
    assert box.account.rate_limited <= rows / 4
    assert paid(box) == box.account.billed_usd
