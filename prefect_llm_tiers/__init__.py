"""Prefect steps that ask a language model about every row, in the cheapest tier that meets the deadline.

The public names are loaded when they are first used: `import prefect_llm_tiers` alone loads no SDK, no
polars, no SQLAlchemy and nothing of Prefect, because command lines and schedulers import packages that
they may never use.
"""

from importlib import import_module

# Type checkers know the name. Importing it from typing would be four fifths of what this import costs.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from prefect_llm_tiers.blocks import (
        AnthropicProvider,
        LedgerDatabase,
        OpenAIProvider,
        SimulatedProvider,
    )
    from prefect_llm_tiers.calls import Complete, complete
    from prefect_llm_tiers.chain import Chain, by
    from prefect_llm_tiers.core.images import Image
    from prefect_llm_tiers.core.tiers import Tier
    from prefect_llm_tiers.errors import (
        AccountChanged,
        AnswerRefused,
        ColumnExists,
        ConfigurationError,
        CredentialsRejected,
        DeadlineInfeasible,
        DeadlineMissed,
        IllegalTransition,
        InputChanged,
        InputError,
        LeaseLost,
        LedgerError,
        LedgerUnusable,
        LLMTiersError,
        MissingColumns,
        NoAnswer,
        PlanError,
        ProviderError,
        ProviderUnavailable,
        QuotaExhausted,
        RateLimited,
        RequestRejected,
        RowsFailed,
        RunForgotten,
        SchemaUnsupported,
        SubmissionUnknown,
        UnknownModel,
    )
    from prefect_llm_tiers.step import LLMStep, llm_step
    from prefect_llm_tiers.tasks import collect_batch, submit_batch, wait_for_batch
    from prefect_llm_tiers.tickets import BatchAnswer, BatchCounts, BatchTicket

    __version__: str

__all__ = [
    "AccountChanged",
    "AnswerRefused",
    "AnthropicProvider",
    "BatchAnswer",
    "BatchCounts",
    "BatchTicket",
    "Chain",
    "ColumnExists",
    "Complete",
    "ConfigurationError",
    "CredentialsRejected",
    "DeadlineInfeasible",
    "DeadlineMissed",
    "IllegalTransition",
    "Image",
    "InputChanged",
    "InputError",
    "LLMStep",
    "LLMTiersError",
    "LeaseLost",
    "LedgerDatabase",
    "LedgerError",
    "LedgerUnusable",
    "MissingColumns",
    "NoAnswer",
    "OpenAIProvider",
    "PlanError",
    "ProviderError",
    "ProviderUnavailable",
    "QuotaExhausted",
    "RateLimited",
    "RequestRejected",
    "RowsFailed",
    "RunForgotten",
    "SchemaUnsupported",
    "SimulatedProvider",
    "SubmissionUnknown",
    "Tier",
    "UnknownModel",
    "__version__",
    "by",
    "collect_batch",
    "complete",
    "llm_step",
    "submit_batch",
    "wait_for_batch",
]

_HOMES = {
    "AnthropicProvider": "blocks",
    "BatchAnswer": "tickets",
    "BatchCounts": "tickets",
    "BatchTicket": "tickets",
    "Chain": "chain",
    "Complete": "calls",
    "Image": "core.images",
    "LLMStep": "step",
    "LedgerDatabase": "blocks",
    "OpenAIProvider": "blocks",
    "SimulatedProvider": "blocks",
    "Tier": "core.tiers",
    "by": "chain",
    "collect_batch": "tasks",
    "complete": "calls",
    "llm_step": "step",
    "submit_batch": "tasks",
    "wait_for_batch": "tasks",
}
"""The module of each public name; one that is not here is an error's."""


def __getattr__(name: str) -> object:
    """Load a public name from its module, once.

    Raises:
        AttributeError: There is no such name; for `__version__`, the package is not installed.
    """
    if name not in __all__:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message, name=name)
    value = _installed_version() if name == "__version__" else _load(name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Name what is loaded and what can be."""
    return sorted({*globals(), *__all__})


def _load(name: str) -> object:
    home = import_module(f"{__name__}.{_HOMES.get(name, 'errors')}")
    value: object = getattr(home, name)
    return value


def _installed_version() -> str:
    # Not at the top: reading the installed distributions costs as much as all the rest of this import.
    from importlib import metadata

    try:
        return metadata.version("prefect-llm-tiers")
    except metadata.PackageNotFoundError as error:
        message = "prefect-llm-tiers is imported from a folder and not installed: pip install -e ."
        raise AttributeError(message, name="__version__") from error
