"""Keys: the same question has the same name in every process, and no other question has it."""

import hashlib
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_llm_tiers.core.requests import (
    CUSTOM_ID,
    KEY_LENGTH,
    TOKEN_LENGTH,
    canonical_json,
    custom_id,
    derived_token,
    request_key,
    request_keys,
    split_custom_id,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
)


def key_of(body: object, *, account: str = "org/proj", endpoint: str = "/v1/responses", sample: int = 0) -> str:
    """Return the key of a body."""
    return request_key(account=account, endpoint=endpoint, body=canonical_json(body), sample=sample)


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), JSON))
def test_the_order_of_fields_does_not_matter(body: dict[str, object]) -> None:
    """Two spellings of one body have one key."""
    assert key_of(body) == key_of(dict(reversed(body.items())))


def test_a_key_is_the_hash_of_the_canonical_json_of_all_that_is_asked() -> None:
    """The spliced text that is hashed is itself canonical JSON."""
    body = {"model": "m", "input": "é\u2028"}
    whole = {"account": "a/b", "body": body, "endpoint": "/v1/responses", "sample": 2}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    expected = hashlib.sha256(text.encode()).digest()
    key = key_of(body, account="a/b", sample=2)
    import base64

    assert base64.urlsafe_b64decode(key + "=") == expected


@pytest.mark.parametrize(
    "other",
    [{"account": "org/other"}, {"endpoint": "/v1/chat/completions"}, {"sample": 1}],
    ids=["account", "endpoint", "sample"],
)
def test_whatever_makes_it_another_question_makes_another_key(other: dict[str, object]) -> None:
    """Account, endpoint and sample number are part of the question."""
    assert key_of({"input": "x"}) != key_of({"input": "x"}, **other)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("endpoint", "body", "keys"),
    [
        (
            "/v1/responses",
            {
                "input": 'Say "hé"\n\u2028 in 3 words.',
                "instructions": "Be brief.",
                "max_output_tokens": 200,
                "model": "m",
                "temperature": 0.5,
            },
            ["7TYUT3uzcu0WIy3mNCWaGU8Znq1gbi8CaO-CUtSrKdE", "cWrbPYZDINDceDX4uPwn4ddsdoc6c4iZXYTz6LS-IkQ"],
        ),
        (
            "/v1/chat/completions",
            {
                "max_completion_tokens": 200,
                "messages": [
                    {"content": "Be brief.", "role": "system"},
                    {"content": "Hello", "role": "user"},
                    {"content": "Hi", "role": "assistant"},
                    {"content": "Again", "role": "user"},
                ],
                "model": "m",
            },
            ["CAqs54rauyPh18n06REw6qrGxVuk37H1bN9ZAXE9SEI", "-SQoWCPG0sLQKgdrUvZ_C3YZoym3-2RMYkUkOqP_Y9A"],
        ),
        (
            "/v1/messages",
            {
                "max_tokens": 200,
                "messages": [{"content": 'Say "hé"\n\u2028 in 3 words.', "role": "user"}],
                "model": "m",
                "system": "Be brief.",
            },
            ["l5Tbc6e8ns8J26iVhmQIKCbAizjJ65D0l0tfz1WOS44", "6IyvYNiSTxh_JviPlqPACV0LM55oiLEw-DghCWacwZM"],
        ),
    ],
)
def test_keys_stay_what_they_were(endpoint: str, body: dict[str, object], keys: list[str]) -> None:
    """A key that changed from one version to the next would have every answer paid for again."""
    encoded = canonical_json(body)
    made = [request_key(account="org/proj", endpoint=endpoint, body=encoded, sample=sample) for sample in (0, 1)]
    assert made == keys
    assert request_keys([encoded], account="org/proj", endpoint=endpoint, samples=2).decode() == "".join(keys)


@given(st.lists(st.binary(max_size=200), max_size=8), st.integers(1, 3))
def test_many_keys_are_those_of_one_at_a_time(bodies: list[bytes], samples: int) -> None:
    """The way of making keys does not show in them."""
    one_by_one = [
        request_key(account="a", endpoint="/v1/responses", body=body, sample=sample)
        for body in bodies
        for sample in range(samples)
    ]
    together = request_keys(bodies, account="a", endpoint="/v1/responses", samples=samples)
    assert together.decode() == "".join(one_by_one)


def test_the_key_is_the_same_in_another_process() -> None:
    """No hash seed, address or clock is in it."""
    code = (
        "from prefect_llm_tiers.core.requests import *;"
        "body = canonical_json({'b': 1, 'a': [1, {'d': 2, 'c': 3}]});"
        "print(request_key(account='a', endpoint='/v1/responses', body=body))"
    )
    runs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(runs) == 1


@given(st.binary(min_size=1, max_size=20), st.integers(1, 100))
def test_a_custom_id_carries_key_and_token_and_pleases_the_strictest_provider(seed: bytes, number: int) -> None:
    """It matches Anthropic's rule and comes apart again."""
    key = key_of(seed.hex())
    token = derived_token("ledger", "batch", number, 1)
    assert (len(key), len(token)) == (KEY_LENGTH, TOKEN_LENGTH)
    text = custom_id(key, token)
    assert CUSTOM_ID.fullmatch(text)
    assert split_custom_id(text) == (key, token)


@pytest.mark.parametrize("text", ["", "short", "x" * 64, "x" * 65])
def test_an_id_that_is_not_ours_does_not_come_apart(text: str) -> None:
    """A foreign id is None, never a wrong key."""
    assert split_custom_id(text) is None


def test_tokens_differ_by_ledger_batch_and_submission() -> None:
    """No two submissions, of this ledger or another, bear the same token."""
    tokens = {
        derived_token(ledger, "batch", batch, submission)
        for ledger in ("a", "b")
        for batch in range(50)
        for submission in (1, 2)
    }
    assert len(tokens) == 200


def test_what_json_cannot_say_is_refused() -> None:
    """A lone surrogate would make a key that no provider could be asked under."""
    with pytest.raises(TypeError):
        canonical_json({"input": "\ud800"})
