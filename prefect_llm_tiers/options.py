"""What a step is told: whom it asks, how, and by when."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from prefect_llm_tiers.blocks import LedgerDatabase, ProviderBlock, load_provider
from prefect_llm_tiers.core.ports import Capabilities
from prefect_llm_tiers.core.requests import Endpoint
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.due import Due, check_choice, check_due, check_on_time
from prefect_llm_tiers.errors import ConfigurationError

if TYPE_CHECKING:
    from prefect_llm_tiers.frames.output import TextOutput
    from prefect_llm_tiers.providers.schemas import OutputSchema

__all__ = ["OPTION_NAMES", "StepOptions", "Terms", "terms_of"]

DEFAULT_OUTPUT_TOKENS = 256.0
"""Expected tokens of an answer where a step says nothing; half of `max_output_tokens` where it does."""

_DEFAULT_ENDPOINT: Mapping[str, Endpoint] = {"openai": Endpoint.RESPONSES, "anthropic": Endpoint.MESSAGES}

_LEAST = {
    "samples": 1,
    "max_attempts": 1,
    "max_failed": 0,
    "max_concurrency": 1,
    "max_output_tokens": 1,
    "expected_output_tokens": 1,
    "min_saving_usd": 0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOptions:
    """What a step asks, whom, and by when; `llm_step` tells what each means.

    Raises:
        ConfigurationError: A value cannot work.
    """

    provider: ProviderBlock | str
    model: str
    endpoint: str | None = None
    output: type[BaseModel] | None = None
    column: str | None = None
    overwrite: bool = False
    meta: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)
    system: str | None = None
    max_output_tokens: int | None = None
    expected_output_tokens: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    samples: int = 1
    deadline: Due | None = None
    on_time: float = 0.99
    infeasible: Literal["raise", "best_effort"] = "raise"
    on_miss: Literal["finish", "raise"] = "finish"
    tiers: tuple[Tier, ...] | None = None
    interactive: bool = False
    min_saving_usd: Decimal = Decimal(0)
    max_failed: int = 0
    max_attempts: int = 3
    max_concurrency: int | None = None
    reuse_for: timedelta | None = timedelta(days=30)
    on_input_change: Literal["raise", "ask"] = "raise"
    run_key: str | None = None
    ledger: LedgerDatabase | str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            msg = f"model={self.model!r} names no model. Give the provider's id of one, as 'gpt-6-luna'."
            raise ConfigurationError(msg)
        if self.output is not None and not (isinstance(self.output, type) and issubclass(self.output, BaseModel)):
            msg = f"output= takes a pydantic model's class, not {self.output!r}. Leave it out for text."
            raise ConfigurationError(msg)
        check_due(self.deadline, "deadline")
        check_on_time(self.on_time)
        for name in ("infeasible", "on_miss", "on_input_change"):
            check_choice(name, getattr(self, name))
        if self.tiers is not None:
            # A name alone would be taken for its letters.
            names = (self.tiers,) if isinstance(self.tiers, str) else self.tiers
            object.__setattr__(self, "tiers", tuple(_tier(name) for name in names))
        object.__setattr__(self, "min_saving_usd", Decimal(str(self.min_saving_usd)))
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                msg = f"{name}={value} makes no sense. Give {least} or more."
                raise ConfigurationError(msg)
        if self.reuse_for is not None and self.reuse_for <= timedelta(0):
            msg = f"reuse_for={self.reuse_for} is no age. Give a positive timedelta, or None to reuse nothing."
            raise ConfigurationError(msg)

    @property
    def output_tokens(self) -> float:
        """Tokens that an answer is expected to take."""
        if self.expected_output_tokens is not None:
            return self.expected_output_tokens
        most = self.max_output_tokens
        return most / 2 if most is not None else DEFAULT_OUTPUT_TOKENS

    def reader(self) -> "TextOutput":
        """Return what reads the answers. Raises `SchemaUnsupported`."""
        from prefect_llm_tiers.frames.output import output_of

        return output_of(self.output)


OPTION_NAMES = frozenset(option.name for option in fields(StepOptions))


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a step's options come to with its provider.

    Attributes:
        block: Whom it asks.
        endpoint: The path.
        capabilities: What the provider offers there for the model.
        tiers: The tiers that may be used, cut down to what is offered.
    """

    block: ProviderBlock
    endpoint: Endpoint
    capabilities: Capabilities
    tiers: tuple[Tier, ...]

    def schema(self, model: type[BaseModel] | None) -> "OutputSchema | None":
        """Return a model's strict schema in the provider's words. Raises `SchemaUnsupported`."""
        from prefect_llm_tiers.providers.capabilities import Dialect
        from prefect_llm_tiers.providers.schemas import output_schema

        return output_schema(model, Dialect(self.block.dialect_name)) if model is not None else None


def terms_of(options: StepOptions, step: str) -> Terms:
    """Return what a step's options come to; a block that is named is looked up with Prefect.

    Raises:
        ConfigurationError: There is no such block, endpoint, or none of the allowed tiers is offered.
    """
    from prefect_llm_tiers.providers.capabilities import Dialect, capabilities_of

    block = load_provider(options.provider)
    endpoint = _endpoint(options, block, step)
    capabilities = capabilities_of(Dialect(block.dialect_name), options.model, endpoint)
    return Terms(block=block, endpoint=endpoint, capabilities=capabilities, tiers=_tiers(options, capabilities, step))


def _endpoint(options: StepOptions, block: ProviderBlock, step: str) -> Endpoint:
    named = options.endpoint
    if named is None:
        return _DEFAULT_ENDPOINT[block.dialect_name]
    for endpoint in Endpoint:
        if named.removeprefix("/").removeprefix("v1/") == endpoint.removeprefix("/v1/"):
            return endpoint
    msg = (
        f"Step {step!r} names the endpoint {named!r}. Choose one of "
        f"{', '.join(repr(endpoint.removeprefix('/v1/')) for endpoint in Endpoint)}."
    )
    raise ConfigurationError(msg)


def _tiers(options: StepOptions, capabilities: Capabilities, step: str) -> tuple[Tier, ...]:
    wanted = tuple(Tier) if options.tiers is None else options.tiers
    tiers = tuple(
        tier for tier in wanted if tier in capabilities.tiers and not (tier is Tier.BATCH and options.interactive)
    )
    if not tiers:
        offered = ", ".join(sorted(capabilities.tiers))
        interactive = ", and interactive=True rules batch out" if options.interactive else ""
        msg = (
            f"Step {step!r} may use {', '.join(wanted) or 'no tier'}{interactive}; {options.model!r} is offered in "
            f"{offered}. Allow one of these in tiers=."
        )
        raise ConfigurationError(msg)
    return tiers


def _tier(name: str) -> Tier:
    try:
        return Tier(name)
    except ValueError:
        msg = f"There is no tier {name!r}. Choose among {', '.join(repr(str(tier)) for tier in Tier)}."
        raise ConfigurationError(msg) from None
