"""The pages on errors and providers, held to the tables of the code."""

from typing import get_args

from prefect_llm_tiers.core.ports import FailureKind
from tests.pages import errors_table, offers_table, page, rows_under, services_table, shown
from tests.unit.providers.test_outcome_reasons import OUTCOMES


def test_the_errors_page_shows_the_table() -> None:
    """Every rule of the table stands on the page, in the order in which they are tried."""
    assert shown(page("errors.md"), errors_table())


def test_the_errors_page_tells_what_follows_from_each_meaning() -> None:
    """No meaning is left without a consequence."""
    told = {row[0] for row in rows_under(page("errors.md"), "## What follows")}
    assert told == set(get_args(FailureKind))


def test_the_errors_page_lists_the_outcomes_that_replies_have() -> None:
    """The page names the reasons that replies are read to, each with its outcome."""
    told = {row[0].strip("`"): row[1] for row in rows_under(page("errors.md"), "## Outcomes of replies that came")}
    assert told == {reason: outcome for reason, outcome, *_ in OUTCOMES}


def test_the_providers_page_shows_the_tables() -> None:
    """Every service and every row of the capabilities stands on the page."""
    assert shown(page("providers.md"), services_table())
    assert shown(page("providers.md"), offers_table())
