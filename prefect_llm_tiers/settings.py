"""Defaults for a machine, from Prefect's own sources: environment, `.env`, `prefect.toml`, profiles."""

from pathlib import Path
from typing import ClassVar

from prefect.settings import get_current_settings
from prefect.settings.base import PrefectBaseSettings, build_settings_config
from pydantic import Field
from pydantic_settings import SettingsConfigDict

__all__ = ["LLMTiersSettings", "keeps_batches", "ledger_location"]


class LLMTiersSettings(PrefectBaseSettings):
    """Settings of this package.

    Each is read from `PREFECT_INTEGRATIONS_LLM_TIERS_<NAME>` or from the table
    `[integrations.llm_tiers]` of `prefect.toml`.
    """

    model_config: ClassVar[SettingsConfigDict] = build_settings_config(("integrations", "llm_tiers"))

    ledger: str | None = Field(
        default=None,
        description="Path or SQLAlchemy URL of the ledger where a step names none; "
        "by default a SQLite file in Prefect's home folder.",
    )
    keep_batches: bool = Field(
        default=False,
        description="Whether the batches of a cancelled flow run stay out where a step does not say; "
        "by default they are cancelled.",
    )


def ledger_location() -> str:
    """Return where the ledger is that steps use unless they name another."""
    return LLMTiersSettings().ledger or str(Path(get_current_settings().home) / "llm-tiers" / "ledger.db")


def keeps_batches(given: bool | None) -> bool:  # noqa: FBT001 (its only argument)
    """Return whether a cancelled run leaves its batches out: what a step says, or the machine's setting."""
    return given if given is not None else LLMTiersSettings().keep_batches
