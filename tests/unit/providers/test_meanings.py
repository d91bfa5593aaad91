"""The table of errors by meaning."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_llm_tiers.providers.error_bodies import clean_code
from prefect_llm_tiers.providers.meanings import MODEL_NOT_FOUND, meaning_of
from prefect_llm_tiers.providers.retry_after import retry_after_s


def openai(message: str = "", *, code: str | None = None, kind: str | None = None, param: str | None = None) -> bytes:
    """Return an error of OpenAI's."""
    return orjson.dumps({"error": {"message": message, "type": kind, "code": code, "param": param}})


def anthropic(kind: str, message: str = "") -> bytes:
    """Return an error of Anthropic's."""
    return orjson.dumps({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"})


HTML = b"<html><body><h1>Service Unavailable</h1></body></html>"

TABLE: list[tuple[int, bytes, str, str]] = [
    # Capacity: each provider's own way.
    (429, openai("Resource Unavailable", code="resource_unavailable"), "capacity", "resource_unavailable"),
    (429, openai(code="resource_unavailable", kind="too_many_requests"), "capacity", "resource_unavailable"),
    (498, openai("Flex tier at capacity", code="capacity_exceeded"), "capacity", "capacity_exceeded"),
    (498, b"", "capacity", "capacity_exceeded"),
    (
        503,
        openai("The engine is currently overloaded", code="server_overloaded"),
        "capacity",
        "server_overloaded",
    ),
    (503, HTML, "capacity", "service_unavailable"),
    (529, anthropic("overloaded_error", "Overloaded"), "capacity", "overloaded_error"),
    (529, b"", "capacity", "overloaded_error"),
    # Gateways that lose the code, or wrap it.
    (429, openai("Resource unavailable. You were not charged."), "capacity", "resource_unavailable"),
    (429, orjson.dumps({"error": "429 Resource Unavailable"}), "capacity", "resource_unavailable"),
    (429, orjson.dumps({"message": "upstream: resource_unavailable"}), "capacity", "resource_unavailable"),
    (429, orjson.dumps({"detail": "Resource Unavailable"}), "capacity", "resource_unavailable"),
    (429, orjson.dumps([{"error": {"message": "Resource Unavailable"}}]), "capacity", "resource_unavailable"),
    (429, b"Resource Unavailable", "capacity", "resource_unavailable"),
    (502, anthropic("overloaded_error"), "capacity", "overloaded_error"),
    # The account's own limit.
    (
        429,
        openai("Rate limit reached", code="rate_limit_exceeded", kind="tokens"),
        "rate_limit",
        "rate_limit_exceeded",
    ),
    (429, anthropic("rate_limit_error"), "rate_limit", "rate_limit_error"),
    (429, b"", "rate_limit", "rate_limit_exceeded"),
    (429, b"\xff\xfe{", "rate_limit", "rate_limit_exceeded"),
    # Nobody answers until somebody pays.
    (
        429,
        openai("You exceeded your current quota", code="insufficient_quota"),
        "quota",
        "insufficient_quota",
    ),
    (429, openai("You exceeded your current quota, please check your plan"), "quota", "insufficient_quota"),
    (402, b"", "quota", "insufficient_quota"),
    (
        400,
        anthropic("invalid_request_error", "Your credit balance is too low"),
        "quota",
        "insufficient_quota",
    ),
    (403, openai("insufficient_quota: top up"), "quota", "insufficient_quota"),
    # The tier.
    (
        400,
        openai("Flex is not available for this model", param="service_tier"),
        "tier_unsupported",
        "tier_unsupported",
    ),
    (400, openai("flex processing is not supported for model x"), "tier_unsupported", "tier_unsupported"),
    (400, openai("Model x does not support the flex tier"), "tier_unsupported", "tier_unsupported"),
    (400, openai("Invalid service_tier argument"), "tier_unsupported", "tier_unsupported"),
    # This request, for ever.
    (400, openai("bad", code="context_length_exceeded"), "rejected", "context_length_exceeded"),
    (400, anthropic("invalid_request_error"), "rejected", "invalid_request_error"),
    (400, openai("In 'properties': 'flexibility' is unknown"), "rejected", "http_400"),
    (404, openai("No batch found with id 'batch_1'."), "rejected", "http_404"),
    (413, anthropic("request_too_large"), "rejected", "request_too_large"),
    (422, b"", "rejected", "http_422"),
    (308, b"", "rejected", "http_308"),
    # The model.
    (404, openai("The model `x` does not exist", code="model_not_found"), "rejected", MODEL_NOT_FOUND),
    (
        403,
        openai("Project p does not have access to model x", code="model_not_found"),
        "rejected",
        MODEL_NOT_FOUND,
    ),
    (404, openai("The model 'x' does not exist or you have no access"), "rejected", MODEL_NOT_FOUND),
    (404, anthropic("not_found_error", "model: claude-of-nobody"), "rejected", MODEL_NOT_FOUND),
    (404, anthropic("not_found_error", "Message Batch x not found"), "rejected", "not_found_error"),
    # The key.
    (401, openai(code="invalid_api_key"), "auth", "invalid_api_key"),
    (401, b"", "auth", "http_401"),
    (403, anthropic("permission_error"), "auth", "permission_error"),
    # The provider.
    (500, openai(kind="server_error"), "server", "server_error"),
    (500, anthropic("api_error"), "server", "api_error"),
    (502, HTML, "server", "http_502"),
    (520, b"", "server", "http_520"),
    (409, b"", "server", "conflict"),
    (408, b"", "timeout", "http_408"),
    (504, HTML, "timeout", "http_504"),
    (524, b"", "timeout", "http_524"),
]


@pytest.mark.parametrize(("status", "body", "kind", "reason"), TABLE)
def test_each_error_has_its_meaning(status: int, body: bytes, kind: str, reason: str) -> None:
    """Status, code and words together give the meaning, and the reason is the code, or ours without one."""
    meaning = meaning_of(status, {}, body)
    assert (meaning.kind, meaning.reason) == (kind, reason)


@pytest.mark.parametrize(
    ("status", "body", "maybe"),
    [
        (500, openai(kind="server_error"), True),
        (502, HTML, True),
        (504, b"", True),
        (503, HTML, True),
        (503, openai(code="server_overloaded"), False),
        (529, anthropic("overloaded_error"), False),
        (429, b"", False),
        (400, b"", False),
        (401, b"", False),
    ],
)
def test_what_may_have_been_done_is_said(status: int, body: bytes, maybe: bool) -> None:
    """A provider's own refusal was not billed; what a gateway says of a lost reply proves nothing."""
    assert meaning_of(status, {}, body).maybe_billed is maybe


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        (
            {"retry-after": "Fri, 20 Nov 2026 21:01:30 GMT", "date": "Fri, 20 Nov 2026 21:00:00 GMT"},
            90.0,
        ),
        ({"retry-after": "Fri, 20 Nov 2026 20:00:00 GMT", "date": "Fri, 20 Nov 2026 21:00:00 GMT"}, 0.0),
        ({"retry-after": "Fri, 20 Nov 2026 21:01:30 GMT"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}, 360.0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "20ms"}, 0.02),
        ({"x-ratelimit-remaining-tokens": "5", "x-ratelimit-reset-tokens": "1h2m3s"}, None),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "later"}, None),
    ],
)
def test_how_long_to_wait_is_read_without_a_clock(headers: dict[str, str], seconds: float | None) -> None:
    """Seconds, milliseconds, a date relative to the reply's own, or the reset of a limit that is used up."""
    found = retry_after_s(headers)
    assert found == (pytest.approx(seconds) if seconds is not None else None)


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["error", "code", "type", "message", "param", "detail"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(
    status=st.integers(300, 599),
    body=st.binary(max_size=64) | JSON.map(lambda v: str(v).encode("utf-8", "ignore")),
)
def test_no_body_breaks_the_table(status: int, body: bytes) -> None:
    """Every reply has a meaning, whatever its body."""
    assert meaning_of(status, {}, body).reason


@given(status=st.integers(300, 599), value=JSON)
def test_no_shape_breaks_the_table(status: int, value: Any) -> None:
    """Every JSON body has a meaning, and its reason has the shape of a code."""
    try:
        body = orjson.dumps(value)
    except TypeError:  # an integer beyond 64 bits
        return
    assert clean_code(meaning_of(status, {}, body).reason)


@pytest.mark.parametrize(
    "text",
    [
        "sk-proj-0123456789abcdef",
        "Incorrect API key provided: sk-123",
        "my prompt",
        "",
        "x" * 65,
        7,
        None,
        "naïve",
    ],
)
def test_what_is_no_code_is_not_repeated(text: object) -> None:
    """A key, a sentence, or anything else that is no identifier is dropped where a code was expected."""
    assert clean_code(text) is None
    body = orjson.dumps({"error": {"code": text, "message": "x"}})
    assert meaning_of(400, {}, body).reason == "http_400"


@pytest.mark.parametrize(
    ("param", "reason"),
    [
        ("temperature", "unsupported_parameter: temperature"),
        ("text.format.schema", "unsupported_parameter: text.format.schema"),
        ("the marmalade ledger", "unsupported_parameter"),
        ("sk-a-key", "unsupported_parameter"),
        ("messages[0].content", "unsupported_parameter"),
        ("x" * 65, "unsupported_parameter"),
        ("", "unsupported_parameter"),
        (None, "unsupported_parameter"),
        (["temperature"], "unsupported_parameter"),
    ],
)
def test_a_rejection_names_the_parameter_if_that_is_a_name(param: Any, reason: str) -> None:
    """A plain identifier says what to correct; anything else may be text that nobody may see."""
    body = orjson.dumps({"error": {"message": "secret", "code": "unsupported_parameter", "param": param}})
    assert meaning_of(400, {}, body).reason == reason


def test_a_rejection_without_a_code_names_the_parameter_too() -> None:
    """FastAPI's validation has no code, and tells where in the body it is."""
    body = orjson.dumps({"detail": [{"type": "less_than", "loc": ["body", "temperature"], "msg": "Input ..."}]})
    assert meaning_of(422, {}, body).reason == "http_422: temperature"


def test_a_policy_and_a_missing_model_are_known_by_their_code_alone() -> None:
    """What is compared with a code is left as one."""
    policy = orjson.dumps({"error": {"code": "invalid_prompt", "param": "input"}})
    assert meaning_of(400, {}, policy).reason == "invalid_prompt"
    model = orjson.dumps({"error": {"code": "model_not_found", "param": "model"}})
    assert meaning_of(404, {}, model).reason == "model_not_found"
