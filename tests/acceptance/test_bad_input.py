"""Bad input: a clear error, nothing lost, and nothing paid for what cannot work."""

import os
import socket
import sqlite3
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pytest
from prefect import flow
from pydantic import BaseModel, SecretStr, field_validator

from prefect_llm_tiers import (
    AnthropicProvider,
    Chain,
    ColumnExists,
    ConfigurationError,
    CredentialsRejected,
    DeadlineInfeasible,
    InputError,
    LedgerUnusable,
    LLMStep,
    MissingColumns,
    OpenAIProvider,
    RowsFailed,
    SchemaUnsupported,
    SimulatedProvider,
    UnknownModel,
    llm_step,
)
from prefect_llm_tiers.cli import main
from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.simulator.server import serving
from prefect_llm_tiers.simulator.settings import WorldSettings
from tests.acceptance.conftest import CALM, World

Docs = Callable[[int], pl.DataFrame]


class Label(BaseModel):
    """What kind of page it is."""

    topic: Literal["api", "howto", "concept"]
    confidence: float


def asking(world: World, **changes: Any) -> LLMStep:
    """Return a step that asks for a summary of `body`."""

    @llm_step(**world.options(**changes))
    def summary(body: str) -> str:
        return f"Summarize.\n\n{body}"

    return summary


def run(step: LLMStep, frame: Any) -> pl.DataFrame:
    """Run a step in a flow of its own."""

    @flow
    def asked() -> pl.DataFrame:
        return step(frame)

    return asked()


# Blocks


def test_an_unknown_block(world: World, docs: Docs) -> None:
    """A name that no provider block bears is told as such, with how to make one."""
    with pytest.raises(ConfigurationError, match=r"no provider block named 'openai-typo'.*\.save\('openai-typo'\)"):
        run(asking(world, provider="openai-typo"), docs(1))


def test_a_block_by_name(world: World, docs: Docs) -> None:
    """A stored block is found by its name alone; where two types bear it, the type must be named."""
    world.provider().save("by-name")
    assert run(asking(world, provider="by-name"), docs(1)).height == 1
    AnthropicProvider(api_key=SecretStr("k")).save("by-name")
    with pytest.raises(ConfigurationError, match=r"anthropic-llm-provider/by-name.*simulated-llm-provider/by-name"):
        run(asking(world, provider="by-name"), docs(1))
    assert run(asking(world, provider="simulated-llm-provider/by-name"), docs(1)).height == 1
    assert world.account().asked == 1


def test_no_provider_at_all(world: World, docs: Docs) -> None:
    """Something that is neither a block nor a name is refused by its type."""
    with pytest.raises(ConfigurationError, match="not dict"):
        run(asking(world, provider={"api_key": "k"}), docs(1))


def test_a_missing_key(world: World, docs: Docs) -> None:
    """An empty key is found before anything is sent."""
    with pytest.raises(ConfigurationError, match="empty `api_key`"):
        run(asking(world, provider=OpenAIProvider(api_key=SecretStr(""))), docs(1))


def test_a_rejected_key(world: World, docs: Docs) -> None:
    """A key that the provider refuses (401) is told before anything is asked, and never repeated."""
    with serving(settings=CALM) as url:
        blocks = [
            (OpenAIProvider(api_key=SecretStr("bad-key-12345"), base_url=f"{url}/v1"), "gpt-6-luna"),
            (AnthropicProvider(api_key=SecretStr("bad-key-12345"), base_url=url), "claude-haiku-5-5"),
        ]
        for block, model in blocks:
            with pytest.raises(CredentialsRejected) as raised:
                run(asking(world, provider=block, model=model), docs(1))
            assert "bad-key-12345" not in str(raised.value)
            assert "api_key" in str(raised.value)


def test_an_unknown_model(world: World, docs: Docs) -> None:
    """A model that the provider does not list is told before anything is asked."""
    with pytest.raises(UnknownModel, match="gpt-0-nova"):
        run(asking(world, model="gpt-0-nova"), docs(1))


def test_nobody_there(world: World, docs: Docs) -> None:
    """A provider that cannot be reached is an error that says so."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    with pytest.raises(Exception, match="looking up model 'gpt-6-luna'"):
        run(asking(world, provider=OpenAIProvider(api_key=SecretStr("k"), base_url=url)), docs(1))


# Rows


def test_a_missing_column(world: World, docs: Docs) -> None:
    """A column that the prompt function names and the frame lacks is told with those there are."""
    with pytest.raises(MissingColumns, match=r"reads 'body'.*it has 'title'.*columns="):
        run(asking(world), docs(1).select("title"))
    assert world.account().asked == 0


def test_an_existing_column(world: World, docs: Docs) -> None:
    """A column that the step would replace is an error, unless it may overwrite."""
    frame = docs(2).with_columns(summary=pl.lit("mine"))
    with pytest.raises(ColumnExists, match=r"'summary'.*overwrite=True"):
        run(asking(world), frame)
    assert run(asking(world, overwrite=True), frame)["summary"][1] != "mine"


def test_an_empty_frame(world: World, docs: Docs) -> None:
    """No rows: the right columns at once, and the provider is not even called."""
    step = asking(world, output=Label, meta=True, samples=2)
    done = run(step, docs(1).clear())
    assert done.schema == run(step, docs(1)).schema
    assert world.account().models_calls == 1
    with pytest.raises(MissingColumns):
        run(step, docs(0).select("title"))


def test_nulls(world: World, docs: Docs) -> None:
    """A null in a column that the prompt reads fails the row unasked; nulls in others are nobody's business."""
    frame = docs(4).with_columns(
        body=pl.when(pl.col("title") == "Page 2").then(None).otherwise(pl.col("body")),
        title=pl.lit(None, dtype=pl.String),
    )
    done = run(asking(world, max_failed=1), frame)
    assert done["summary_error"].to_list() == [None, None, "null in column 'body'", None]
    assert done["summary"].is_null().to_list() == [False, False, True, False]
    assert world.account().asked == 3


def test_rows_that_are_all_null(world: World, docs: Docs) -> None:
    """A step with nothing to ask ends without asking, with the same error as any other."""
    frame = docs(3).with_columns(body=pl.lit(None, dtype=pl.String))
    with pytest.raises(RowsFailed, match="3 of 3 rows"):
        run(asking(world), frame)
    assert run(asking(world, max_failed=3), frame)["summary"].null_count() == 3
    assert world.account().asked == 0


def test_a_prompt_function_that_raises(world: World, docs: Docs, caplog: pytest.LogCaptureFixture) -> None:
    """That row fails and the others go on; the reason has type, line and row, and never the row's text."""

    @llm_step(**world.options(max_failed=1))
    def summary(body: str) -> str:
        if "2th" in body:
            raise KeyError(body)
        return f"Summarize.\n\n{body}"

    line = summary.prompt.__code__.co_firstlineno + 3
    done = run(summary, docs(4))
    reason = f"prompt_error: KeyError at line {line}"
    assert done["summary_error"].to_list() == [None, None, reason, None]
    assert world.account().asked == 3
    assert f"{reason} (first: row 2" in caplog.text
    with pytest.raises(RowsFailed, match=f"1 {reason}, first in row 2") as raised:
        run(summary.with_options(max_failed=0), docs(4))
    assert raised.value.reasons == {reason: 1}
    assert "valve" not in f"{raised.value}{caplog.text}"
    assert world.account().asked == 3


@pytest.mark.parametrize(
    ("changes", "world_changes", "reason", "advice", "not_said"),
    [
        (
            {"options": {"temperatur": 0}},
            {},
            "unknown_parameter: temperatur",
            "Asking the same again gives the same",
            "Run the flow again",
        ),
        (
            {"output": Label, "max_attempts": 1},
            {"unparsable_rate": 1.0},
            "unparsable",
            "Run the flow again to ask the failed rows again",
            "gives the same",
        ),
    ],
)
def test_the_advice_fits_the_reason(
    world: World,
    docs: Docs,
    changes: dict[str, Any],
    world_changes: dict[str, Any],
    reason: str,
    advice: str,
    not_said: str,
) -> None:
    """What the provider rejects is to be corrected, and what came back of no use may be asked again."""
    world.shaped(WorldSettings(**world_changes))
    step = llm_step(**world.options(tiers=["standard"], **changes), column="summary")(lambda body: body)
    with pytest.raises(RowsFailed, match=f"{reason}.*{advice}") as caught:
        run(step, docs(2))
    assert not_said not in str(caught.value)


@pytest.mark.parametrize("prompt", [7, [], [{"role": "user"}], {"text"}])
def test_a_prompt_that_is_none(world: World, docs: Docs, prompt: object) -> None:
    """What is neither text nor messages fails its row, with what to return instead."""
    step = llm_step(**world.options(max_failed=1, column="summary"))(lambda body: prompt)
    error = run(step, docs(1))["summary_error"][0]
    assert error.startswith("prompt_error: ")
    assert error.endswith(".")
    assert world.account().asked == 0


def test_a_prompt_that_json_cannot_carry(world: World, docs: Docs) -> None:
    """A lone surrogate, as badly decoded files have them, fails its row and not the step."""
    step = llm_step(**world.options(max_failed=1, column="summary"))(
        lambda title: "\ud800" if title == "Page 1" else title
    )
    assert run(step, docs(3))["summary_error"].null_count() == 2
    assert world.account().asked == 2


def test_declarations_that_cannot_work_are_no_rows_fault(world: World, docs: Docs) -> None:
    """What is wrong with the step is raised as such and not counted as failed rows."""
    anthropic = {"provider": world.provider("anthropic"), "model": "claude-haiku-5-5"}
    with pytest.raises(ConfigurationError, match="max_output_tokens"):
        run(asking(world, **anthropic, max_output_tokens=None), docs(2))
    with pytest.raises(ConfigurationError, match="samples"):
        run(asking(world, options={"n": 3}), docs(2))
    assert world.account().asked == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"body": "x"}], "not list"),
        ("no-such.parquet", "no file 'no-such.parquet'"),
        ("s3://bucket/docs.parquet", "scan_parquet"),
        (__file__, "cannot be read as Parquet"),
    ],
)
def test_rows_that_are_no_rows(world: World, rows: object, message: str) -> None:
    """What is no frame and no Parquet file is refused by what it is."""
    with pytest.raises(InputError, match=message):
        run(asking(world), rows)


def test_an_upstream_failure(world: World, docs: Docs) -> None:
    """A row whose upstream failed fails as `upstream`, unasked, and does not count against the later step."""
    summary = asking(world, max_failed=1)
    title = llm_step(**world.options())(lambda summary: f"Give a title.\n\n{summary}").with_options(name="title_of")
    frame = docs(3).with_columns(body=pl.when(pl.col("title") == "Page 1").then(None).otherwise(pl.col("body")))

    @flow
    def both() -> pl.DataFrame:
        return title(summary(frame))

    done = both()
    assert done["title_of_error"].to_list() == [None, "upstream", None]
    assert world.account().asked == 4


# Deadlines


def test_a_naive_deadline(world: World) -> None:
    """An instant without a zone is refused where it is given."""
    with pytest.raises(ConfigurationError, match=r"2026-11-21T09:00:00 has no time zone"):
        asking(world, deadline=datetime(2026, 11, 21, 9))  # noqa: DTZ001 (the point)
    with pytest.raises(ConfigurationError, match=r"due=.*no time zone"):
        Chain(asking(world), due=datetime(2026, 11, 21, 9))  # noqa: DTZ001 (the point)


def test_a_deadline_that_is_past(world: World, docs: Docs) -> None:
    """A deadline that is past at the first entry is an error with both instants, and nothing is asked."""
    past = datetime.now(UTC) - timedelta(hours=3)
    with pytest.raises(DeadlineInfeasible, match=f"{past:%H:%M}Z"):
        run(asking(world, deadline=past), docs(2))
    with pytest.raises(DeadlineInfeasible), Chain(asking(world), due=past) as chain:
        run(chain.steps[0], docs(2))
    assert world.account().asked == 0
    # Told so, it does its best all the same.
    assert run(asking(world, deadline=past, infeasible="best_effort"), docs(2)).height == 2


def test_a_deadline_that_no_tier_can_meet(world: World, docs: Docs) -> None:
    """The numbers come before anything is paid, from the plan as from the run."""
    step = asking(world, provider=world.provider(requests_per_minute=2), deadline=timedelta(minutes=10))
    for attempt in (step.plan, lambda rows: run(step, rows)):
        with pytest.raises(DeadlineInfeasible, match=r"10 min.*200 requests.*requests_per_minute"):
            attempt(docs(200))
    assert world.account().asked == 0


# Models


def test_a_model_without_a_price(world: World, docs: Docs) -> None:
    """A plan says unpriced, never $0."""
    plan = asking(world, model="text-embedding-3-small").plan(docs(3))
    assert plan.unpriced
    assert "unpriced" in str(plan)
    assert "$0" not in str(plan)


def test_answers_without_a_price(world: World, docs: Docs) -> None:
    """Usage that no source prices in its tier is listed as unpriced: o3 names no price for cached batch input."""
    world.shaped(WorldSettings(batch=CALM.batch, cached_input_share=0.5))
    step = asking(world, model="o3", tiers=["batch"], meta=True)
    chain = Chain(step)

    @flow
    def asked() -> pl.DataFrame:
        with chain:
            return step(docs(3))

    assert asked()["summary_meta"].struct.field("cost_usd").null_count() == 3
    [report] = chain.report()
    assert (report.unpriced, report.paid_usd) == (3, Decimal(0))


class _Free(BaseModel):
    keys: dict[str, int]


class _Node(BaseModel):
    children: list["_Node"]


class _Mixed(BaseModel):
    value: int | str


@pytest.mark.parametrize(
    ("model", "place"), [(_Free, "_Free.keys"), (_Node, r"_Node.children"), (_Mixed, "_Mixed.value")]
)
def test_models_that_cannot_be_columns(world: World, docs: Docs, model: type[BaseModel], place: str) -> None:
    """What a strict schema or a column cannot express is refused with the field, before anything is asked."""
    with pytest.raises(SchemaUnsupported, match=place):
        run(asking(world, output=model), docs(1))
    assert world.account().asked == 0


# Answers


def test_answers_that_do_not_parse_are_asked_again(world: World, docs: Docs) -> None:
    """An answer that breaks the schema is paid for and asked again; the second one counts."""
    world.shaped(WorldSettings(batch=CALM.batch, unparsable_rate=1.0))
    done = run(asking(world, output=Label), docs(3))
    assert done["summary_error"].null_count() == 3
    account = world.account()
    assert (account.asked, account.asked_more_than_once) == (6, 3)
    assert world.paid_by_ledger() == account.billed_usd


class _Strict(Label):
    """Takes nothing while it is told not to."""

    @field_validator("confidence")
    @classmethod
    def _check(cls, value: float) -> float:
        if _STRICT[0]:
            msg = f"secret answer {value}"
            raise ValueError(msg)
        return value


_STRICT = [True]


@pytest.mark.parametrize(("tier", "asked_again"), [("batch", 0), ("standard", 3)])
def test_rows_whose_answers_never_parse(world: World, docs: Docs, tier: str, asked_again: int) -> None:
    """After `max_attempts` the rows fail with the kind and place of the error, and the next run asks them again.

    What a batch brought is kept as it came: a model that was mended reads it, and nothing is asked.
    """
    step = asking(world, output=_Strict, max_attempts=2, tiers=[tier])
    _STRICT[0] = True
    with pytest.raises(RowsFailed) as raised:
        run(step, docs(3))
    assert raised.value.reasons == {"unparsable: value_error at confidence": 3}
    assert "secret" not in str(raised.value)
    assert world.account().asked == 6
    _STRICT[0] = False
    assert run(step, docs(3))["summary_error"].null_count() == 3
    assert world.account().asked == 6 + asked_again
    assert world.paid_by_ledger() == world.account().billed_usd


def test_a_reentry_after_failed_rows_asks_them_again(world: World, docs: Docs) -> None:
    """Within one flow run, too: an entry after `RowsFailed` asks the failed rows and no others."""
    step = asking(world, output=_Strict, max_attempts=1, run_key="label", tiers=["standard"])
    _STRICT[0] = True

    @flow
    def entered_twice() -> pl.DataFrame:
        with pytest.raises(RowsFailed):
            step(docs(3))
        _STRICT[0] = False
        return step(docs(3))

    assert entered_twice()["summary_error"].null_count() == 3
    assert world.account().asked == 6


def test_refusals_are_outcomes(world: World, docs: Docs) -> None:
    """A refusal is kept like an answer: no failure, not asked again, its text in the error column."""
    world.shaped(WorldSettings(batch=CALM.batch, refusal_rate=1.0))
    step = asking(world)
    done = run(step, docs(2))
    assert done["summary"].null_count() == 2
    assert all(error.startswith("refusal") for error in done["summary_error"])
    run(step, docs(2))
    assert world.account().asked == 2


def test_max_failed(world: World, docs: Docs) -> None:
    """As many rows may fail as `max_failed` says, and not one more; what came back is kept either way."""
    frame = docs(5).with_columns(body=pl.when(pl.col("title") < "Page 2").then(None).otherwise(pl.col("body")))
    assert run(asking(world, max_failed=2), frame)["summary_error"].null_count() == 3
    with pytest.raises(RowsFailed, match=r"2 of 5 rows.*max_failed=1") as raised:
        run(asking(world, max_failed=1), frame)
    assert (raised.value.failed, raised.value.total) == (2, 5)
    assert world.account().asked == 3


# Ledgers


def _read_only(path: Path) -> None:
    from prefect_llm_tiers.ledger.opening import open_ledger

    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    open_ledger(path).close()
    path.chmod(0o400)
    path.parent.chmod(0o500)


def _no_folder(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text("a file where the folder should be")


def _corrupt(path: Path) -> None:
    path.write_bytes(b"no database at all, but long enough to be read as one" * 100)


def _newer(path: Path) -> None:
    from prefect_llm_tiers.ledger.opening import open_ledger
    from prefect_llm_tiers.ledger.schema import VERSION_TABLE

    open_ledger(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    connection.close()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(_read_only, "readonly"), (_no_folder, "folder"), (_corrupt, "not a database"), (_newer, "newer")],
)
def test_a_ledger_that_cannot_be_used(
    world: World, docs: Docs, tmp_path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    """Read-only, without a folder, corrupt or of a newer schema: told with the path, and nothing is asked."""
    path = tmp_path / "spoiled" / "ledger.db"
    path.parent.mkdir()
    spoil(path)
    with pytest.raises(LedgerUnusable, match=words) as raised:
        run(asking(world, ledger=str(path)), docs(1))
    assert str(path) in str(raised.value)
    assert world.account().asked == 0


# Chains and simulators


def test_a_step_in_a_chain_twice(world: World) -> None:
    """Names tell steps apart, so a chain refuses one that it has already."""
    step = asking(world)
    with pytest.raises(ConfigurationError, match=r"'summary' more than once.*with_options\(name="):
        Chain(step, step)
    assert len(Chain(step, step.with_options(name="again")).steps) == 2


def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`simulate serve` on a taken port ends with one line and exit code 1."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["prefect-llm-tiers", "simulate", "serve", "--port", str(port)])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == (
        f"error: The simulator cannot listen on 127.0.0.1 port {port}: the port is taken. "
        "Choose another port, or 0 for a free one.\n"
    )


def test_two_worlds_of_one_name(world: World) -> None:
    """A block that says another thing of a world than is there is refused; one that says nothing shares it."""
    world.provider()
    assert SimulatedProvider(world=world.name).simulation().settings == CALM
    with pytest.raises(ConfigurationError, match="other settings"):
        SimulatedProvider(world=world.name, seed=3).simulation()


def test_an_endpoint_of_another_provider(world: World, docs: Docs) -> None:
    """An endpoint that the provider's dialect lacks, or that nobody has, is refused with those there are."""
    with pytest.raises(ConfigurationError, match=Endpoint.RESPONSES):
        run(asking(world, endpoint="messages"), docs(1))
    with pytest.raises(ConfigurationError, match="'chat/completions'"):
        run(asking(world, endpoint="chat"), docs(1))
