"""What the plain pieces hand from one to the next: a ticket for what was submitted, counts, answers."""

from decimal import Decimal

import msgspec
from pydantic import BaseModel

from prefect_llm_tiers.core.outcomes import Usage
from prefect_llm_tiers.core.requests import KEY_LENGTH
from prefect_llm_tiers.core.runs import RequestState
from prefect_llm_tiers.core.tiers import Tier

__all__ = ["BatchAnswer", "BatchCounts", "BatchTicket"]


class BatchTicket(msgspec.Struct, frozen=True, kw_only=True):
    """What `submit_batch` returns: where the answers to some prompts will be found.

    A plain value that pickles, so Prefect may persist it. It holds no prompt, no answer and no key of the
    provider's: the requests stand in it as hashes, in the order of the prompts.

    Attributes:
        step_run_id: The step run in the ledger that the prompts belong to.
        batches: Numbers of the batches that carry them, in the ledger; those of other runs that were joined are
            among them. Empty where everything was answered before.
        count: How many prompts there are.
        provider: Name of the provider's block; None for a block that was never saved.
        ledger: Where the ledger is; None for one that is known to this process alone.
        ledger_id: Which ledger it is.
        account: Organisation and project that own what was asked.
        model: The model that was asked.
        output: The pydantic model that answers are instances of; None for text.
        flow_run_id: The run it was submitted in; None outside any.
        step: Name of the task that submitted it.
        requests: The hashes, end to end.
    """

    step_run_id: str
    batches: tuple[int, ...]
    count: int
    provider: str | None
    ledger: str | None
    ledger_id: str
    account: str
    model: str
    output: type[BaseModel] | None
    flow_run_id: str | None
    step: str
    requests: bytes

    def __repr__(self) -> str:
        batches = ", ".join(map(str, self.batches)) or "none"
        return f"BatchTicket({self.count:,} prompts to {self.model}; batches {batches}; step run {self.step_run_id})"

    def keys(self, start: int, stop: int) -> list[str]:
        """Return the requests of some prompts, in order."""
        part = self.requests[start * KEY_LENGTH : stop * KEY_LENGTH].decode()
        return [part[at : at + KEY_LENGTH] for at in range(0, len(part), KEY_LENGTH)]


class BatchCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Where the prompts of a ticket stand; prompts that ask the same each count.

    Attributes:
        answered: With an answer.
        refused: The model declined.
        failed: The provider will not answer it.
        unanswered: Came back without an answer, as from a batch that expired: submit the same prompts again.
        out: Still in a batch.
    """

    answered: int = 0
    refused: int = 0
    failed: int = 0
    unanswered: int = 0
    out: int = 0

    @property
    def done(self) -> bool:
        """Whether nothing is out any more."""
        return not self.out


class BatchAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one prompt.

    Attributes:
        state: `answered`, `refused`, `failed`, `open` (came back without an answer: submit it again), or `out`.
        text: The answer as the model wrote it; None without one.
        parsed: The answer as an instance of the ticket's pydantic model; None without one.
        refusal: What the model said in the place of an answer.
        reason: Why there is no usable answer, as `batch_expired` or `unparsable: missing at topic`.
        tier: The tier that the provider served it in.
        usage: Tokens; None where nothing was served.
        cost_usd: What it cost; None where it has no known price.
        fresh: Whether this run paid for it; False for one that was there before.
    """

    state: RequestState
    text: str | None = None
    parsed: BaseModel | None = None
    refusal: str | None = None
    reason: str | None = None
    tier: Tier | None = None
    usage: Usage | None = None
    cost_usd: Decimal | None = None
    fresh: bool = False
