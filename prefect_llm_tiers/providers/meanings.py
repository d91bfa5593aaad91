"""The table of errors by meaning: what an unsuccessful reply means for the one who sent it.

The providers agree on little: capacity is a 429 at one, a 529 at another and a 498 at a third, and an
exhausted account is a 429, a 402 or a 400. Gateways in between keep the status and lose the code, or wrap
the whole error in a string. So each rule reads code, type and message, and the rules stand in the order in
which the more specific one wins.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from prefect_llm_tiers.core.ports import FailureKind, FailureMeaning
from prefect_llm_tiers.providers.error_bodies import Said, read_error
from prefect_llm_tiers.providers.retry_after import retry_after_s

__all__ = [
    "MODEL_NOT_FOUND",
    "ORGANIZATION_UNVERIFIED",
    "POLICY_CODES",
    "RULES",
    "Rule",
    "error_in_success",
    "meaning_of",
]

MODEL_NOT_FOUND = "model_not_found"
"""The reason of a reply that says that this account is not offered the model."""

ORGANIZATION_UNVERIFIED = "organization_unverified"
"""The reason of a reply that says that somebody of the organisation has to prove who they are first."""

POLICY_CODES = frozenset(
    {
        "bio_policy",
        "content_filter",
        "content_policy_violation",
        "cyber_policy",
        "image_content_policy_violation",
        "invalid_prompt",
        "misalignment_policy_violation",
        "moderation_blocked",
    }
)
"""Codes of a request turned down for what it says: a refusal, by the provider instead of the model."""

_PARAMETER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
_LONGEST_PARAMETER = 64
_CLIENT_ERRORS = frozenset(range(400, 500))
_SERVER_ERRORS = frozenset(range(500, 600))
_GATEWAY_STATUSES = frozenset({200, 400, 500, 502})
"""Statuses under which gateways pass on an error that has a more telling one of its own."""

_GENERIC = frozenset({"invalid_request_error", "BadRequestError", "error"})
"""Codes that say less than the words beside them."""


class Rule(NamedTuple):
    """One row of the table: it applies if the status fits and, where it names any, a code, parameter or words.

    Attributes:
        kind: What it means; see `FailureMeaning`.
        reason: What is recorded where the reply has no code of its own; None: `http_` and the status.
        statuses: HTTP statuses it applies to.
        codes: Codes, or types, of which the reply has one.
        words: Phrases of which the message has one, in any case; a space also matches `_`, `-` and nothing, and
            `...` some words.
        param: The parameter that the reply is about.
        maybe_billed: Whether the work may have been done and the reply lost.
    """

    kind: FailureKind
    reason: str | None
    statuses: frozenset[int]
    codes: frozenset[str] = frozenset()
    words: tuple[str, ...] = ()
    param: str | None = None
    maybe_billed: bool = False


def _statuses(*values: int) -> frozenset[int]:
    return frozenset(values)


RULES: tuple[Rule, ...] = (
    # Before the missing model: OpenAI gives it that code, or `unsupported_value`, and 400, 403 or 404.
    Rule(
        "auth",
        ORGANIZATION_UNVERIFIED,
        _CLIENT_ERRORS,
        words=("organization must be verified", "verify organization"),
    ),
    Rule(
        "rejected",
        MODEL_NOT_FOUND,
        _CLIENT_ERRORS,
        codes=frozenset({"model_not_found", "DeploymentNotFound"}),
    ),
    # Anthropic answers 404 `not_found_error` with the message "model: NAME"; OpenAI's words vary.
    Rule(
        "rejected",
        MODEL_NOT_FOUND,
        _statuses(403, 404),
        words=("model:", "model ... does not exist", "model ... not found", "access to model"),
    ),
    Rule(
        "quota",
        "insufficient_quota",
        frozenset(range(300, 600)),
        codes=frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "billing_error"}),
    ),
    # Anthropic tells an empty account by a 400 `invalid_request_error`; only the message says so.
    Rule(
        "quota",
        "insufficient_quota",
        _statuses(400, 403, 429),
        words=(
            "exceeded your current quota",
            "credit balance is too low",
            "insufficient quota",
            "insufficient funds",
            "insufficient credit",
            "insufficient credits",
        ),
    ),
    Rule("quota", "insufficient_quota", _statuses(402)),
    Rule("policy", None, _CLIENT_ERRORS, codes=POLICY_CODES),
    # Anthropic's 400 for its output filter has no code of its own either.
    Rule(
        "policy",
        "content_filter",
        _statuses(400, 403, 422),
        words=(
            "content filtering policy",
            "content management policy",
            "flagged as potentially violating",
            "result of our safety system",
        ),
    ),
    # Flex: 429 whose JSON is not documented (OpenAI); the code or the words must do. Groq: 498.
    Rule(
        "capacity",
        "resource_unavailable",
        frozenset(range(300, 600)),
        codes=frozenset({"resource_unavailable", "capacity_exceeded", "overloaded_error"}),
    ),
    Rule(
        "capacity",
        "resource_unavailable",
        _statuses(429, 498, 500, 502, 503, 529),
        words=(
            "resource unavailable",
            "overloaded",
            "no capacity",
            "at capacity",
            "insufficient capacity",
            "capacity exceeded",
            "experiencing high demand",
        ),
    ),
    Rule("capacity", "capacity_exceeded", _statuses(498)),
    Rule("capacity", "service_unavailable", _statuses(503)),
    Rule("capacity", "overloaded_error", _statuses(529)),
    Rule("rate_limit", "rate_limit_exceeded", _statuses(429)),
    Rule(
        "tier_unsupported",
        "tier_unsupported",
        _statuses(400, 404, 422),
        codes=frozenset({"unsupported_service_tier", "invalid_service_tier"}),
        words=(
            "service tier",
            "flex ... not supported",
            "flex ... not available",
            "flex ... not enabled",
            "not support ... flex",
            "doesn't support ... flex",
        ),
        param="service_tier",
    ),
    Rule("auth", None, _statuses(401, 403)),
    Rule("timeout", None, _statuses(408, 504, 524), maybe_billed=True),
    Rule("server", "conflict", _statuses(409, 425)),
    Rule("rejected", None, _CLIENT_ERRORS),
    # The provider may have done the work and lost the reply: a 502 after the commit has been seen.
    Rule("server", None, _SERVER_ERRORS, maybe_billed=True),
)
"""The table; the first row that applies counts. `docs/errors.md` shows it, and a test holds the two together."""


def _pattern(words: tuple[str, ...]) -> re.Pattern[str] | None:
    if not words:
        return None
    phrases = (
        ".{0,120}?".join(re.escape(part.strip()).replace("\\ ", "[ _-]?") for part in phrase.split("..."))
        for phrase in words
    )
    return re.compile(rf"(?<![a-z])(?:{'|'.join(phrases)})(?![a-z])", re.IGNORECASE | re.DOTALL)


_PATTERNS = tuple(_pattern(rule.words) for rule in RULES)


def _with_parameter(code: str, parameter: object) -> str:
    """Return a code with the parameter that it is about, as `unsupported_parameter: temperature`.

    Only a plain identifier is taken: a field may be named after what it holds, and bodies hold prompts.
    """
    if isinstance(parameter, str) and len(parameter) <= _LONGEST_PARAMETER and _PARAMETER.fullmatch(parameter):
        return f"{code}: {parameter}"
    return code


def meaning_of(status: int, headers: Mapping[str, str], body: bytes) -> FailureMeaning:
    """Return what an unsuccessful reply means.

    Args:
        status: HTTP status. Where a gateway put an error's own status into the body, that one counts.
        headers: Its headers, keys in lower case.
        body: Its body, of any shape: JSON of either dialect, a gateway's, HTML or nothing.
    """
    said = read_error(body)
    if said.status is not None and status in _GATEWAY_STATUSES:
        status = said.status
    for rule, pattern in zip(RULES, _PATTERNS, strict=True):
        named = _applies(rule, pattern, status, said)
        if named is None:
            continue
        maybe_billed = rule.maybe_billed
        if rule.kind == "capacity" and status >= 500 and not said.codes:
            # A bare 5xx comes from something in between, which cannot know what the provider did.
            maybe_billed = True
        reason = named or rule.reason or f"http_{status}"
        if rule.kind == "rejected" and rule.reason != MODEL_NOT_FOUND:
            reason = _with_parameter(reason, said.param)
        return FailureMeaning(
            kind=rule.kind,
            reason=reason,
            retry_after_s=retry_after_s(headers, said.message),
            maybe_billed=maybe_billed,
        )
    # Redirects are not followed where a body was sent, and end here.
    return FailureMeaning(kind="rejected", reason=f"http_{status}")


def error_in_success(headers: Mapping[str, str], body: bytes) -> FailureMeaning | None:
    """Return the meaning of an error that a gateway passed on as a success; None where the body has none.

    Such an error names the status that it should have had: `{"error": {"code": 429, ...}}`.
    """
    return meaning_of(200, headers, body) if read_error(body).status is not None else None


def _applies(rule: Rule, pattern: re.Pattern[str] | None, status: int, said: Said) -> str | None:
    """Return the code to record, empty for the rule's own reason; None where the rule does not apply."""
    if status not in rule.statuses:
        return None
    code = next((code for code in said.codes if code in rule.codes), None)
    worded = pattern is not None and pattern.search(said.message) is not None
    about = rule.param is not None and said.param == rule.param
    if not (code or worded or about) and (rule.codes or rule.words or rule.param):
        return None
    if rule.reason in (MODEL_NOT_FOUND, ORGANIZATION_UNVERIFIED):
        return ""
    own = next(iter(said.codes), "")
    return "" if own in _GENERIC and (worded or about) else own
