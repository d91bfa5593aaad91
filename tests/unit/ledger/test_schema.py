"""How values are kept, and that the SQL is fit for both backends."""

import re
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.engine import make_url
from sqlalchemy.schema import CreateIndex, CreateTable

from prefect_llm_tiers.ledger import account, calls, harvest, requests
from prefect_llm_tiers.ledger.dialects import key_list
from prefect_llm_tiers.ledger.schema import from_micros, metadata, micros, money

SQLITE, POSTGRESQL = (make_url(f"{name}://").get_dialect()() for name in ("sqlite", "postgresql"))

INSTANTS = st.datetimes(
    min_value=datetime(1900, 1, 1),  # noqa: DTZ001 - Hypothesis adds the zone
    max_value=datetime(9999, 12, 30),  # noqa: DTZ001
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=-7, minutes=-30)), timezone(timedelta(hours=14))]),
)


@given(instant=INSTANTS)
def test_instants_round_trip(instant: datetime) -> None:
    """An instant comes back equal and in UTC, to the microsecond, whatever zone it was told in."""
    back = from_micros(micros(instant))
    assert back == instant
    assert back.utcoffset() == timedelta(0)


@given(one=INSTANTS, other=INSTANTS)
def test_instants_sort_as_they_are_kept(one: datetime, other: datetime) -> None:
    """What is kept compares as the instants do, so the database may sort and compare it."""
    assert (micros(one) < micros(other)) == (one < other)


def test_a_naive_instant_is_refused() -> None:
    """Without a zone nobody can say when it was."""
    with pytest.raises(ValueError, match="no time zone"):
        micros(datetime(2026, 11, 1))  # noqa: DTZ001


@given(amount=st.decimals(allow_nan=False, allow_infinity=False))
def test_money_comes_back_digit_for_digit(amount: Decimal) -> None:
    """An amount is kept as written, trailing zeros and tiny exponents too."""
    back = money(str(amount))
    assert str(back) == str(amount)
    assert money(None) is None


def test_no_column_can_hold_a_prompt() -> None:
    """What was asked is in the ledger as a hash only: no column is named for a prompt, body or message."""
    names = {column.name for table in metadata.tables.values() for column in table.c}
    assert not {name for name in names if re.search("prompt|body|message|content|input$", name)}


def test_the_tables_can_be_made_in_postgresql() -> None:
    """Every table and index has a PostgreSQL form, without SQLite's words."""
    dialect = POSTGRESQL
    for table in metadata.sorted_tables:
        ddl = [str(CreateTable(table).compile(dialect=dialect))]
        ddl += [str(CreateIndex(index).compile(dialect=dialect)) for index in table.indexes]
        assert not re.search("ROWID|AUTOINCREMENT|PRAGMA", "".join(ddl))


@pytest.mark.parametrize(
    "statement",
    [
        requests._STAND,
        requests._ANSWERS,
        calls._FOUND_CALLS,
        harvest._FOUND_LINES,
        account._SPENT,
        select(key_list()),
    ],
    ids=["stand", "answers", "calls", "lines", "spending", "keys"],
)
def test_the_large_reads_have_a_form_for_both(statement: object) -> None:
    """The statements over lists of keys compile for PostgreSQL as well, each list one parameter."""
    assert hasattr(statement, "compile")
    text = str(statement.compile(dialect=POSTGRESQL))
    assert "json_each" not in text
    assert str(statement.compile(dialect=SQLITE)).count("json_each") == text.count("ORDINALITY AS")
