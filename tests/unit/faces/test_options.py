"""What a step is told: values that cannot work are refused where they are given, in words that help."""

import datetime as dt
from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from pydantic import BaseModel

from prefect_llm_tiers import ConfigurationError, SimulatedProvider
from prefect_llm_tiers.options import StepOptions


class Label(BaseModel):
    """An answer."""

    topic: str


def options(**changes: Any) -> StepOptions:
    """Return options with changes."""
    return StepOptions(provider=SimulatedProvider(), model="gpt-6-luna", **changes)


@pytest.mark.parametrize(
    ("changes", "fact", "action"),
    [
        ({"reuse_for": 30}, "reuse_for=30 has no unit", "timedelta(days=30)"),
        ({"reuse_for": dt.timedelta(0)}, "reuse_for=0:00:00 is no age", "positive timedelta"),
        ({"deadline": 30}, "deadline= takes a timedelta", "timedelta"),
        ({"max_failed": 0.1}, "max_failed=0.1 is no whole number", "Give 0"),
        ({"max_failed": True}, "max_failed=True is no number", "Give 0"),
        ({"max_failed": -1}, "max_failed=-1 makes no sense", "Give 0"),
        ({"samples": 2.5}, "samples=2.5 is no whole number", "Give 1"),
        ({"samples": "2"}, "samples='2' is no number", "Give 1"),
        ({"samples": 0}, "samples=0 makes no sense", "Give 1"),
        ({"max_concurrency": float("nan")}, "max_concurrency=nan is no whole number", "Give 1"),
        ({"expected_output_tokens": float("nan")}, "expected_output_tokens=nan makes no sense", "Give 0"),
        ({"max_output_tokens": 1.5}, "max_output_tokens=1.5 is no whole number", "Give 1"),
        ({"on_time": "99 %"}, "on_time='99 %' is no number", "Give a number"),
        ({"min_saving_usd": "much"}, "min_saving_usd='much' is no sum of money", "as 0.5"),
        ({"tiers": []}, "tiers=[] allows no tier", "leave it out"),
        ({"tiers": 5}, "tiers=5 is no list", "leave it out"),
        ({"tiers": [5]}, "There is no tier 5", "'batch'"),
        ({"system": 5}, "system= is of type int", "leave it out"),
        ({"column": ""}, "column= is empty", "leave it out"),
        ({"endpoint": "embeddings", "output": Label}, "has no use for output=", "Leave them out"),
        ({"endpoint": "embeddings", "max_output_tokens": 9}, "has no use for max_output_tokens=", "Leave them out"),
        ({"endpoint": "embeddings", "samples": 2}, "would pay 2 times", "Leave samples= out"),
        ({"endpoint": "embeddings", "options": {"dimensions": 0}}, "'dimensions': 0", "Give a whole number"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], fact: str, action: str) -> None:
    """The error names the value and what to give in its place."""
    with pytest.raises(ConfigurationError) as raised:
        options(**changes)
    assert fact in str(raised.value)
    assert action in str(raised.value)


def test_what_can_work_is_taken() -> None:
    """Texts and numbers that mean a value are that value."""
    made = options(tiers="batch", min_saving_usd=0.5, expected_output_tokens=0, max_failed=0, on_time=0.9)
    assert made.tiers == ("batch",)
    assert made.min_saving_usd == Decimal("0.5")


@pytest.mark.parametrize("name", ["embeddings", "/v1/embeddings", "v1/embeddings"])
def test_an_embedding_writes_nothing(name: str) -> None:
    """The plan expects no output tokens, and the answers are vectors."""
    made = options(endpoint=name)
    assert made.output_tokens == 0
    assert made.reader().dtype == pl.List(pl.Float32)
    assert options(endpoint=name, options={"dimensions": 8}).reader().dtype == pl.Array(pl.Float32, 8)


def test_what_a_step_expects_to_be_written() -> None:
    """What is said counts, else half of the bound, else a usual answer."""
    assert options(expected_output_tokens=7, max_output_tokens=100).output_tokens == 7
    assert options(max_output_tokens=100).output_tokens == 50
    assert options().output_tokens == 256
