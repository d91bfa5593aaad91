"""Rows into requests: what is asked, in which words, and what becomes of rows that are not."""

import functools
import json
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_llm_tiers import ConfigurationError
from prefect_llm_tiers.core.requests import Endpoint, canonical_json, request_key
from prefect_llm_tiers.engine.spool import Spool
from prefect_llm_tiers.frames import reading as module
from prefect_llm_tiers.frames.reading import UPSTREAM, Fates, build_requests
from prefect_llm_tiers.frames.signature import reading_of
from prefect_llm_tiers.providers.bodies import BodyEncoder, build_body

TEXT = st.text(st.characters(codec="utf-8"))


def built(
    frame: pl.DataFrame,
    prompt: Callable[..., Any],
    *,
    samples: int = 1,
    constants: dict[str, Any] | None = None,
    columns: dict[str, str] | None = None,
    **options: Any,
) -> tuple[list[bytes], list[str], Fates]:
    """Return the bodies and keys of a frame's requests, and what became of its rows."""
    options = {"endpoint": Endpoint.RESPONSES, "model": "m"} | options
    endpoint = options.pop("endpoint")
    with Spool() as spool:
        fates = build_requests(
            frame,
            reading_of(prompt, columns=columns or {}, constants=constants or {}, step="step"),
            prompt=prompt,
            encoder=BodyEncoder(endpoint, **options),
            account="org/proj",
            endpoint=endpoint,
            samples=samples,
            spool=spool,
        )
        spool.seal()
        requests = [spool.read(position) for position in range(len(spool))]
        return [request.body for request in requests], [request.key for request in requests], fates


def inputs(bodies: list[bytes]) -> list[str]:
    """Return the prompts of bodies."""
    return [json.loads(body)["input"] for body in bodies]


@pytest.mark.parametrize(
    ("endpoint", "options"),
    [
        (Endpoint.RESPONSES, {}),
        (Endpoint.RESPONSES, {"system": "Be brief.", "max_output_tokens": 9, "options": {"temperature": 0.5}}),
        (Endpoint.RESPONSES, {"options": {"input": "always this"}}),
        (Endpoint.RESPONSES, {"system": "\x02prompt\x03"}),
        (Endpoint.CHAT_COMPLETIONS, {"system": "Be brief.", "options": {"metadata": {"a": '"'}}}),
        (Endpoint.MESSAGES, {"max_output_tokens": 9, "system": "Be brief."}),
        (Endpoint.EMBEDDINGS, {"options": {"dimensions": 3}}),
    ],
)
@given(prompts=st.lists(TEXT, max_size=5))
def test_a_spliced_body_is_canonical_json(endpoint: Endpoint, options: dict[str, Any], prompts: list[str]) -> None:
    """Encoding a body around its prompt gives the bytes that encoding it whole does, or keys would change."""
    encoder = BodyEncoder(endpoint, model="m", **options)
    whole = [canonical_json(build_body(endpoint, prompt, model="m", **options)) for prompt in prompts]
    assert encoder.encode_all(prompts) == whole
    assert [encoder.encode(prompt) for prompt in prompts] == whole


@given(texts=st.lists(TEXT, max_size=40), samples=st.integers(1, 3), at_once=st.integers(1, 200))
def test_every_row_asks_what_its_prompt_says(texts: list[str], samples: int, at_once: int) -> None:
    """Requests stand in row order, sample after sample, whatever number of rows is read together."""
    before = module.BYTES_AT_ONCE, module.LEAST_AT_ONCE
    module.BYTES_AT_ONCE, module.LEAST_AT_ONCE = at_once, 1
    try:
        bodies, keys, fates = built(pl.DataFrame({"text": texts}), lambda text: f"Say {text}", samples=samples)
    finally:
        module.BYTES_AT_ONCE, module.LEAST_AT_ONCE = before
    assert inputs(bodies) == [f"Say {text}" for text in texts for _ in range(samples)]
    expected = [
        request_key(account="org/proj", endpoint="/v1/responses", body=body, sample=number % samples)
        for number, body in enumerate(bodies)
    ]
    assert keys == expected
    assert fates.unasked == 0


def plain(a: str, b: str, tone: str = "calm") -> str:
    """Take two columns and a constant."""
    return f"{a}-{b}-{tone}"


def by_keyword(a: str, *, b: str, tone: str = "calm") -> str:
    """Take one of them by name alone."""
    return f"{a}-{b}-{tone}"


@functools.wraps(plain)
def wrapped(**values: Any) -> str:
    """Take all of them by name alone, under a signature that says otherwise."""
    return plain(**values)


@pytest.mark.parametrize(
    "prompt", [plain, by_keyword, wrapped, functools.partial(plain)], ids=["plain", "by_keyword", "wrapped", "partial"]
)
def test_however_a_function_takes_its_values(prompt: Callable[..., str]) -> None:
    """Columns and constants reach the parameters of their names, by position or by name."""
    frame = pl.DataFrame({"B": ["b1", "b2"], "a": ["a1", "a2"]})
    assert inputs(built(frame, prompt, columns={"b": "B"})[0]) == ["a1-b1-calm", "a2-b2-calm"]
    set_ = built(frame, prompt, columns={"b": "B"}, constants={"tone": "loud"})[0]
    assert inputs(set_) == ["a1-b1-loud", "a2-b2-loud"]
    first = built(frame, prompt, columns={"b": "B"}, constants={"a": "x"})[0]
    assert inputs(first) == ["x-b1-calm", "x-b2-calm"]


def test_whole_rows_and_no_columns_at_all() -> None:
    """A function may read the row as a dict, or nothing of it."""
    frame = pl.DataFrame({"a": [1, 2], "b": ["x", None]})

    def whole(a: int, row: dict[str, Any]) -> str:
        return f"{a}:{row['b']}"

    assert inputs(built(frame, whole)[0]) == ["1:x", "2:None"]
    assert inputs(built(frame, lambda: "the same")[0]) == ["the same"] * 2


def test_rows_that_are_not_asked_leave_the_others_in_their_places() -> None:
    """Nulls, exceptions of any kind and prompts that are none fail their row, with the reason, and no other."""

    def prompt(kind: str, text: str) -> Any:
        match kind:
            case "raise":
                raise KeyError(text)
            case "stop":
                raise StopIteration
            case "number":
                return 7
            case "surrogate":
                return "\ud800"
            case "messages":
                return [{"role": "user", "content": text}]
            case _:
                return text

    kinds = ["ok", "raise", "ok", "stop", "number", "ok", "surrogate", "messages", "ok", "ok"]
    texts = ["0", "1", None, "3", "4", None, "6", "7", "8", "9"]
    errors = [None, None, "failed", None, None, None, None, None, None, None]
    frame = pl.DataFrame({"kind": kinds, "text": texts, "text_error": errors})
    bodies, _, fates = built(frame, prompt)
    assert inputs(bodies) == ["0", [{"role": "user", "content": "7"}], "8", "9"]
    reasons = [fates.reasons[code] for code in fates.codes.tolist()]
    assert reasons[2] == UPSTREAM
    assert reasons[5] == "null in column 'text'"
    assert reasons[1].startswith("prompt_error: KeyError at line ")
    assert reasons[3] == "prompt_error: StopIteration"
    assert "of type int" in reasons[4]
    assert reasons[6] == "prompt_error: the prompt holds something that JSON cannot express"
    assert [reason for number, reason in enumerate(reasons) if number in {0, 7, 8, 9}] == [""] * 4


@pytest.mark.parametrize("endpoint", [Endpoint.COMPLETIONS, Endpoint.MODERATIONS, Endpoint.IMAGES, Endpoint.VIDEOS])
def test_a_raw_endpoint_takes_a_body(endpoint: Endpoint) -> None:
    """A dict goes out with the model filled in; a text fails its row and says what to return."""
    field = "input" if endpoint is Endpoint.MODERATIONS else "prompt"
    frame = pl.DataFrame({"text": ["a", "b"]})
    bodies, _, _ = built(frame, lambda text: {field: text}, endpoint=endpoint)
    assert bodies == [canonical_json({"model": "m", field: text}) for text in "ab"]
    bodies, _, fates = built(frame, lambda text: text, endpoint=endpoint)
    assert not bodies
    [reason] = fates.counts()
    assert "of type str" in reason
    assert "as a dict" in reason


def test_a_declaration_that_is_wrong_raises() -> None:
    """What no row could change is said once, as an error, before any row is asked."""
    with pytest.raises(ConfigurationError, match="no place for system"):
        built(pl.DataFrame({"text": ["a"]}), lambda text: text, endpoint=Endpoint.EMBEDDINGS, system="Be brief.")
