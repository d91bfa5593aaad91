"""The spool: what was put in comes out, and equal questions are found."""

from hypothesis import given
from hypothesis import strategies as st

from prefect_llm_tiers.core.requests import Request, canonical_json, request_key
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
