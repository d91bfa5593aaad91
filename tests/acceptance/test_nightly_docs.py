"""The main job, as `make demo` runs it, over fewer documents."""

import re
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from flows.nightly_docs import SUMMARIES, main
from prefect_llm_tiers.core.tiers import Tier


def test_the_main_job(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch is stuck, left in time and harvested; what the table says was paid is what the provider bills.

    A second run, a new flow run, asks and pays nothing and writes the same file.
    """
    monkeypatch.setenv("PREFECT_INTEGRATIONS_LLM_TIERS_LEDGER", str(tmp_path / "ledger.db"))
    out = tmp_path / "docs.parquet"
    main(["--limit", "60", "--out", str(out)])
    told = capsys.readouterr().out
    account = SUMMARIES.simulation().account()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in told.splitlines() if "│" in line]
    paid = [Decimal(row[5].removeprefix("$")) for row in rows if row[0] in {"summary", "label"}]
    # The table rounds to a millionth.
    assert abs(sum(paid) - account.billed_usd) <= len(paid) * Decimal("0.0000005")
    assert f"${account.billed_usd} billed" in told
    assert [row[8] for row in rows if row[8]] == ["yes", "yes"]
    assert account.batches_cancelled == 1
    answered = {(line.dialect, line.tier): line.answered for line in account.lines}
    assert answered["openai", Tier.BATCH] == 60
    assert min(answered["anthropic", Tier.BATCH], answered["anthropic", Tier.STANDARD]) > 0
    frame = pl.read_parquet(out)
    assert (frame.height, frame["summary_error"].null_count(), frame["label_error"].null_count()) == (60, 60, 60)

    main(["--limit", "60", "--out", str(out)])
    again = SUMMARIES.simulation().account()
    assert (again.asked, again.billed_usd) == (account.asked, account.billed_usd)
    assert len(re.findall(r"\d+ answered before", capsys.readouterr().out)) == 2
    assert pl.read_parquet(out).equals(frame)


def test_folders_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--docs` takes a folder; an empty one gives an empty file, and what cannot be found an error in a line."""
    out = tmp_path / "docs.parquet"
    (tmp_path / "pages").mkdir()
    main(["--docs", str(tmp_path / "pages"), "--out", str(out)])
    assert pl.read_parquet(out).columns == [
        "id",
        "title",
        "body",
        "summary",
        "summary_error",
        "label",
        "label_error",
    ]
    assert "0 documents written" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"error: .* is no folder"):
        main(["--docs", str(tmp_path / "nowhere"), "--out", str(out)])
    with pytest.raises(SystemExit, match="error: There is no provider block named 'nope'"):
        main(["--provider", "nope", "--limit", "1", "--out", str(out)])
