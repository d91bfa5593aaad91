"""Answers that were billed and whose lines never came."""

from itertools import product
from pathlib import Path

import pytest

from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.providers.capabilities import Dialect
from prefect_llm_tiers.simulator.faults import Faults
from prefect_llm_tiers.simulator.settings import BatchLaw
from tests.unit.engine.box import Box, documents

ROWS = 3


@pytest.mark.parametrize(("missing", "cut"), list(product(range(ROWS), range(ROWS - 1))))
def test_a_broken_line_of_an_unbilled_row_hides_no_bill(tmp_path: Path, missing: int, cut: int) -> None:
    """One row failed unbilled, one has no line, and one line is cut: what was billed is listed, whichever they are."""
    # The row that is done first is called invalid, and not billed.
    faults = Faults(only={"row_invalid": (0,), "line_missing": (missing,), "line_cut": (cut,)})
    law = BatchLaw(median_s=600, sigma=0, stuck_share=0)
    box = Box.at(tmp_path, batch=law, faults=faults)
    box.carry_out(dialect=Dialect.ANTHROPIC, prompts=documents(ROWS), tiers=(Tier.BATCH,), due_in=None, max_failed=ROWS)
    assert box.account.faults == {"line_cut": 1, "line_missing": 1, "row_invalid": 1}
    assert [line for line in box.ledger.spending("run-1") if line.outcome == "released"] == []
