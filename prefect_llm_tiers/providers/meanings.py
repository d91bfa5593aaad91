"""The table of errors by meaning: what an unsuccessful reply means for the one who sent it.

The providers agree on little: capacity is a 429 at one, a 529 at another and a 498 at a third, and an
exhausted account is a 429, a 402 or a 400. Gateways in between keep the status and lose the code, or wrap
the whole error in a string. So each rule reads code, type and message, and the rules stand in the order in
which the more specific one wins.
"""

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from prefect_llm_tiers.core.ports import FailureMeaning
from prefect_llm_tiers.providers.decoding import decode_any

__all__ = ["MODEL_NOT_FOUND", "POLICY_CODES", "clean_code", "meaning_of", "retry_after_s"]

MODEL_NOT_FOUND = "model_not_found"
"""The reason of a reply that says that this account is not offered the model."""

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

_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_.]{0,63}")
_PARAMETER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
_LONGEST_PARAMETER = 64
_READ_BYTES = 65_536
_CLIENT_ERRORS = frozenset(range(400, 500))
_OTHER_SERVER_ERRORS = frozenset(range(500, 600))


class _Rule(NamedTuple):
    """One row: it applies if the status fits and, where it names any, a code, parameter or message."""

    kind: str
    reason: str | None
    statuses: frozenset[int]
    codes: frozenset[str] = frozenset()
    message: re.Pattern[str] | None = None
    param: str | None = None
    maybe_billed: bool = False


def _statuses(*values: int) -> frozenset[int]:
    return frozenset(values)


def _words(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE | re.DOTALL)


_ANY = frozenset(range(300, 600))

_RULES: tuple[_Rule, ...] = (
    _Rule(
        "rejected",
        MODEL_NOT_FOUND,
        _CLIENT_ERRORS,
        codes=frozenset({"model_not_found", "DeploymentNotFound"}),
    ),
    # Anthropic answers 404 `not_found_error` with the message "model: NAME"; OpenAI's words vary.
    _Rule(
        "rejected",
        MODEL_NOT_FOUND,
        _statuses(403, 404),
        message=_words(r"^model: |\bmodel\b.{0,120}\b(does not exist|not found)|access to model\b"),
    ),
    _Rule(
        "quota",
        "insufficient_quota",
        _ANY,
        codes=frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "billing_error"}),
    ),
    # Anthropic tells an empty account by a 400 `invalid_request_error`; only the message says so.
    _Rule(
        "quota",
        "insufficient_quota",
        _statuses(400, 403, 429),
        message=_words(r"exceeded your current quota|credit balance is too low|insufficient[ _](quota|funds|credits?)"),
    ),
    _Rule("quota", "insufficient_quota", _statuses(402)),
    # Flex: 429 whose JSON is not documented (OpenAI); the code or the words must do. Groq: 498.
    _Rule(
        "capacity",
        "resource_unavailable",
        _ANY,
        codes=frozenset({"resource_unavailable", "capacity_exceeded", "overloaded_error"}),
    ),
    _Rule(
        "capacity",
        "resource_unavailable",
        _statuses(429, 498, 500, 502, 503, 529),
        message=_words(
            r"resource[ _-]?unavailable|\boverloaded(_error)?\b|\b(no|at|insufficient) capacity\b"
            r"|capacity[ _]exceeded"
        ),
    ),
    _Rule("capacity", "capacity_exceeded", _statuses(498)),
    _Rule("capacity", "service_unavailable", _statuses(503)),
    _Rule("capacity", "overloaded_error", _statuses(529)),
    _Rule("rate_limit", "rate_limit_exceeded", _statuses(429)),
    _Rule(
        "tier_unsupported",
        "tier_unsupported",
        _statuses(400, 404, 422),
        codes=frozenset({"unsupported_service_tier", "invalid_service_tier"}),
        message=_words(
            r"\bservice[_ ]tier\b|\bflex\b.{0,40}\bnot (supported|available|enabled)\b"
            r"|(not|n't) support\b.{0,40}\bflex\b"
        ),
        param="service_tier",
    ),
    _Rule("auth", None, _statuses(401, 403)),
    _Rule("timeout", None, _statuses(408, 504, 524), maybe_billed=True),
    _Rule("server", "conflict", _statuses(409, 425)),
    _Rule("rejected", None, _CLIENT_ERRORS),
    # The provider may have done the work and lost the reply: a 502 after the commit has been seen.
    _Rule("server", None, _OTHER_SERVER_ERRORS, maybe_billed=True),
)


class _Said(NamedTuple):
    """What an error body says, whatever its shape."""

    codes: tuple[str, ...]
    message: str
    param: str | None


def clean_code(value: object) -> str | None:
    """Return a provider's code if it can be one, None otherwise.

    Codes go into logs and the ledger. What has another shape than an identifier may be text that echoes
    a prompt or a key, and is dropped.
    """
    if isinstance(value, str) and _CODE.fullmatch(value):
        return value
    return None


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
        status: HTTP status, not in 200 to 299.
        headers: Its headers, keys in lower case.
        body: Its body, of any shape: JSON of either dialect, a gateway's, HTML or nothing.
    """
    said = _read(body)
    for rule in _RULES:
        if _applies(rule, status, said):
            own = None if rule.reason == MODEL_NOT_FOUND else next(iter(said.codes), None)
            maybe_billed = rule.maybe_billed
            if rule.kind == "capacity" and status >= 500 and not said.codes:
                # A bare 5xx comes from something in between, which cannot know what the provider did.
                maybe_billed = True
            reason = own or rule.reason or f"http_{status}"
            if own is not None and rule.kind == "rejected" and own not in POLICY_CODES:
                reason = _with_parameter(own, said.param)
            return FailureMeaning(
                kind=rule.kind,
                reason=reason,
                retry_after_s=retry_after_s(headers),
                maybe_billed=maybe_billed,
            )
    # Redirects are not followed where a body was sent, and end here.
    return FailureMeaning(kind="rejected", reason=f"http_{status}")


def _applies(rule: _Rule, status: int, said: _Said) -> bool:
    if status not in rule.statuses:
        return False
    if not rule.codes and rule.message is None and rule.param is None:
        return True
    if not rule.codes.isdisjoint(said.codes):
        return True
    if rule.param is not None and said.param == rule.param:
        return True
    return rule.message is not None and rule.message.search(said.message) is not None


def _read(body: bytes) -> _Said:
    value = decode_any(body[:_READ_BYTES])
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, dict):
        text = value if isinstance(value, str) else body[:4096].decode("utf-8", "replace")
        return _Said((), text, None)
    error: Any = value.get("error", value)
    if isinstance(error, str):
        # {"error": "text"}; some hosts put the code beside it, or in its place.
        found = (clean_code(value.get("code")), clean_code(error))
        message = f"{error} {value.get('message') or ''}"
        return _Said(tuple(code for code in found if code), message, None)
    if not isinstance(error, dict):
        return _Said((), "", None)
    found = (clean_code(error.get("code")), clean_code(error.get("type")))
    codes = tuple(code for code in found if code and code != "error")
    parts = (error.get("message"), error.get("detail"))
    param = error.get("param")
    return _Said(
        codes,
        " ".join(part for part in parts if isinstance(part, str)),
        param if isinstance(param, str) else None,
    )


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds after which the provider will take the call, None where it does not say.

    Reads `retry-after-ms`, `retry-after` in seconds or as an HTTP date, and, where both are missing,
    OpenAI's `x-ratelimit-reset-*` of the limits that are used up. A date is counted from the reply's own
    `date` header, so that no clock is read here and none has to agree with the provider's.

    Args:
        headers: Headers of the reply, keys in lower case.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    text = headers.get("retry-after")
    if text is not None:
        seconds = _number(text)
        if seconds is not None:
            return seconds
        until, now = _date(text), _date(headers.get("date"))
        return max(0.0, (until - now).total_seconds()) if until and now else None
    waits = [
        _go_duration(headers.get(f"x-ratelimit-reset-{limit}"))
        for limit in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{limit}") == "0"
    ]
    return max((wait for wait in waits if wait is not None), default=None)


def _number(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return max(0.0, value) if math.isfinite(value) else None


def _date(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        value = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return value if value.tzinfo else value.replace(tzinfo=UTC)


_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def _go_duration(text: str | None) -> float | None:
    """Read OpenAI's `6m0s`, `20ms` or `1h2m3.5s`."""
    if text is None or not _DURATION.fullmatch(text):
        return None
    return sum(float(amount) * _UNIT_S[unit] for amount, unit in _DURATION_PART.findall(text))
