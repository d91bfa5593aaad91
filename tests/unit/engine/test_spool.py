"""The spool: what was put in comes out, and equal questions are found."""

import asyncio
import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_llm_tiers.core.requests import KEY_LENGTH, Request, canonical_json, custom_id, request_key
from prefect_llm_tiers.engine import spool as spool_module
from prefect_llm_tiers.engine.outgoing import OutgoingLines
from prefect_llm_tiers.engine.spool import Spool


def request(text: str) -> Request:
    """Return a request with a body of its own."""
    body = canonical_json({"input": text})
    return Request(key=request_key(account="a", endpoint="/v1/responses", body=body), body=body)


@given(st.lists(st.lists(st.text(st.characters(codec="utf-8"), max_size=3), max_size=8), max_size=5))
def test_requests_come_back_by_position_and_by_key(groups: list[list[str]]) -> None:
    """Any grouping of appends gives the same spool; repeats are stood for by the first of their key."""
    texts = [text for group in groups for text in group]
    with Spool() as spool:
        for group in groups:
            spool.append([request(text) for text in group])
        spool.seal()
        assert len(spool) == len(texts)
        assert [spool.read(position) for position in range(len(spool))] == [request(text) for text in texts]
        firsts = [texts.index(text) for text in texts]
        assert spool.first.tolist() == firsts
        assert spool.distinct.tolist() == sorted(set(firsts))
        keys = [request(text).key for text in texts]
        assert spool.positions([*keys, "0" * 43]) == [*firsts, None]
        assert spool.keys(spool.first) == keys


def test_the_digest_depends_on_keys_and_their_order() -> None:
    """A row that moved makes another digest; the way of appending does not."""

    def digest(*groups: list[str]) -> str:
        with Spool() as spool:
            for group in groups:
                spool.append([request(text) for text in group])
            spool.seal()
            return spool.digest

    assert digest(["a", "b"]) == digest(["a"], ["b"])
    assert digest(["a", "b"]) != digest(["b", "a"])


def test_a_row_at_a_time_can_be_read_in_any_order() -> None:
    """Reading moves no state that another read depends on."""
    with Spool() as spool:
        spool.append([request(str(number)) for number in range(10)])
        spool.seal()
        assert [spool.read(position).body for position in (7, 0, 7, 9)] == [
            request(text).body for text in ("7", "0", "7", "9")
        ]


# Keys that begin alike have one mark in the spool's index, as two hashes may by chance.
ALIKE = st.sampled_from([first * 8 + last * (KEY_LENGTH - 8) for first in "ab" for last in "xyz"])


@given(st.lists(ALIKE, max_size=30), st.integers(1, 9))
def test_keys_that_begin_alike_are_told_apart(keys: list[str], at_once: int) -> None:
    """What stands for a key is the first position of exactly that key, however many share its mark."""
    before = spool_module._AT_ONCE
    spool_module._AT_ONCE = at_once
    try:
        with Spool() as spool:
            spool.append([Request(key=key, body=b"{}") for key in keys])
            spool.seal()
            firsts = [keys.index(key) for key in keys]
            assert spool.first.tolist() == firsts
            assert spool.distinct.tolist() == sorted(set(firsts))
            assert spool.positions(keys) == firsts
            assert spool.positions(["a" * 8 + "w" * (KEY_LENGTH - 8)]) == [None]
    finally:
        spool_module._AT_ONCE = before


@pytest.mark.parametrize("rows", [0, 1, 100, 5000])
def test_marks_are_in_order_however_many_pieces_they_are_sorted_in(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key is found when its marks were sorted a few at a time."""
    monkeypatch.setattr(spool_module, "_SORTED_AT_ONCE", 64)
    with Spool() as spool:
        requests = [request(str(number)) for number in range(rows)]
        spool.append(requests)
        spool.append(requests[: rows // 2])
        spool.seal()
        shuffled = np.random.default_rng(7).permutation(rows).tolist()
        assert spool.positions([requests[number].key for number in shuffled]) == shuffled
        assert spool.distinct.tolist() == list(range(rows))


@given(
    st.lists(st.binary(max_size=20), min_size=1, max_size=12),
    st.integers(1, 3),
    st.integers(1, 40),
    st.data(),
)
def test_bodies_are_read_in_any_order(bodies: list[bytes], samples: int, at_once: int, data: st.DataObject) -> None:
    """Reading some together gives what reading each alone does, with bodies that several samples share."""
    before = spool_module._READ_BYTES
    spool_module._READ_BYTES = at_once
    try:
        with Spool() as spool:
            keys = [f"{number:043d}" for number in range(len(bodies) * samples)]
            spool.extend("".join(keys).encode(), bodies, samples=samples)
            spool.seal()
            wanted = data.draw(st.lists(st.integers(0, len(keys) - 1), max_size=20))
            read = list(itertools.chain.from_iterable(spool.bodies(wanted)))
            assert read == [bodies[position // samples] for position in wanted]
            assert read == [spool.read(position).body for position in wanted]
            assert spool.keys(wanted) == [keys[position] for position in wanted]
            assert spool.body_bytes(np.array(wanted, dtype=np.int64)) == sum(map(len, read))
    finally:
        spool_module._READ_BYTES = before


def test_an_unfinished_spool_that_changes_its_samples_keeps_them_apart() -> None:
    """Requests that were added in different numbers of samples stand as they were added."""
    with Spool() as spool:
        spool.append([request("a")])
        spool.extend(("k" * 43 + "l" * 43).encode(), [b"{}"], samples=2)
        spool.append([request("b")])
        spool.seal()
        assert [spool.read(position).body for position in range(4)] == [
            request("a").body,
            b"{}",
            b"{}",
            request("b").body,
        ]


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=5), max_size=12), st.integers(1, 5), st.randoms())
def test_lines_that_are_encoded_together_are_those_of_one_after_the_other(
    texts: list[str], group: int, rng: random.Random
) -> None:
    """The two ways out of the spool give one and the same upload."""
    token = "t" * 20

    async def main() -> None:
        with Spool() as spool:
            spool.append([request(text) for text in texts])
            spool.seal()
            keys = spool.keys(spool.distinct)
            rng.shuffle(keys)
            groups = [keys[start : start + group] for start in range(0, len(keys), group)]
            lines = OutgoingLines(spool, lambda: groups, token=token)
            singly = [b"<" + line.custom_id.encode() + b"|" + line.body + b">\n" async for line in lines]
            together = [block async for block in lines.encoded(b"<", b"|", b">\n")]
            bodies = {one.key: one.body for one in map(request, texts)}
            assert singly == [b"<%b|%b>\n" % (custom_id(key, token).encode(), bodies[key]) for key in keys]
            assert b"".join(together) == b"".join(singly)

    asyncio.run(main())
