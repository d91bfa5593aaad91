"""What a step is told: whom it asks, how, and by when."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from decimal import Decimal, InvalidOperation
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
    from prefect_llm_tiers.providers.services import Service

__all__ = ["OPTION_NAMES", "StepOptions", "Terms", "terms_of"]

DEFAULT_OUTPUT_TOKENS = 256.0
"""Expected tokens of an answer where a step says nothing; half of `max_output_tokens` where it does."""

_LEAST = {
    "samples": 1,
    "max_attempts": 1,
    "max_failed": 0,
    "max_concurrency": 1,
    "max_output_tokens": 1,
    "expected_output_tokens": 0,
    "min_saving_usd": 0,
}

_COUNTED = frozenset(_LEAST) - {"expected_output_tokens", "min_saving_usd"}

_TEXTS = ("column", "system", "run_key", "endpoint")

_WORDLESS = frozenset(
    {Endpoint.EMBEDDINGS, Endpoint.MODERATIONS, Endpoint.IMAGES, Endpoint.IMAGE_EDITS, Endpoint.VIDEOS}
)
"""Endpoints whose answers are no text that a model writes, so that they are paid for without output tokens."""

_SCHEMAS = frozenset({Endpoint.RESPONSES, Endpoint.CHAT_COMPLETIONS, Endpoint.MESSAGES})
"""Endpoints that hold an answer to a schema."""


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
    keep_batches: bool | None = None
    ledger: LedgerDatabase | str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            msg = f"model={self.model!r} names no model. Give the provider's id of one, as 'gpt-6-luna'."
            raise ConfigurationError(msg)
        if self.output is not None and not (isinstance(self.output, type) and issubclass(self.output, BaseModel)):
            msg = f"output= takes a pydantic model's class, not {self.output!r}. Leave it out for text."
            raise ConfigurationError(msg)
        for name in _TEXTS:
            _check_text(name, getattr(self, name))
        check_due(self.deadline, "deadline")
        for name in ("infeasible", "on_miss", "on_input_change"):
            check_choice(name, getattr(self, name))
        object.__setattr__(self, "tiers", _tiers_of(self.tiers))
        object.__setattr__(self, "min_saving_usd", _usd("min_saving_usd", self.min_saving_usd))
        _check_number("on_time", self.on_time)
        check_on_time(self.on_time)
        for name, least in _LEAST.items():
            _check_number(name, getattr(self, name), least=least, whole=name in _COUNTED)
        _check_age("reuse_for", self.reuse_for)
        _check_embedding(self)

    @property
    def output_tokens(self) -> float:
        """Tokens that an answer is expected to take."""
        if self.expected_output_tokens is not None:
            return self.expected_output_tokens
        if _named(self.endpoint) in _WORDLESS:
            return 0.0
        most = self.max_output_tokens
        return most / 2 if most is not None else DEFAULT_OUTPUT_TOKENS

    def reader(self) -> "TextOutput":
        """Return what reads the answers. Raises `SchemaUnsupported`."""
        from prefect_llm_tiers.frames.output import output_of
        from prefect_llm_tiers.frames.vectors import VectorOutput

        if _named(self.endpoint) is Endpoint.EMBEDDINGS:
            return VectorOutput(self.options.get("dimensions"))
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
        """Return a model's strict schema in the provider's words; None where the provider takes none.

        The raw endpoints take none: there the model reads the reply's body.

        Raises:
            SchemaUnsupported: The provider cannot express the model.
        """
        if self.endpoint not in _SCHEMAS:
            return None
        from prefect_llm_tiers.providers.capabilities import Dialect
        from prefect_llm_tiers.providers.schemas import output_schema

        return output_schema(model, Dialect(self.block.dialect_name)) if model is not None else None


def terms_of(options: StepOptions, step: str) -> Terms:
    """Return what a step's options come to; a block that is named is looked up with Prefect.

    Raises:
        ConfigurationError: There is no such block, endpoint, or none of the allowed tiers is offered.
    """
    from prefect_llm_tiers.providers.capabilities import capabilities_of

    block = load_provider(options.provider)
    service = block.answering()
    endpoint = _endpoint(options, service, step)
    capabilities = capabilities_of(service.name, options.model, endpoint)
    return Terms(block=block, endpoint=endpoint, capabilities=capabilities, tiers=_tiers(options, capabilities, step))


def _endpoint(options: StepOptions, service: "Service", step: str) -> Endpoint:
    named = options.endpoint
    if named is None:
        from prefect_llm_tiers.providers.capabilities import default_endpoint

        return default_endpoint(service, options.model)
    if (endpoint := _named(named)) is not None:
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


def _named(name: str | None) -> Endpoint | None:
    """Return the endpoint of a name, as `embeddings`; None for one that nobody knows."""
    path = name.removeprefix("/").removeprefix("v1/") if name is not None else None
    return next((endpoint for endpoint in Endpoint if endpoint.removeprefix("/v1/") == path), None)


def _tier(name: object) -> Tier:
    try:
        return Tier(name)  # type: ignore[arg-type]  # whatever it is, it is none
    except ValueError:
        msg = f"There is no tier {name!r}. Choose among {', '.join(repr(str(tier)) for tier in Tier)}."
        raise ConfigurationError(msg) from None


def _tiers_of(given: object) -> tuple[Tier, ...] | None:
    if given is None:
        return None
    # A name alone would be taken for its letters.
    names = (given,) if isinstance(given, str) else given
    if not isinstance(names, Iterable):
        msg = f"tiers={given!r} is no list of tiers. Give a list, as ['batch', 'standard'], or leave it out for all."
        raise ConfigurationError(msg)
    tiers = tuple(_tier(name) for name in names)
    if not tiers:
        msg = (
            f"tiers={given!r} allows no tier, so nothing could be asked. Name at least one, as ['batch'], or leave it "
            "out for all that the provider offers."
        )
        raise ConfigurationError(msg)
    return tiers


def _check_text(name: str, value: object) -> None:
    if value is not None and (not isinstance(value, str) or not value):
        what = "is empty" if isinstance(value, str) else f"is of type {type(value).__name__}"
        msg = f"{name}= {what}, and takes a text. Give a text, or leave it out."
        raise ConfigurationError(msg)


def _check_number(name: str, value: object, *, least: float | None = None, whole: bool = False) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        msg = f"{name}={value!r} is no number. Give {least if least is not None else 'a number'} or more."
        raise ConfigurationError(msg)
    if whole and not isinstance(value, int):
        msg = f"{name}={value} is no whole number, and what it counts has no halves. Give {least}, or any above."
        raise ConfigurationError(msg)
    # Also of NaN, which no comparison holds for.
    if least is not None and not value >= least:
        msg = f"{name}={value} makes no sense. Give {least} or more."
        raise ConfigurationError(msg)


def _usd(name: str, value: object) -> Decimal:
    try:
        return Decimal(str(value))
    except InvalidOperation:
        msg = f"{name}={value!r} is no sum of money. Give US dollars as a number, as 0.5."
        raise ConfigurationError(msg) from None


def _check_age(name: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, timedelta):
        msg = (
            f"{name}={value!r} has no unit, so nobody knows how long it is. Give a timedelta, as timedelta(days=30), "
            "or None to reuse nothing."
        )
        raise ConfigurationError(msg)
    if value <= timedelta(0):
        msg = f"{name}={value} is no age. Give a positive timedelta, or None to reuse nothing."
        raise ConfigurationError(msg)


def _check_embedding(options: StepOptions) -> None:
    """Check what a step that embeds cannot be told: its answers are vectors, the same each time."""
    if _named(options.endpoint) is not Endpoint.EMBEDDINGS:
        return
    idle = [
        f"{name}="
        for name in ("output", "system", "max_output_tokens", "expected_output_tokens")
        if getattr(options, name) is not None
    ]
    if idle:
        msg = (
            f"A step at 'embeddings' has no use for {', '.join(idle)}: its answers are vectors, and nothing is "
            "written. Leave them out."
        )
        raise ConfigurationError(msg)
    if options.samples != 1:
        msg = (
            f"samples={options.samples} at 'embeddings' would pay {options.samples} times for one vector: the same "
            "text gives the same. Leave samples= out."
        )
        raise ConfigurationError(msg)
    dimensions = options.options.get("dimensions")
    if dimensions is not None and (isinstance(dimensions, bool) or not isinstance(dimensions, int) or dimensions < 1):
        msg = f"options={{'dimensions': {dimensions!r}}} is no length of a vector. Give a whole number from 1 on."
        raise ConfigurationError(msg)
