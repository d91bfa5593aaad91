"""Blocks on a real server: registered, stored, found again."""

import os
import subprocess
import sys

import polars as pl
import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL
from pydantic import SecretStr

from prefect_llm_tiers import ConfigurationError, LedgerDatabase, OpenAIProvider, SimulatedProvider, llm_step
from prefect_llm_tiers.blocks import load_ledger, load_provider
from prefect_llm_tiers.settings import LLMTiersSettings, ledger_location
from tests.acceptance.conftest import World


def test_registering() -> None:
    """`prefect block register -m prefect_llm_tiers.blocks` registers the four."""
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "block", "register", "-m", "prefect_llm_tiers.blocks"],
        env=os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in ("OpenAI LLM Provider", "Anthropic LLM Provider", "Simulated LLM Provider", "LLM Ledger Database"):
        assert name in done.stdout


def test_a_stored_account_keeps_its_key() -> None:
    """A provider comes back from the server with its key, and under its name alone."""
    OpenAIProvider(api_key=SecretStr("sk-stored"), requests_per_minute=500).save("stored")
    found = load_provider("stored")
    assert isinstance(found, OpenAIProvider)
    assert (found.api_key.get_secret_value(), found.rate().requests_per_minute) == ("sk-stored", 500)


def test_a_block_of_another_kind(world: World) -> None:
    """A ledger is no provider."""
    LedgerDatabase(url=SecretStr(world.ledger)).save("a-ledger")
    with pytest.raises(ConfigurationError, match="is a LedgerDatabase, which is no provider"):
        load_provider("llm-ledger-database/a-ledger")


def test_a_stored_block_that_cannot_be_read() -> None:
    """The server validates nothing; the field that is wrong is named when the block is loaded, without its value."""
    from prefect.client.orchestration import get_client

    block = SimulatedProvider()
    block.save("spoiled")
    with get_client(sync_client=True) as client:
        document = client.read_block_document_by_name("spoiled", "simulated-llm-provider")
        from prefect.client.schemas.actions import BlockDocumentUpdate

        client.update_block_document(
            document.id,
            BlockDocumentUpdate(
                block_schema_id=document.block_schema_id, data={"dialect": "esperanto"}, merge_existing_data=False
            ),
        )
    with pytest.raises(ConfigurationError, match="'simulated-llm-provider/spoiled' cannot be read: check dialect"):
        load_provider("spoiled")


def test_a_stored_address_that_is_not_encrypted_is_not_used() -> None:
    """The Blocks page takes any text; the key is not sent there all the same, and the error says why."""
    block = OpenAIProvider(api_key=SecretStr("sk-stored"))
    block.base_url = "http://llm.example.com/v1"
    block.save("in-clear")
    with pytest.raises(
        ConfigurationError, match=r"check base_url\. .*send the key in the clear.*Blocks page"
    ) as caught:
        load_provider("in-clear")
    assert "sk-stored" not in str(caught.value)


def test_a_ledger_in_a_block(world: World) -> None:
    """A step keeps its answers in the ledger of its block; the same file by path is the same ledger."""
    options = world.options(ledger=LedgerDatabase(url=SecretStr(world.ledger)), column="said")
    step = llm_step(**options)(lambda body: f"Sum.\n\n{body}")
    frame = pl.DataFrame({"body": ["A valve opens."]})

    @flow
    def both() -> None:
        step(frame)
        step.with_options(ledger=world.ledger)(frame)

    both()
    assert world.account().asked == 1


def test_where_the_ledger_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a word the ledger is in Prefect's home; a setting, as Prefect reads its own, names another place."""
    assert LLMTiersSettings().ledger is None
    assert ledger_location().endswith("llm-tiers/ledger.db")
    monkeypatch.setenv("PREFECT_INTEGRATIONS_LLM_TIERS_LEDGER", "/elsewhere/ledger.db")
    assert ledger_location() == "/elsewhere/ledger.db"


def test_the_machines_ledger_may_be_a_stored_block(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named by its block in the setting, the ledger is the block's, and no file of that name."""
    LedgerDatabase(url=SecretStr(world.ledger)).save("of-the-machine")
    monkeypatch.setenv("PREFECT_INTEGRATIONS_LLM_TIERS_LEDGER", "llm-ledger-database/of-the-machine")
    assert load_ledger(None) is load_ledger(world.ledger)
