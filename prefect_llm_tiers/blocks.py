"""Providers and ledgers, as Prefect blocks: configured in the Blocks page, referred to by name.

Keys live here and nowhere else. The blocks load no SDK: the server registers them at its start.
"""

import contextlib
import difflib
import re
import threading
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, SecretStr, field_validator, model_validator

from prefect_llm_tiers.core.addresses import base_url_fault
from prefect_llm_tiers.core.ports import Clock, Ledger, Provider
from prefect_llm_tiers.errors import ConfigurationError
from prefect_llm_tiers.planning.priors import LiveRate

if TYPE_CHECKING:
    from prefect_llm_tiers.providers.services import Service
    from prefect_llm_tiers.simulator.simulation import Simulation

__all__ = [
    "AnthropicProvider",
    "LedgerDatabase",
    "OpenAIProvider",
    "ProviderBlock",
    "SimulatedProvider",
    "block_name",
    "load_ledger",
    "load_provider",
    "stored_providers",
]

_DOCUMENTATION = "https://github.com/prefect-llm-tiers/prefect-llm-tiers"
_LOGO = "https://raw.githubusercontent.com/prefect-llm-tiers/prefect-llm-tiers/main/docs/images/logo.png"

_NUMBERED = re.compile(r"(openai|anthropic):\d+")
OpenAIService = Literal["", "openai", "azure", "groq", "doubleword", "deepinfra", "vllm"]
"""Services that speak OpenAI's protocol, as `providers.capabilities` has them; empty goes by the host."""

PlayedService = Literal["", "openai", "groq", "vllm"]
"""Those of them that the simulator plays."""

_LEDGER_SLUG = "llm-ledger-database"
_SLUGS = ("openai-llm-provider", "anthropic-llm-provider", "simulated-llm-provider")


def _know_every_field(cls: type[Block], values: Any) -> Any:
    """Refuse fields that a block does not have: Prefect would keep them, and a slip would say nothing."""
    for name in values if isinstance(values, dict) else ():
        if name not in cls.model_fields and name != "block_type_slug" and not name.startswith("_"):
            near = difflib.get_close_matches(name, cls.model_fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(cls.model_fields)}"
            msg = f"{cls.__name__} has no field {name!r}; {hint}"
            raise ValueError(msg)
    return values


def _safe_base_url(_: type[Block], value: str) -> str:
    """Refuse an address that the key may not be sent to; Prefect's pages save one all the same, see `open`."""
    fault = base_url_fault(value) if value else None
    if fault is not None:
        msg = f"base_url {fault}"
        raise ValueError(msg)
    return value


class ProviderBlock:
    """What a step asks of a provider's block."""

    max_concurrency: int
    requests_per_minute: float | None
    tokens_per_minute: float | None

    @property
    def dialect_name(self) -> Literal["openai", "anthropic"]:
        """Whose protocol the provider speaks."""
        raise NotImplementedError

    def answering(self) -> "Service":
        """Return which service answers, by which its tiers, limits and prices are known."""
        raise NotImplementedError

    @property
    def most_enqueued(self) -> int | None:
        """How many input tokens all unfinished batches of a model may hold together; None where nobody knows."""
        return None

    def clock(self) -> Clock:
        """Return the time that the provider lives in."""
        from prefect_llm_tiers.engine.system import SystemClock

        return SystemClock()

    def open(self) -> Provider:
        """Open the adapter; call inside the loop that will use it.

        Raises:
            ConfigurationError: A field of the block cannot work.
        """
        raise NotImplementedError

    @property
    def host(self) -> str:
        """Where the provider is asked, to be named where it cannot be reached."""
        raise NotImplementedError

    def rate(self, max_concurrency: int | None = None) -> LiveRate:
        """Return how fast the account may go, at most `max_concurrency` calls at a time."""
        return LiveRate(
            concurrency=min(max_concurrency or self.max_concurrency, self.max_concurrency),
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
        )


class OpenAIProvider(Block, ProviderBlock):
    """An account at OpenAI, or at another host that speaks its protocol.

    Example:
        Load a stored account and use it in a step:
        ```python
        from prefect_llm_tiers import OpenAIProvider

        provider = OpenAIProvider.load("BLOCK_NAME")
        ```
    """

    _block_type_name: ClassVar[str] = "OpenAI LLM Provider"
    _block_type_slug: ClassVar[str] = _SLUGS[0]
    _description: ClassVar[str] = "An account at OpenAI, or at a host that speaks its protocol."
    _documentation_url: ClassVar[Any] = _DOCUMENTATION
    _logo_url: ClassVar[Any] = _LOGO
    # A slip in the name of the key's field must not print the key.
    model_config = ConfigDict(hide_input_in_errors=True)
    _strict = model_validator(mode="before")(classmethod(_know_every_field))  # type: ignore[arg-type] # typed for decorators
    _encrypted = field_validator("base_url")(classmethod(_safe_base_url))

    api_key: SecretStr = Field(title="API key", description="The secret key; it is sent to the provider alone.")
    organization: str = Field(
        default="", title="Organisation", description="Organisation id, for a key that belongs to several."
    )
    project: str = Field(default="", title="Project", description="Project id, for a key that belongs to several.")
    base_url: str = Field(
        default="",
        title="Base URL",
        description=(
            "Root of another host's API, as https://api.groq.com/openai/v1; https, or http to this machine itself. "
            "Empty for OpenAI's own."
        ),
    )
    service: OpenAIService = Field(
        default="",
        title="Service",
        description=(
            "Which service answers at the base URL, and so which tiers, batches and prices there are: openai, azure, "
            "groq, doubleword, deepinfra, or vllm for a server of your own. Empty goes by the host."
        ),
    )
    max_concurrency: int = Field(
        default=64, ge=1, le=1000, title="Most calls at a time", description="Live calls in flight at most."
    )
    requests_per_minute: float | None = Field(
        default=None,
        gt=0,
        title="Requests per minute",
        description="The account's limit on live requests, if it is known.",
    )
    tokens_per_minute: float | None = Field(
        default=None,
        gt=0,
        title="Tokens per minute",
        description="The account's limit on live tokens, if it is known.",
    )
    enqueued_tokens: int | None = Field(
        default=None,
        gt=0,
        title="Enqueued tokens",
        description=(
            "How many input tokens all unfinished batches of one model may hold together, if the account's limit is "
            "known; batches are then sent in waves that keep below it."
        ),
    )
    account: str = Field(
        default="",
        title="Account name",
        description="Name of the account in the ledger; empty for the one that the provider tells.",
    )

    @property
    def most_enqueued(self) -> int | None:
        """The limit that was told."""
        return self.enqueued_tokens

    @property
    def dialect_name(self) -> Literal["openai", "anthropic"]:
        """OpenAI's protocol."""
        return "openai"

    def answering(self) -> "Service":
        """The service that is named, or that of the base URL's host."""
        from prefect_llm_tiers.providers.services import Dialect, service_at, service_named

        if self.service:
            return service_named(self.service, Dialect.OPENAI)
        return service_at(self.base_url or None, Dialect.OPENAI)

    @property
    def host(self) -> str:
        """OpenAI's own, or the other one."""
        return self.base_url or "api.openai.com"

    def open(self) -> Provider:
        """Open the adapter over the official SDK; see `ProviderBlock.open`."""
        from prefect_llm_tiers.providers.opening import ProviderSpec, open_provider
        from prefect_llm_tiers.providers.services import Dialect

        return open_provider(
            ProviderSpec(
                dialect=Dialect.OPENAI,
                api_key=self.api_key.get_secret_value(),
                organization=self.organization or None,
                project=self.project or None,
                base_url=self.base_url or None,
                account=self.account or None,
                service=self.service or None,
            )
        )


class AnthropicProvider(Block, ProviderBlock):
    """An account at Anthropic.

    Example:
        Load a stored account and use it in a step:
        ```python
        from prefect_llm_tiers import AnthropicProvider

        provider = AnthropicProvider.load("BLOCK_NAME")
        ```
    """

    _block_type_name: ClassVar[str] = "Anthropic LLM Provider"
    _block_type_slug: ClassVar[str] = _SLUGS[1]
    _description: ClassVar[str] = "An account at Anthropic."
    _documentation_url: ClassVar[Any] = _DOCUMENTATION
    _logo_url: ClassVar[Any] = _LOGO
    # A slip in the name of the key's field must not print the key.
    model_config = ConfigDict(hide_input_in_errors=True)
    _strict = model_validator(mode="before")(classmethod(_know_every_field))  # type: ignore[arg-type] # typed for decorators
    _encrypted = field_validator("base_url")(classmethod(_safe_base_url))

    api_key: SecretStr = Field(title="API key", description="The secret key; it is sent to the provider alone.")
    base_url: str = Field(
        default="",
        title="Base URL",
        description="Root of another host's API, https and without /v1; empty for Anthropic's own.",
    )
    max_concurrency: int = Field(
        default=64, ge=1, le=1000, title="Most calls at a time", description="Live calls in flight at most."
    )
    requests_per_minute: float | None = Field(
        default=None,
        gt=0,
        title="Requests per minute",
        description="The account's limit on live requests, if it is known.",
    )
    tokens_per_minute: float | None = Field(
        default=None,
        gt=0,
        title="Tokens per minute",
        description="The account's limit on live tokens, if it is known.",
    )
    account: str = Field(
        default="",
        title="Account name",
        description="Name of the account in the ledger; empty for the one that the provider tells.",
    )

    @property
    def dialect_name(self) -> Literal["openai", "anthropic"]:
        """Anthropic's protocol."""
        return "anthropic"

    def answering(self) -> "Service":
        """Anthropic, also behind another host."""
        from prefect_llm_tiers.providers.services import ANTHROPIC

        return ANTHROPIC

    @property
    def host(self) -> str:
        """Anthropic's own, or the other one."""
        return self.base_url or "api.anthropic.com"

    def open(self) -> Provider:
        """Open the adapter over the official SDK; see `ProviderBlock.open`."""
        from prefect_llm_tiers.providers.opening import ProviderSpec, open_provider
        from prefect_llm_tiers.providers.services import Dialect

        return open_provider(
            ProviderSpec(
                dialect=Dialect.ANTHROPIC,
                api_key=self.api_key.get_secret_value(),
                base_url=self.base_url or None,
                account=self.account or None,
            )
        )


class SimulatedProvider(Block, ProviderBlock):
    """A provider in a box, in simulated time: no key, no network, no bill.

    Steps whose blocks name the same world share one provider and one clock, in which a day passes in a
    moment. A world that was made beforehand, with `simulator.simulation.in_process`, is taken as it is by blocks
    that say nothing else of it. With a base URL it is a served simulator (`prefect-llm-tiers simulate serve`)
    instead, whose clock runs at the speed that the server tells.

    Example:
        Try a flow without a key:
        ```python
        from prefect_llm_tiers import SimulatedProvider

        provider = SimulatedProvider.load("BLOCK_NAME")
        ```
    """

    _block_type_name: ClassVar[str] = "Simulated LLM Provider"
    _block_type_slug: ClassVar[str] = _SLUGS[2]
    _description: ClassVar[str] = "A provider in a box, in simulated time: no key, no network, no bill."
    _documentation_url: ClassVar[Any] = _DOCUMENTATION
    _logo_url: ClassVar[Any] = _LOGO
    # A slip in the name of the key's field must not print the key.
    model_config = ConfigDict(hide_input_in_errors=True)
    _strict = model_validator(mode="before")(classmethod(_know_every_field))  # type: ignore[arg-type] # typed for decorators

    dialect: Literal["openai", "anthropic"] = Field(
        default="openai", title="Dialect", description="Whose protocol it speaks."
    )
    world: str = Field(
        default="default",
        title="World",
        description="Blocks that name the same world share a provider and a clock.",
    )
    seed: int = Field(default=0, title="Seed", description="Changes every draw of the world.")
    batch_median_minutes: float = Field(
        default=20.0,
        gt=0,
        title="Median of a batch (min)",
        description="Median completion time of a batch in minutes.",
    )
    stuck_batches: str = Field(
        default="",
        title="Stuck batches",
        description="Batches that get stuck, as 'anthropic:0': dialect and number from 0, separated by commas.",
    )
    service: PlayedService = Field(
        default="",
        title="Service",
        description=(
            "Which service it plays in OpenAI's dialect: groq, or vllm, which has the standard tier alone. Empty is "
            "OpenAI itself, or what its world was made to play."
        ),
    )
    base_url: str = Field(
        default="", title="Base URL", description="URL of a served simulator; empty for one in this process."
    )
    max_concurrency: int = Field(
        default=64, ge=1, le=1000, title="Most calls at a time", description="Live calls in flight at most."
    )
    requests_per_minute: float | None = Field(
        default=None,
        gt=0,
        title="Requests per minute",
        description="The account's limit on live requests, if it is known.",
    )
    tokens_per_minute: float | None = Field(
        default=None,
        gt=0,
        title="Tokens per minute",
        description="The account's limit on live tokens, if it is known.",
    )
    enqueued_tokens: int | None = Field(
        default=None,
        gt=0,
        title="Enqueued tokens",
        description=(
            "How many input tokens all unfinished batches of one model may hold together, if the account's limit is "
            "known; batches are then sent in waves that keep below it."
        ),
    )

    @property
    def most_enqueued(self) -> int | None:
        """The limit that was told."""
        return self.enqueued_tokens

    @property
    def dialect_name(self) -> Literal["openai", "anthropic"]:
        """The protocol that was chosen."""
        return self.dialect

    def answering(self) -> "Service":
        """The service that the block names, or that its world plays."""
        from prefect_llm_tiers.providers.services import Dialect, service_named

        dialect = Dialect(self.dialect)
        if dialect is Dialect.ANTHROPIC:
            return service_named("anthropic", dialect)
        played = self.service or ("openai" if self.base_url else self.simulation().settings.service)
        return service_named(played, dialect)

    @property
    def host(self) -> str:
        """The served simulator, or the one in this process."""
        return self.base_url or f"simulated world {self.world!r}"

    @field_validator("stuck_batches")
    @classmethod
    def _name_batches(cls, value: str) -> str:
        for name in value.split(","):
            if name.strip() and not _NUMBERED.fullmatch(name.strip()):
                msg = f"{name.strip()!r} names no batch; write dialect and number, as 'openai:0'"
                raise ValueError(msg)
        return value

    def simulation(self) -> "Simulation":
        """Return the world in this process, to read its account.

        Raises:
            ConfigurationError: The block names a served simulator, or the world exists with other settings.
        """
        if self.base_url:
            msg = (
                f"The simulator at {self.base_url} is another process; its account is at "
                f"{self.base_url.rstrip('/')}/_simulator/account."
            )
            raise ConfigurationError(msg)
        from prefect_llm_tiers.simulator.settings import BatchLaw, WorldSettings
        from prefect_llm_tiers.simulator.simulation import in_process

        settings = WorldSettings(
            seed=self.seed,
            batch=BatchLaw(median_s=60 * self.batch_median_minutes),
            stuck_batches=tuple(name.strip() for name in self.stuck_batches.split(",") if name.strip()),
            service=self.service or "openai",
        )
        # Fields that were all left alone say nothing of the world, so one that is there is shared.
        return in_process(self.world, settings if settings != WorldSettings() else None)

    def clock(self) -> Clock:
        """Return the world's clock."""
        if self.base_url:
            from prefect_llm_tiers.simulator.clock import ScaledClock

            return ScaledClock.of_server(self.base_url)
        clock: Clock = self.simulation().clock
        return clock

    def open(self) -> Provider:
        """Open the adapter, over the official SDK, into the simulator; see `ProviderBlock.open`."""
        from prefect_llm_tiers.providers.opening import ProviderSpec, open_provider
        from prefect_llm_tiers.providers.services import Dialect

        root = self.base_url.rstrip("/") or "http://localhost"
        spec = ProviderSpec(
            dialect=Dialect(self.dialect),
            api_key="simulated",
            base_url=f"{root}/v1" if self.dialect == "openai" else root,
            service=self.answering().name,
        )
        return open_provider(spec, app=None if self.base_url else self.simulation().app)


class LedgerDatabase(Block):
    """Where requests, batches and answers are kept: a SQLite file, or a database that machines share.

    Example:
        Load a stored ledger and use it in a step:
        ```python
        from prefect_llm_tiers import LedgerDatabase

        ledger = LedgerDatabase.load("BLOCK_NAME")
        ```
    """

    _block_type_name: ClassVar[str] = "LLM Ledger Database"
    _block_type_slug: ClassVar[str] = _LEDGER_SLUG
    _description: ClassVar[str] = "Where requests, batches and answers are kept, so that nothing is paid for twice."
    _documentation_url: ClassVar[Any] = _DOCUMENTATION
    _logo_url: ClassVar[Any] = _LOGO
    # A slip in the name of the key's field must not print the key.
    model_config = ConfigDict(hide_input_in_errors=True)
    _strict = model_validator(mode="before")(classmethod(_know_every_field))  # type: ignore[arg-type] # typed for decorators

    url: SecretStr = Field(
        title="Location",
        description="Path of a SQLite file, or a SQLAlchemy URL, which may hold a password.",
    )

    def open(self, *, make: bool = True) -> Ledger:
        """Open the ledger, once in this process.

        Args:
            make: Whether a file that is not there is made.

        Raises:
            LedgerUnusable: It cannot be opened.
        """
        return _opened(self.url.get_secret_value(), make=make)


_OPEN: dict[str, Ledger] = {}
_OPENING = threading.Lock()


def _opened(location: str, *, make: bool = True) -> Ledger:
    """Return the process's one connection to a ledger: its writer takes turns among all threads."""
    from prefect_llm_tiers.ledger.opening import open_ledger

    with _OPENING:
        if location not in _OPEN:
            _OPEN[location] = open_ledger(location, make=make)
        return _OPEN[location]


def load_provider(provider: "ProviderBlock | str") -> ProviderBlock:
    """Return a provider's block, loading it by name.

    A name may carry its block type, as `anthropic-llm-provider/prod`; without one, every provider type is
    tried.

    Raises:
        ConfigurationError: There is no such block, several types have one, its fields cannot be read, or it is
            no provider.
    """
    if isinstance(provider, ProviderBlock):
        return provider
    if not isinstance(provider, str):
        msg = f"provider= takes a provider block or the name of one, not {type(provider).__name__}."
        raise ConfigurationError(msg)
    names = [provider] if "/" in provider else [f"{slug}/{provider}" for slug in _SLUGS]
    found = {name: block for name in names if (block := _load(name)) is not None}
    if len(found) > 1:
        msg = (
            f"Several provider blocks are named {provider!r}, and only one can be meant. Name the type too: "
            f"{' or '.join(map(repr, found))}."
        )
        raise ConfigurationError(msg)
    for name, block in found.items():
        if isinstance(block, ProviderBlock):
            return block
        msg = (
            f"Block {name!r} is a {type(block).__name__}, which is no provider. Name an OpenAIProvider, an "
            "AnthropicProvider or a SimulatedProvider."
        )
        raise ConfigurationError(msg)
    msg = (
        f"There is no provider block named {provider!r}. Create one in the Blocks page of the Prefect UI, or with "
        f"OpenAIProvider(api_key=...).save({provider!r}); `prefect block ls` lists those there are."
    )
    raise ConfigurationError(msg)


def stored_providers() -> list[str]:
    """Return the names of all provider blocks that Prefect has, each with its type.

    Raises:
        ConfigurationError: Prefect's API does not answer.
    """
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    names: list[str] = []
    try:
        with get_client(sync_client=True) as client:
            for slug in _SLUGS:
                # A type that was never registered has no blocks.
                with contextlib.suppress(ObjectNotFound):
                    found = client.read_block_documents_by_type(slug, include_secrets=False)
                    names += [f"{slug}/{document.name}" for document in found if document.name]
    except Exception as error:
        msg = (
            f"Prefect's API cannot be asked for provider blocks ({type(error).__name__}). Check PREFECT_API_URL and "
            "that the server runs."
        )
        raise ConfigurationError(msg) from error
    return names


def load_ledger(ledger: LedgerDatabase | str | None, *, make: bool = True) -> Ledger:
    """Return an open ledger: a block's, the one at a path or URL, or the machine's default.

    A stored block may be named with its type: `llm-ledger-database/prod`. A file that is not there is made, or, if
    `make` is false, refused.

    Raises:
        LedgerUnusable: It cannot be opened.
        ConfigurationError: There is no block of that name.
    """
    from prefect_llm_tiers.settings import ledger_location

    if isinstance(ledger, LedgerDatabase):
        return ledger.open(make=make)
    ledger = ledger or ledger_location()
    if ledger.startswith(f"{_LEDGER_SLUG}/"):
        block = _load(ledger)
        if not isinstance(block, LedgerDatabase):
            msg = (
                f"There is no ledger block named {ledger!r}. Create one in the Blocks page of the Prefect UI, or with "
                f"LedgerDatabase(url=...).save({ledger.removeprefix(f'{_LEDGER_SLUG}/')!r})."
            )
            raise ConfigurationError(msg)
        return block.open(make=make)
    return _opened(ledger, make=make)


def block_name(block: object) -> str | None:
    """Return the name that a stored block can be loaded by; None for one that was never saved."""
    name = getattr(block, "_block_document_name", None)
    return f"{block.get_block_type_slug()}/{name}" if isinstance(block, Block) and name else None


def _load(name: str) -> Block | None:
    """Return a stored block; None if there is none of that name."""
    try:
        loaded = Block.load(name, validate=True, _sync=True)  # type: ignore[call-arg]
    except ValueError as error:
        if "Unable to find block document" in str(error):
            return None
        raise ConfigurationError(_unreadable(name, error)) from None
    except RuntimeError as error:
        raise ConfigurationError(_unreadable(name, error)) from None
    return loaded if isinstance(loaded, Block) else None


def _unreadable(name: str, error: Exception) -> str:
    # The field errors stand in the cause; their texts may repeat a secret, so only the places are told, and of an
    # address what is wrong with it, which is said in words of our own.
    errors = getattr(error.__cause__, "errors", None)
    faults = errors(include_url=False, include_input=False) if callable(errors) else []
    fields = ", ".join(sorted({".".join(map(str, fault["loc"])) for fault in faults}))
    where = f": check {fields}" if fields else ""
    told = " ".join(fault["msg"].removeprefix("Value error, ") for fault in faults if fault["loc"] == ("base_url",))
    said = f" {told}" if told else ""
    return f"Block {name!r} cannot be read{where}.{said} Open it in the Blocks page, correct it and save it again."
