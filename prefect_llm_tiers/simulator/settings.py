"""What the simulated world is like: laws, limits, faults."""

import re
from typing import Literal

import msgspec

from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.simulator.faults import Chance, Faults, Span, check_at_least, check_chance, check_span

__all__ = ["BatchLaw", "FlexOutages", "LiveLaw", "WorldSettings", "all_faults"]


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
    stuck_share: Chance = 0.02
    stuck_s: Span = (6 * 3600.0, 30 * 3600.0)
    progress: Literal["linear", "bursty"] = "linear"

    def __post_init__(self) -> None:
        """Check every number.

        Raises:
            ValueError: One is out of its range.
        """
        check_at_least("median_s", self.median_s, 0, above=True)
        check_at_least("sigma", self.sigma, 0)
        check_chance("stuck_share", self.stuck_share)
        check_span("stuck_s", self.stuck_s)


class LiveLaw(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long a live call takes: (base + per token written) times a log-normal factor of median 1."""

    base_s: float = 1.0
    per_token_s: float = 0.01
    sigma: float = 0.3

    def __post_init__(self) -> None:
        """Check every number.

        Raises:
            ValueError: One is out of its range.
        """
        for name in self.__struct_fields__:
            check_at_least(name, getattr(self, name), 0)


class FlexOutages(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Flex capacity that comes and goes: exponential times up and down, stationary at the start."""

    mean_up_s: float
    mean_down_s: float

    def __post_init__(self) -> None:
        """Check both.

        Raises:
            ValueError: One is not above 0.
        """
        check_at_least("mean_up_s", self.mean_up_s, 0, above=True)
        check_at_least("mean_down_s", self.mean_down_s, 0, above=True)


_DIALECTS = ("openai", "anthropic")
_MOST_REQUESTS = {"openai": 50_000, "anthropic": 100_000}
_MOST_BYTES = {"openai": 200_000_000, "anthropic": 256_000_000}
_NUMBERED = re.compile(r"(openai|anthropic):\d+")


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
        service: Which service OpenAI's dialect plays; each has models of its own. `groq` names tiers otherwise and says
            498 where flex has no room; `vllm` refuses `service_tier` and has no batches. Neither names the account.
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
        batch_inputs: Most texts to embed in an OpenAI batch.
        enqueued_tokens: Ceiling on the input tokens of one model's unfinished OpenAI batches.
        live: Latency laws of the live tiers; a tier left out keeps its default.
        flex_outages: When flex has no capacity; None when it always has.
        without_flex: Models that are not offered on flex.
        requests_per_minute: Live requests a model takes in a minute; None without a limit.
        tokens_per_minute: Live tokens likewise: input, and output at its allowed maximum.
        enforce_shutdown: Whether a model past its shutdown date is gone; otherwise it still answers.
        cached_input_share: Share of every input that counts as read from the prompt cache.
        faults: What goes wrong, by name, beside the next four.
        error_rate: Chance that a live call ends in a 500, unbilled; drawn for each try.
        batch_row_error_rate: Chance that a batch row ends in the provider's own error, unbilled.
        unparsable_rate: Chance, by body, that a structured answer breaks its schema the first time the
            body is asked; billed.
        refusal_rate: Chance, by body, that the model refuses; billed.
    """

    seed: int = 0
    service: Literal["openai", "groq", "vllm"] = "openai"
    organization: str = "org-simulated"
    project: str = "proj_simulated"

    batch: BatchLaw = BatchLaw()
    batch_by_model: dict[str, BatchLaw] = {}
    stuck_batches: tuple[str, ...] = ()
    validation_s: float = 5.0
    finalizing_s: float = 5.0
    window_s: float = 24 * 3600.0
    cancel_s: Span = (30.0, 600.0)
    batch_requests: dict[str, int] = msgspec.field(default_factory=lambda: dict(_MOST_REQUESTS))
    batch_bytes: dict[str, int] = msgspec.field(default_factory=lambda: dict(_MOST_BYTES))
    batch_inputs: int = 50_000
    enqueued_tokens: int | None = None

    live: dict[Tier, LiveLaw] = msgspec.field(default_factory=_live_laws)
    flex_outages: FlexOutages | None = None
    without_flex: tuple[str, ...] = ()
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    enforce_shutdown: bool = False
    cached_input_share: Chance = 0.0

    faults: Faults = Faults()
    error_rate: Chance = 0.0
    batch_row_error_rate: Chance = 0.0
    unparsable_rate: Chance = 0.0
    refusal_rate: Chance = 0.0

    def __post_init__(self) -> None:
        """Check every number and name, so that a slip is told where it was made.

        Raises:
            ValueError: One is out of its range, or of another form.
        """
        for name in ("error_rate", "batch_row_error_rate", "unparsable_rate", "refusal_rate", "cached_input_share"):
            check_chance(name, getattr(self, name))
        for name in ("validation_s", "finalizing_s"):
            check_at_least(name, getattr(self, name), 0)
        check_at_least("window_s", self.window_s, 0, above=True)
        check_span("cancel_s", self.cancel_s)
        check_at_least("batch_inputs", self.batch_inputs, 1)
        for name in ("enqueued_tokens", "requests_per_minute", "tokens_per_minute"):
            if (limit := getattr(self, name)) is not None:
                check_at_least(name, limit, 1)
        for name in ("batch_requests", "batch_bytes"):
            for dialect, limit in getattr(self, name).items():
                if dialect not in _DIALECTS:
                    raise ValueError(f"{name} names '{dialect}'; the dialects are {' and '.join(_DIALECTS)}")
                check_at_least(f"{name}.{dialect}", limit, 1)
        if isinstance(self.stuck_batches, str):
            # No TypeError: msgspec makes an error of its own from a ValueError, and lets others through.
            raise ValueError(f"stuck_batches is '{self.stuck_batches}'; give a list, as ['openai:0']")  # noqa: TRY004
        for stuck in self.stuck_batches:
            if not _NUMBERED.fullmatch(stuck):
                raise ValueError(
                    f"stuck_batches holds '{stuck}'; name a dialect and the number of its batch, from 0, as 'openai:0'"
                )

    def most_requests(self, dialect: str) -> int:
        """Return how many requests a batch of a dialect may hold."""
        return self.batch_requests.get(dialect, _MOST_REQUESTS[dialect])

    def most_bytes(self, dialect: str) -> int:
        """Return how many bytes a batch of a dialect may have."""
        return self.batch_bytes.get(dialect, _MOST_BYTES[dialect])

    def live_law(self, tier: Tier) -> LiveLaw:
        """Return the latency law of a live tier."""
        return self.live.get(tier) or _live_laws()[tier]


def all_faults(seed: int, rate: float) -> WorldSettings:
    """Return a world in which everything that can go wrong does, each thing at the same chance.

    For soak tests. Lines have sixteen faults of their own and calls ten, so a rate of 0.005 is bad and 0.02 dreadful.

    Args:
        seed: Changes every draw.
        rate: The chance of each fault at each occasion.
    """
    return WorldSettings(
        seed=seed,
        flex_outages=FlexOutages(mean_up_s=3600.0, mean_down_s=600.0),
        faults=Faults.all(rate),
        error_rate=rate,
        batch_row_error_rate=rate,
        unparsable_rate=rate,
        refusal_rate=rate,
    )
