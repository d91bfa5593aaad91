"""A ledger that cannot be written for a moment, or at all: nothing is paid for blindly, and the next entry goes on."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event

from prefect_llm_tiers.core.batches import BatchState
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.engine import harvest
from prefect_llm_tiers.errors import LedgerUnusable
from prefect_llm_tiers.ledger import SqlLedger, open_ledger
from prefect_llm_tiers.simulator.settings import BatchLaw, WorldSettings
from tests.postgres import PostgreSQL
from tests.unit.engine.box import Box, answered, documents, open_attempts, paid, unknown
from tests.unit.engine.faults import Call, Flaky, Reply, meddling
from tests.unit.ledger.test_room import room

QUICK = BatchLaw(median_s=600, sigma=0, stuck_share=0)
LIVE: dict[str, Any] = {"tiers": (Tier.STANDARD,), "due_in": None}
BATCH: dict[str, Any] = {"tiers": (Tier.BATCH,), "due_in": None}
OF_OURS = "FROM pg_stat_activity WHERE application_name = 'prefect-llm-tiers'"


def attempts(box: Box) -> int:
    """Return how many attempts the ledger holds."""
    return sum(line.attempts for line in box.ledger.spending("run-1"))


class Noting:
    """A ledger that notes when it first could not write down that calls are about to be sent."""

    def __init__(self, ledger: SqlLedger) -> None:
        self._ledger = ledger
        self.refused = False

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._ledger, name)
        if name != "begin_calls":
            return attribute

        def begin_calls(*args: Any, **kwargs: Any) -> Any:
            try:
                return attribute(*args, **kwargs)
            except LedgerUnusable:
                self.refused = True
                raise

        return begin_calls


@pytest.mark.parametrize("pages", [0, 2, 6, 12])
def test_a_disk_that_fills_up_in_the_middle_of_live_calls(tmp_path: Path, pages: int) -> None:
    """What was committed stands, no call is sent without its intent on record, and the next entry asks the rest."""
    ledger = open_ledger(tmp_path / "ledger.db")
    box = Box(ledger=ledger)
    noting = Noting(ledger)
    sent: list[bool] = []

    def judge(call: Call) -> Reply | None:
        if call.path == "/v1/responses":
            sent.append(noting.refused)
            if len(sent) == 40:
                room(ledger, pages)
        return None

    box.served = meddling(box.served, judge)
    with pytest.raises(LedgerUnusable, match=r"full.*Make room"):
        box.carry_out(prompts=documents(400), ledger=noting, **LIVE)
    assert not any(sent)
    assert attempts(box) >= len(sent) == box.account.asked
    # What came back and found no room is what was in flight, and no more.
    lost = open_attempts(box)
    assert lost <= 16
    assert attempts(box) > lost
    room(ledger, 10_000)
    box.served = box.simulation.app
    second = box.carry_out("second", prompts=documents(400), **LIVE)
    assert answered(box, second) == 400
    assert box.account.asked_more_than_once <= unknown(box) == lost


def test_a_disk_that_fills_up_in_the_middle_of_a_harvest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The groups of lines that found room stand; the next entry reads the file again and pays for nothing."""
    monkeypatch.setattr(harvest, "HARVEST_GROUP", 20)
    ledger = open_ledger(tmp_path / "ledger.db")
    box = Box(ledger=ledger, settings=WorldSettings(batch=QUICK))

    def judge(call: Call) -> Reply | None:
        if call.path.endswith("/content"):
            room(ledger, 4)
        return None

    box.served = meddling(box.served, judge)
    prompts = documents(400)
    with pytest.raises(LedgerUnusable, match=r"full.*Make room"):
        box.carry_out(prompts=prompts, **BATCH)
    [batch] = ledger.batches_of("run-1")
    assert batch.state is BatchState.COMPLETED
    assert 0 < open_attempts(box) < 400
    room(ledger, 10_000)
    box.served = box.simulation.app
    second = box.carry_out("second", prompts=prompts, **BATCH)
    assert answered(box, second) == 400
    assert box.account.batches_created == 1
    assert paid(box) == box.account.billed_usd > 0
    assert unknown(box) == 0


@pytest.mark.parametrize("at", [1, 3])
def test_an_answer_that_cannot_be_kept_for_a_moment_is_kept_then(tmp_path: Path, at: int) -> None:
    """A write that fails once costs no answer that was paid for, and does not end the step."""
    box = Box.at(tmp_path)
    process = box.carry_out(prompts=documents(60), ledger=Flaky(box.ledger, "record_calls", at), **LIVE)
    assert answered(box, process) == 60
    assert box.account.asked_more_than_once == unknown(box) == 0
    assert paid(box) == box.account.billed_usd


def test_connections_that_are_cut_between_two_transactions_are_made_anew(postgres: PostgreSQL) -> None:
    """A server that ends every connection while calls are in flight and a batch is out costs nothing at all."""
    with closing(open_ledger(postgres.empty_ledger())) as ledger:
        box = Box(ledger=ledger, settings=WorldSettings(batch=QUICK))
        cut: list[bool] = []

        def judge(call: Call) -> Reply | None:
            if call.path == "/v1/responses" or "/batches/" in call.path:
                cut.append(bool(postgres.run(f"SELECT pg_terminate_backend(pid) {OF_OURS}")))
            return None

        box.served = meddling(box.served, judge)
        process = box.carry_out(prompts=documents(20), **BATCH)
        assert answered(box, process) == 20
        live = box.carry_out(id="run-2", prompts=documents(30), **LIVE)
        assert answered(box, live) == 30
        assert any(cut)
        assert box.account.batches_created == 1
        assert box.account.asked_more_than_once == 0
        assert paid(box, "run-1", "run-2") == box.account.billed_usd


@pytest.mark.parametrize("tiers", [(Tier.BATCH,), (Tier.STANDARD,)])
def test_a_connection_that_is_cut_at_any_commit(postgres: PostgreSQL, tiers: tuple[Tier, ...]) -> None:
    """Whichever commit is lost, the next entry goes on: one batch, one bill, and what was in flight is listed."""
    lost = 0
    # Two looks at a batch are alike, and it is looked at often.
    for number in range(0, 200, 3 if Tier.BATCH in tiers else 1):
        with closing(open_ledger(postgres.empty_ledger())) as ledger:
            box = Box(
                ledger=ledger,
                settings=WorldSettings(batch=BatchLaw(median_s=100, sigma=0, stuck_share=0)),
            )
            commits = 0

            def cut(connection: Connection, at: int = number) -> None:
                nonlocal commits
                commits += connection.get_execution_options().get("ledger_writes", False)
                if commits == at + 1:
                    commits += 1
                    pid = connection.connection.driver_connection.info.backend_pid  # type: ignore[union-attr]
                    postgres.run(f"SELECT pg_terminate_backend({pid}, 5000)")

            engine = ledger._database._writing_engine
            event.listen(engine, "commit", cut)
            prompts = documents(2)
            try:
                process = box.carry_out(prompts=prompts, tiers=tiers, due_in=None)
            except LedgerUnusable:
                lost += 1
                process = box.carry_out("second", prompts=prompts, tiers=tiers, due_in=None)
            assert answered(box, process) == 2, number
            assert box.account.asked_more_than_once <= unknown(box), number
            if tiers == (Tier.BATCH,):
                assert box.account.batches_created == 1, number
                assert unknown(box) == 0
                assert paid(box) == box.account.billed_usd, number
            if commits <= number:
                assert lost > 5
                return
    raise AssertionError("It never came to its end.")
