"""One reading of a batch's result files: what each line is worth, and what was odd about them."""

from collections.abc import Collection

import msgspec

from prefect_llm_tiers.core.batches import Batch, BatchCounts
from prefect_llm_tiers.core.outcomes import Billing, Outcome, OutcomeKind
from prefect_llm_tiers.core.ports import ResultLine
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.engine.pricing import Pricing

__all__ = ["Reading"]


class Reading:
    """Tells lines that count from those that do not: the first answer to a request stands, whatever follows.

    A line with a text counts at once. One without (an error, an expiry, a line that broke off) waits for the end
    of the files: written down, it would stand in the way of an answer further down, or in the files as they are
    at the next reading. So it is the keys of a batch that are held, and never its answers.

    Attributes:
        unknown: Lines that name no request of this batch.
        unreadable: Lines that name nothing.
        broken: Lines that name a request and tell nothing else.
        repeated: Further lines for a request that has a text.
        contradicting: Those of them that say something else than the first one did. What the second one cost, if it
            cost anything, only the invoice knows.
    """

    def __init__(self, batch: Batch, tokens: Collection[str]) -> None:
        """Begin to read.

        Args:
            batch: The batch.
            tokens: What its submissions have marked their ids with.
        """
        self._marks = tuple(f"-{token}" for token in tokens)
        pricing = Pricing(
            provider=batch.provider,
            model=batch.model,
            tier_asked=Tier.BATCH,
            at=batch.submitted_at or batch.created_at,
        )
        # Bound once: it runs for every line.
        self._priced = pricing.priced
        # With a hash of what was said: two texts of a request are compared without keeping either.
        self._said: dict[str, int] = {}
        self._failed: set[str] = set()
        self._held: dict[str, Outcome] = {}
        self._not_asked = 0
        self.unknown = self.unreadable = self.broken = self.repeated = self.contradicting = 0

    def take(self, line: ResultLine) -> Outcome | None:
        """Return the outcome that a line has to be written down with now, priced; None where there is none yet."""
        outcome = line.outcome
        if outcome is None or line.custom_id is None or not line.custom_id.endswith(self._marks):
            if line.custom_id is None:
                self.unreadable += 1
            else:
                self.unknown += 1
            return None
        text = outcome.text
        if text is None:
            self._hold(outcome)
            return None
        said, heard = self._said, hash(text)
        known = len(said)
        first = said.setdefault(outcome.key, heard)
        if len(said) == known:
            self.repeated += 1
            self.contradicting += first != heard
            return None
        if outcome.kind is _FAILURE:
            self._failed.add(outcome.key)
        return self._priced(outcome)

    def _hold(self, outcome: Outcome) -> None:
        if outcome.kind is OutcomeKind.RETRY and outcome.billing is Billing.UNKNOWN:
            self.broken += 1
        before = self._held.get(outcome.key)
        if before is None or (before.kind is OutcomeKind.RETRY and outcome.kind is not OutcomeKind.RETRY):
            self._held[outcome.key] = outcome

    def rest(self) -> list[Outcome]:
        """Return the outcomes of the requests that no line with a text answers, priced where they were billed."""
        return [
            # Where nothing was billed, nothing is said of the row.
            msgspec.structs.replace(outcome, counted=False)
            if outcome.kind is OutcomeKind.RETRY and outcome.billing is not Billing.BILLED
            else self._priced(outcome)
            for outcome in self._left()
        ]

    def not_asked(self, number: int) -> None:
        """Take note of outcomes for keys that the batch does not have, though they bear its mark."""
        self.unknown += number
        self._not_asked += number

    def came(self, counts: BatchCounts) -> int:
        """Return how many of the requests that the provider counts as completed are here."""
        left = self._left()
        billed = sum(outcome.billing is Billing.BILLED for outcome in left)
        refused = sum(o.kind is not OutcomeKind.RETRY and o.billing is not Billing.BILLED for o in left)
        return len(self._said) - self._not_asked + billed + max(refused - counts.failed, 0)

    def kept(self) -> int:
        """Return how many requests were answered or refused."""
        refused = sum(outcome.kind is OutcomeKind.REFUSAL for outcome in self._left())
        return len(self._said) - self._not_asked - len(self._failed) + refused

    def failed(self) -> int:
        """Return how many requests failed for good."""
        return len(self._failed) + sum(outcome.kind is OutcomeKind.FAILURE for outcome in self._left())

    def names(self, key: str) -> bool:
        """Return whether a line of the files is on a request."""
        return key in self._said or key in self._held

    def oddities(self) -> str | None:
        """Return what was odd about the lines, in words and without any of theirs; None where nothing was."""
        told = (
            (self.unknown, "answer none of its requests"),
            (self.unreadable, "name no request"),
            (self.broken, "are broken behind their id"),
            (self.repeated, "come after an answer to the same request"),
            (self.contradicting, "of these say something else than the first one, which stands"),
        )
        parts = [f"{number:,} {what}" for number, what in told if number]
        return "; ".join(parts) or None

    def _left(self) -> list[Outcome]:
        return [outcome for key, outcome in self._held.items() if key not in self._said]


_FAILURE = OutcomeKind.FAILURE
