"""Every error that a user of this package can meet.

Each message says the fact with its values, the cause, and the next action. None carries a key, a
prompt or an answer, because Prefect writes the exceptions of failed runs to result storage.

```
LLMTiersError
├── ConfigurationError          a step, chain or block cannot work as declared
│   ├── CredentialsRejected     the provider refused the key
│   ├── UnknownModel            the provider does not offer the model to this account
│   ├── AccountChanged          a run began under another account than the block has now
│   └── SchemaUnsupported       a pydantic model that strict schemas cannot express
├── InputError                  the rows cannot be asked as they are
│   ├── MissingColumns
│   ├── ColumnExists
│   └── InputChanged            re-entry with other requests than the first entry's
├── PlanError
│   ├── DeadlineInfeasible      no allowed tier can meet the deadline
│   └── DeadlineMissed          `on_miss="raise"` and the deadline passed
├── ProviderError               a call failed as a whole, not one row of it
│   ├── ProviderUnavailable     capacity, outage, connection
│   ├── RateLimited             the account's own limit
│   ├── QuotaExhausted          nothing more will be answered until somebody pays
│   └── RequestRejected         the provider will never accept this
├── LedgerError
│   ├── LedgerUnusable          read-only, corrupt, of a newer schema, not reachable
│   ├── RunForgotten            the run began before, and this ledger knows nothing of it
│   ├── IllegalTransition       a state change that the lifecycle forbids, or that came too late
│   └── LeaseLost               another process decides now
├── SubmissionUnknown           a batch may or may not have been submitted
├── NoAnswer                    a single call came back without an answer
│   └── AnswerRefused           the model, or the provider's policy, declined
└── RowsFailed                  more rows failed than `max_failed` allows
```
"""

from collections.abc import Mapping

__all__ = [
    "AccountChanged",
    "AnswerRefused",
    "ColumnExists",
    "ConfigurationError",
    "CredentialsRejected",
    "DeadlineInfeasible",
    "DeadlineMissed",
    "IllegalTransition",
    "InputChanged",
    "InputError",
    "LLMTiersError",
    "LeaseLost",
    "LedgerError",
    "LedgerUnusable",
    "MissingColumns",
    "NoAnswer",
    "PlanError",
    "ProviderError",
    "ProviderUnavailable",
    "QuotaExhausted",
    "RateLimited",
    "RequestRejected",
    "RowsFailed",
    "RunForgotten",
    "SchemaUnsupported",
    "SubmissionUnknown",
    "UnknownModel",
]


class LLMTiersError(Exception):
    """Root of the tree; catches everything that this package raises on purpose."""


class ConfigurationError(LLMTiersError):
    """A step, a chain or a block cannot work as it is declared."""


class CredentialsRejected(ConfigurationError):
    """The provider refused the key; nothing was asked."""


class UnknownModel(ConfigurationError):
    """The provider does not offer this model to this account."""


class AccountChanged(ConfigurationError):
    """A run was entered again under another account: what is out belongs to the first one."""


class SchemaUnsupported(ConfigurationError):
    """A pydantic model that the provider's strict schema cannot express."""


class InputError(LLMTiersError):
    """The rows cannot be asked as they are."""


class MissingColumns(InputError):
    """The prompt function reads columns that the frame lacks."""


class ColumnExists(InputError):
    """The step would overwrite a column of the frame."""


class InputChanged(InputError):
    """A step run was entered again with other requests than at its first entry."""


class PlanError(LLMTiersError):
    """No plan can do what was asked."""


class DeadlineInfeasible(PlanError):
    """No allowed tier can meet the deadline with the chance that was asked for."""


class DeadlineMissed(PlanError):
    """The deadline passed with rows unanswered, and the step was told to raise."""


class ProviderError(LLMTiersError):
    """A call to the provider failed as a whole."""


class ProviderUnavailable(ProviderError):
    """Capacity, outage or connection: the same call may work later."""


class RateLimited(ProviderError):
    """The account's own limit was reached.

    Attributes:
        retry_after_s: Seconds after which the provider will take the call; None when it did not say.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s)
        self.message = message
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message


class QuotaExhausted(ProviderError):
    """The account has no credit left; asking again is of no use."""


class RequestRejected(ProviderError):
    """The provider will never accept this request."""


class LedgerError(LLMTiersError):
    """The ledger could not do what was asked; what was committed stands."""


class LedgerUnusable(LedgerError):
    """The ledger cannot be opened: read-only, corrupt, of a newer schema or not reachable."""


class RunForgotten(LedgerError):
    """A run that began before finds no record of itself: this is not the ledger it began in."""


class IllegalTransition(LedgerError):
    """A state change that the lifecycle forbids, or one decided on a state that is no longer true."""


class LeaseLost(LedgerError):
    """Another process holds the lease now; this one must stop deciding and may still append facts."""


class SubmissionUnknown(LLMTiersError):
    """A batch may have been submitted and the provider cannot say; nothing was sent in its place."""


class NoAnswer(LLMTiersError):
    """A single call came back without an answer that can be used; what was paid for is in the ledger.

    Attributes:
        reason: Why, as `length` or `unparsable: missing at topic`.
    """

    def __init__(self, message: str, reason: str = "unknown") -> None:
        super().__init__(message, reason)
        self.message = message
        self.reason = reason

    def __str__(self) -> str:
        return self.message


class AnswerRefused(NoAnswer):
    """The model, or the provider's policy, declined; asking again gives the same."""


class RowsFailed(LLMTiersError):
    """More rows failed than allowed; every answer that came back is in the ledger.

    Attributes:
        failed: Number of rows without an answer.
        total: Number of rows of the step.
        reasons: Number of rows by reason.
    """

    def __init__(self, message: str, failed: int = 0, total: int = 0, reasons: Mapping[str, int] | None = None) -> None:
        super().__init__(message, failed, total, dict(reasons or {}))
        self.message = message
        self.failed = failed
        self.total = total
        self.reasons = dict(reasons or {})

    def __str__(self) -> str:
        return self.message
