"""The blocks, as Prefect wants integrations' blocks to be."""

import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from prefect.blocks.core import Block
from prefect.testing.standard_test_suites.blocks import BlockStandardTestSuite
from pydantic import SecretStr, ValidationError

from prefect_llm_tiers import AnthropicProvider, LedgerDatabase, OpenAIProvider, SimulatedProvider

BLOCKS: list[type[Block]] = [OpenAIProvider, AnthropicProvider, SimulatedProvider, LedgerDatabase]


@pytest.mark.parametrize("block", BLOCKS)
class TestBlocksMeetThePrefectStandard(BlockStandardTestSuite):
    """Prefect's own suite for the blocks of an integration."""

    @pytest.fixture
    def block(self, request: pytest.FixtureRequest) -> type[Block]:
        """Return one of ours."""
        block: type[Block] = request.param
        return block

    def test_has_a_valid_image(self, block: type[Block]) -> None:
        """The logo is an image on the web; the suite would fetch it, and no test leaves this machine."""
        assert str(block._logo_url).startswith("https://")
        assert str(block._logo_url).endswith(".png")


@pytest.mark.parametrize("block", BLOCKS)
def test_forms_can_be_filled_in(block: type[Block]) -> None:
    """Each field has a short title, says in full sentences what it is for, and prefills what has a default."""
    for name, field in block.model_fields.items():
        assert field.title, name
        assert len(field.title) <= 30
        assert field.description
        assert field.description[0].isupper()
        assert len(field.description.split()) >= 4
        assert field.default_factory is None


def test_keys_are_not_shown() -> None:
    """Neither `repr` nor a dump of a block holds its key."""
    for block in (OpenAIProvider(api_key=SecretStr("sk-secret")), AnthropicProvider(api_key=SecretStr("sk-secret"))):
        assert "sk-secret" not in f"{block!r}{block}{block.model_dump_json()}"
    ledger = LedgerDatabase(url=SecretStr("postgresql+psycopg://me:hush@db/llm"))
    assert "hush" not in f"{ledger!r}{ledger}"


@pytest.mark.parametrize(
    "fields",
    [
        {"requests_per_minute": 0},
        {"tokens_per_minute": -1},
        {"max_concurrency": 0},
        {"batch_median_minutes": 0},
        {"dialect": "esperanto"},
    ],
)
def test_fields_are_bounded(fields: dict[str, Any]) -> None:
    """A value that would stop every call is refused when the block is made."""
    with pytest.raises(ValidationError):
        SimulatedProvider(**fields)


def test_prefect_finds_the_blocks() -> None:
    """The entry point that Prefect's server loads at its start names a module that registers all of them."""
    declared = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    [(name, value)] = declared["project"]["entry-points"]["prefect.collections"].items()
    module = EntryPoint(name, value, "prefect.collections").load()
    assert {name for name, thing in vars(module).items() if isinstance(thing, type) and issubclass(thing, Block)} == {
        "Block",
        *(block.__name__ for block in BLOCKS),
    }


def test_blocks_load_no_sdk() -> None:
    """Registering the blocks, which every server start does, loads neither an SDK nor polars nor the ledger."""
    code = (
        "import sys, prefect.blocks.core; before = set(sys.modules); import prefect_llm_tiers.blocks; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"openai", "anthropic", "polars", "aiohttp", "alembic"} & set(loaded.split())


@pytest.mark.parametrize(
    ("block", "fields", "words"),
    [
        (SimulatedProvider, {"stuck_batches": "first"}, "'first' names no batch; write dialect and number"),
        (SimulatedProvider, {"batch_median": 5}, "no field 'batch_median'; did you mean 'batch_median_minutes'"),
        (LedgerDatabase, {"url": "ledger.db", "colour": 1}, "no field 'colour'; it has url"),
        (OpenAIProvider, {"api_kye": "sk-secret"}, "no field 'api_kye'; did you mean 'api_key'"),
    ],
)
def test_slips_are_told(block: type[Block], fields: dict[str, Any], words: str) -> None:
    """A field that there is not is refused with the one that was meant, and no value is repeated."""
    with pytest.raises(ValidationError, match=words) as raised:
        block(**fields)
    assert "sk-secret" not in str(raised.value)


def test_the_bound_on_enqueued_tokens_is_told_where_there_is_one() -> None:
    """OpenAI bounds what unfinished batches of a model hold together; a block that does not know it says nothing."""
    assert OpenAIProvider(api_key=SecretStr("k"), enqueued_tokens=90_000).most_enqueued == 90_000
    assert SimulatedProvider(enqueued_tokens=5).most_enqueued == 5
    assert OpenAIProvider(api_key=SecretStr("k")).most_enqueued is None
    assert AnthropicProvider(api_key=SecretStr("k")).most_enqueued is None
    with pytest.raises(ValidationError):
        OpenAIProvider(api_key=SecretStr("k"), enqueued_tokens=0)


@pytest.mark.parametrize("block", [OpenAIProvider, AnthropicProvider])
@pytest.mark.parametrize(
    ("base_url", "cause"),
    [
        ("http://llm.example.com/v1", "send the key in the clear"),
        ("http://10.0.0.7:8000", "send the key in the clear"),
        ("llm.example.com/v1", r"no http\(s\) URL"),
        ("https://me:hush@llm.example.com", "user name or password"),
    ],
)
def test_an_address_that_would_give_the_key_away_is_refused(block: type[Block], base_url: str, cause: str) -> None:
    """A block takes https, or http to this machine itself; the error says why, and repeats neither key nor password."""
    with pytest.raises(ValidationError, match=cause) as caught:
        block(api_key=SecretStr("sk-secret"), base_url=base_url)
    assert "sk-secret" not in str(caught.value)
    assert "hush" not in str(caught.value)
    for local in (
        "http://localhost:8000/x",
        "http://127.0.0.1:8000/x",
        "http://[::1]:8000/x",
        "https://llm.example.com/x",
    ):
        assert block(api_key=SecretStr("sk-secret"), base_url=local)


@pytest.mark.parametrize(
    ("fields", "service"),
    [
        ({}, "openai"),
        ({"base_url": "https://api.groq.com/openai/v1"}, "groq"),
        ({"base_url": "http://localhost:8000/v1"}, "gateway"),
        ({"base_url": "http://localhost:8000/v1", "service": "vllm"}, "vllm"),
        ({"base_url": "https://llm.example.com/v1", "service": "openai"}, "openai"),
    ],
)
def test_a_block_says_which_service_answers(fields: dict[str, Any], service: str) -> None:
    """What the block names goes before what the host tells."""
    assert OpenAIProvider(api_key=SecretStr("k"), **fields).answering().name == service


def test_a_service_that_there_is_not_is_refused() -> None:
    """A slip in the name is told with the names there are."""
    with pytest.raises(ValidationError, match="groq"):
        OpenAIProvider(api_key=SecretStr("k"), service="grok")  # type: ignore[arg-type]
