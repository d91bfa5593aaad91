"""The README's pipeline, run as it stands there."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from prefect_llm_tiers import SimulatedProvider
from prefect_llm_tiers.simulator.clock import SimulatedClock
from prefect_llm_tiers.simulator.simulation import in_process
from tests.acceptance.conftest import CALM, World

README = Path(__file__).parents[2] / "README.md"


def example(flow: str) -> Any:
    """Return a flow that one of the README's blocks of code defines."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    [code] = [block for block in blocks if f"def {flow}(" in block]
    module: dict[str, Any] = {"__name__": "readme"}
    exec(compile(code, README.name, "exec"), module)
    return module[flow]


def test_the_pipeline_of_the_readme_runs_as_it_stands(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a block of the name that it uses, the example adds the columns that it says it adds."""
    # One in the morning, so that nine o'clock is hours away whenever the test runs.
    in_process(world.name, CALM, SimulatedClock(datetime(2026, 11, 21, 1, tzinfo=UTC)))
    SimulatedProvider(world=world.name).save("openai-prod", overwrite=True)
    monkeypatch.setenv("PREFECT_INTEGRATIONS_LLM_TIERS_LEDGER", world.ledger)
    path = tmp_path / "docs.parquet"
    pl.DataFrame({"title": ["Pumps", "Valves"], "body": ["How to prime a pump.", "What a valve is."]}).write_parquet(
        path
    )

    docs = example("nightly_docs")(str(path))

    assert docs.columns == ["title", "body", "summary", "summary_error", "label", "label_error"]
    assert docs["summary_error"].to_list() == docs["label_error"].to_list() == [None, None]
    assert set(docs["label"].struct.field("topic").to_list()) <= {"api", "howto", "concept"}
    assert world.account().asked == 4


def test_the_plain_pieces_of_the_readme_run_as_they_stand(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a block of the name that they use, every text has its answer, out of one batch."""
    in_process(world.name, CALM)
    SimulatedProvider(world=world.name).save("openai-prod", overwrite=True)
    monkeypatch.setenv("PREFECT_INTEGRATIONS_LLM_TIERS_LEDGER", world.ledger)

    answers = example("nightly")(["How to prime a pump.", "What a valve is."])

    assert len(answers) == 2
    assert all(answers)
    assert world.account().batches_created == 1
