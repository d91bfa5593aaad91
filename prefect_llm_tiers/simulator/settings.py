"""What the simulated world is like: laws, limits, faults."""

from typing import Literal

import msgspec

from prefect_llm_tiers.core.tiers import Tier

__all__ = ["BatchLaw", "FlexOutages", "LiveLaw", "WorldSettings"]


class BatchLaw(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long a batch takes, whatever its size: a log-normal with a share of stuck ones.

    Attributes:
        median_s: Median seconds from creation to the last row.
        sigma: Of the log-normal; 0 makes every batch take the median.
        stuck_share: Chance that a batch is stuck instead.
        stuck_s: A stuck batch takes a uniform time in this range of seconds; the provider's window may
            end it before.
        progress: `linear` from a random start in the first half of the time, or `bursty`: one to four
            jumps, the last at the end.
    """

    median_s: float = 1200.0
    sigma: float = 1.0
    stuck_share: float = 0.02
    stuck_s: tuple[float, float] = (6 * 3600.0, 30 * 3600.0)
    progress: Literal["linear", "bursty"] = "linear"


class LiveLaw(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long a live call takes: (base + per token written) times a log-normal factor of median 1."""

    base_s: float = 1.0
    per_token_s: float = 0.01
    sigma: float = 0.3


class FlexOutages(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Flex capacity that comes and goes: exponential times up and down, stationary at the start."""

    mean_up_s: float
    mean_down_s: float


def _live_laws() -> dict[Tier, LiveLaw]:
    return {
        Tier.PRIORITY: LiveLaw(base_s=0.6, per_token_s=0.006, sigma=0.2),
        Tier.STANDARD: LiveLaw(),
        Tier.FLEX: LiveLaw(base_s=2.0, per_token_s=0.02, sigma=0.5),
    }


class WorldSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be said of a simulated provider.

    Every draw is keyed by the seed and by what it is for, never by the order of arrival, so that the
    same questions meet the same world in any order.

    Attributes:
        seed: Changes every draw.
        organization: What the account is called in response headers.
        project: The OpenAI project in response headers.
        batch: Completion law of batches.
        batch_by_model: Laws of single models, which go before `batch`.
        stuck_batches: Batches that are stuck whatever the law draws, as `anthropic:0`: the dialect and
            the number of the batch among those of that dialect, from 0.
        validation_s: Seconds that an OpenAI batch is `validating`.
        finalizing_s: Seconds that an OpenAI batch is `finalizing`.
        window_s: The completion window, after which unfinished rows expire.
        cancel_s: Range of the seconds until a cancel is final; rows still finish meanwhile.
        batch_requests: Most requests in a batch, by dialect.
        batch_bytes: Most bytes of a batch's upload, by dialect.
        enqueued_tokens: Ceiling on the input tokens of one model's unfinished OpenAI batches.
        live: Latency laws of the live tiers; a tier left out keeps its default.
        flex_outages: When flex has no capacity; None when it always has.
        without_flex: Models that are not offered on flex.
        requests_per_minute: Live requests a model takes in a minute; None without a limit.
        tokens_per_minute: Live tokens likewise: input, and output at its allowed maximum.
        enforce_shutdown: Whether a model past its shutdown date is gone; otherwise it still answers.
        cached_input_share: Share of every input that counts as read from the prompt cache.
        error_rate: Chance that a live call ends in a 500, unbilled; drawn for each try.
        batch_row_error_rate: Chance that a batch row ends in the provider's own error, unbilled.
        unparsable_rate: Chance, by body, that a structured answer breaks its schema the first time the
            body is asked; billed.
        refusal_rate: Chance, by body, that the model refuses; billed.
    """

    seed: int = 0
    organization: str = "org-simulated"
    project: str = "proj_simulated"

    batch: BatchLaw = BatchLaw()
    batch_by_model: dict[str, BatchLaw] = {}
    stuck_batches: tuple[str, ...] = ()
    validation_s: float = 5.0
    finalizing_s: float = 5.0
    window_s: float = 24 * 3600.0
    cancel_s: tuple[float, float] = (30.0, 600.0)
    batch_requests: dict[str, int] = msgspec.field(default_factory=lambda: {"openai": 50_000, "anthropic": 100_000})
    batch_bytes: dict[str, int] = msgspec.field(
        default_factory=lambda: {"openai": 200_000_000, "anthropic": 256_000_000}
    )
    enqueued_tokens: int | None = None

    live: dict[Tier, LiveLaw] = msgspec.field(default_factory=_live_laws)
    flex_outages: FlexOutages | None = None
    without_flex: tuple[str, ...] = ()
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    enforce_shutdown: bool = False
    cached_input_share: float = 0.0

    # Faults: each is a chance by name, drawn in `faults.Faults`.
    error_rate: float = 0.0
    batch_row_error_rate: float = 0.0
    unparsable_rate: float = 0.0
    refusal_rate: float = 0.0

    def live_law(self, tier: Tier) -> LiveLaw:
        """Return the latency law of a live tier."""
        return self.live.get(tier) or _live_laws()[tier]
