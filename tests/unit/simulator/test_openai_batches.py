import io
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import openai
import pytest

from prefect_llm_tiers.simulator.settings import BatchLaw, WorldSettings
from tests.unit.simulator.box import Box, openai_lines

HOUR = BatchLaw(median_s=3600, sigma=0, stuck_share=0)


async def results(box: Box, file_id: str | None) -> dict[str, Any]:
    """Return a result file's lines by custom_id."""
    assert file_id is not None
    content = await box.openai().files.content(file_id)
    lines = [json.loads(line) for line in content.text.splitlines()]
    return {line["custom_id"]: line for line in lines}


def test_a_batch_lives_and_its_lines_answer_every_row() -> None:
    """validating, in_progress with growing counts, finalizing, completed; one line a row, in any order."""
    box = Box(WorldSettings(batch=HOUR))

    async def live() -> tuple[list[str], list[int], dict[str, Any], list[str]]:
        client = box.openai()
        batch = await box.openai_batch(openai_lines(600))
        statuses: list[str] = [batch.status]
        done: list[int] = []
        for _ in range(80):
            await box.wait(minutes=1)
            batch = await client.batches.retrieve(batch.id)
            assert batch.request_counts is not None
            done.append(batch.request_counts.completed)
            if batch.status != statuses[-1]:
                statuses.append(batch.status)
            if batch.status != "completed":
                assert batch.output_file_id is None
        assert batch.error_file_id is None
        assert batch.metadata == {"token": "t-1"}
        assert batch.model == "gpt-6-luna"
        content = await client.files.content(batch.output_file_id or "")
        again = await client.files.content(batch.output_file_id or "")
        assert content.text == again.text
        listed = await client.files.retrieve(batch.output_file_id or "")
        assert listed.bytes == len(content.content)
        return statuses, done, await results(box, batch.output_file_id), content.text.splitlines()

    statuses, done, lines, raw = box.run(live())
    assert statuses in (
        ["validating", "in_progress", "completed"],
        ["validating", "in_progress", "finalizing", "completed"],
    )
    assert done == sorted(done)
    assert set(done) - {0, 600}
    assert set(lines) == {f"row-{number}" for number in range(600)}
    assert lines["row-7"]["response"]["status_code"] == 200
    assert lines["row-7"]["error"] is None
    assert [json.loads(line)["custom_id"] for line in raw] != [f"row-{number}" for number in range(600)]
    account = box.simulation.account()
    assert (account.asked, account.answered, account.batches_created, account.files_uploaded) == (
        600,
        600,
        1,
        1,
    )


def test_a_batch_does_the_same_in_every_world_of_a_seed() -> None:
    """The law of a batch and the order of its rows follow from the seed and its number."""

    def ended(seed: int) -> tuple[int, str]:
        box = Box(WorldSettings(seed=seed))

        async def live() -> tuple[int, str]:
            batch = await box.openai_batch(openai_lines(20))
            await box.wait(hours=25)
            batch = await box.openai().batches.retrieve(batch.id)
            content = await box.openai().files.content(batch.output_file_id or "")
            return batch.completed_at or 0, content.text

        return box.run(live())

    assert ended(1) == ended(1)
    assert ended(1)[0] != ended(2)[0]


def test_bursty_progress_ends_in_one_jump() -> None:
    """Bursty progress takes at most four values before it is whole."""
    box = Box(WorldSettings(batch=BatchLaw(median_s=3600, sigma=0, stuck_share=0, progress="bursty")))

    async def live() -> set[int]:
        batch = await box.openai_batch(openai_lines(500))
        seen = set()
        for _ in range(130):
            await box.wait(seconds=30)
            batch = await box.openai().batches.retrieve(batch.id)
            assert batch.request_counts is not None
            seen.add(batch.request_counts.completed)
        return seen

    seen = box.run(live())
    assert len(seen) <= 5
    assert 500 in seen


def test_an_expired_batch_keeps_what_was_done() -> None:
    """At 24 h done rows are in the output file and billed; the rest says batch_expired and is not."""
    law = BatchLaw(median_s=3600, sigma=0, stuck_share=0, stuck_s=(40 * 3600.0, 41 * 3600.0))
    box = Box(WorldSettings(batch=law, stuck_batches=("openai:0",)))

    async def live() -> tuple[dict[str, Any], dict[str, Any]]:
        batch = await box.openai_batch(openai_lines(100))
        await box.wait(hours=23.9)
        assert (await box.openai().batches.retrieve(batch.id)).status == "in_progress"
        await box.wait(hours=0.2)
        batch = await box.openai().batches.retrieve(batch.id)
        assert batch.status == "expired"
        return await results(box, batch.output_file_id), await results(box, batch.error_file_id)

    done, expired = box.run(live())
    assert len(done) + len(expired) == 100
    assert not set(done) & set(expired)
    assert 0 < len(done) < 100
    assert {line["error"]["code"] for line in expired.values()} == {"batch_expired"}
    assert all(line["response"] is None for line in expired.values())
    assert box.simulation.account().answered == len(done)


def test_a_cancelled_batch_is_harvested() -> None:
    """Rows go on being done, and billed, until the cancel is final within ten minutes."""
    box = Box(WorldSettings(batch=HOUR))

    async def live() -> tuple[int, dict[str, Any], dict[str, Any]]:
        client = box.openai()
        batch = await box.openai_batch(openai_lines(400))
        await box.wait(minutes=45)
        cancelled = await client.batches.cancel(batch.id)
        assert cancelled.status == "cancelling"
        assert cancelled.output_file_id is None
        again = await client.batches.cancel(batch.id)
        assert again.cancelling_at == cancelled.cancelling_at
        assert cancelled.request_counts is not None
        at_cancel = cancelled.request_counts.completed
        await box.wait(minutes=11)
        batch = await client.batches.retrieve(batch.id)
        assert batch.status == "cancelled"
        with pytest.raises(openai.ConflictError):
            await client.batches.cancel(batch.id)
        return at_cancel, await results(box, batch.output_file_id), await results(box, batch.error_file_id)

    at_cancel, done, undone = box.run(live())
    assert at_cancel < len(done) < 400
    assert len(done) + len(undone) == 400
    account = box.simulation.account()
    assert account.answered == len(done)
    assert account.batches_cancelled == 1


def test_rows_may_fail_alone() -> None:
    """The provider's own error on a row is a 500 line in the error file, unbilled."""
    box = Box(WorldSettings(batch=HOUR, batch_row_error_rate=0.3))

    async def live() -> tuple[dict[str, Any], dict[str, Any]]:
        batch = await box.openai_batch(openai_lines(100))
        await box.wait(hours=2)
        batch = await box.openai().batches.retrieve(batch.id)
        assert batch.status == "completed"
        return await results(box, batch.output_file_id), await results(box, batch.error_file_id)

    done, failed = box.run(live())
    assert len(done) + len(failed) == 100
    assert 15 < len(failed) < 45
    assert {line["response"]["status_code"] for line in failed.values()} == {500}
    assert box.simulation.account().answered == len(done)


def test_bodies_are_judged_row_by_row() -> None:
    """A tier or a stream in a batch body fails its row as a 400 line; the batch completes."""
    box = Box(WorldSettings(batch=HOUR))

    async def live(lines: bytes) -> dict[str, Any]:
        batch = await box.openai_batch(lines)
        await box.wait(hours=2)
        batch = await box.openai().batches.retrieve(batch.id)
        assert (batch.status, batch.output_file_id) == ("completed", None)
        return await results(box, batch.error_file_id)

    for extra, param in (
        ({"service_tier": "flex"}, "service_tier"),
        ({"stream": True}, "stream"),
        ({"zz": 1}, "zz"),
    ):
        line = box.run(live(openai_lines(1, **extra)))["row-0"]["response"]
        assert (line["status_code"], line["body"]["error"]["param"]) == (400, param)
    assert box.simulation.account().billed_usd == 0


def changed(**change: Any) -> Callable[[dict[str, Any]], None]:
    """Return a change of a line: fields set, or taken away where None."""

    def change_line(line: dict[str, Any]) -> None:
        for name, value in change.items():
            if value is None:
                del line[name]
            else:
                line[name] = value

    return change_line


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (changed(custom_id="row-0"), "duplicate_custom_id"),
        pytest.param(changed(custom_id=None), "missing_required_parameter", id="no custom_id"),
        pytest.param(changed(body=None), "missing_required_parameter", id="no body"),
        (changed(method="GET"), "invalid_method"),
        (changed(url="/v1/chat/completions"), "url_mismatch"),
        (changed(priority=1), "unknown_parameter"),
        (changed(body={"model": "gpt-6.1-sol", "input": "x"}), "model_mismatch"),
        (changed(body={"model": "nope", "input": "x"}), "model_not_found"),
    ],
)
def test_a_bad_line_fails_the_whole_batch_later(change: Callable[[dict[str, Any]], None], code: str) -> None:
    """Creation succeeds, validating follows, then failed with the line's error; nothing is billed."""
    box = Box()
    lines = [json.loads(line) for line in openai_lines(3).splitlines()]
    change(lines[1])

    async def live() -> Any:
        batch = await box.openai_batch("\n".join(map(json.dumps, lines)).encode())
        assert batch.status == "validating"
        await box.wait(minutes=1)
        return await box.openai().batches.retrieve(batch.id)

    batch = box.run(live())
    assert batch.status == "failed"
    assert [(error.code, error.line) for error in batch.errors.data] == [(code, 2)]
    assert batch.failed_at is not None
    assert box.simulation.account().asked == 0


@pytest.mark.parametrize(
    ("content", "settings", "code"),
    [
        (b"", {}, "empty_file"),
        (b"{nonsense\n", {}, "invalid_json_line"),
        (openai_lines(4), {"batch_requests": {"openai": 3, "anthropic": 3}}, "too_many_tasks"),
        (openai_lines(4), {"batch_bytes": {"openai": 300, "anthropic": 300}}, "file_too_large"),
        (openai_lines(40), {"enqueued_tokens": 100}, "token_limit_exceeded"),
    ],
)
def test_a_bad_file_fails_the_whole_batch_later(content: bytes, settings: dict[str, Any], code: str) -> None:
    """Limits of a file show after validation, as the batch's error."""
    box = Box(WorldSettings(**settings))

    async def live() -> Any:
        batch = await box.openai_batch(content)
        await box.wait(minutes=1)
        return await box.openai().batches.retrieve(batch.id)

    batch = box.run(live())
    assert (batch.status, batch.errors.data[0].code) == ("failed", code)


def test_enqueued_tokens_are_free_again_when_a_batch_ends() -> None:
    """The ceiling counts unfinished batches only."""
    box = Box(WorldSettings(batch=HOUR, enqueued_tokens=250))

    async def live() -> list[str]:
        client = box.openai()
        statuses: list[str] = []
        for wait_h in (0.1, 2.0, 0.1):
            batch = await box.openai_batch(openai_lines(15))
            await box.wait(hours=wait_h)
            statuses.append((await client.batches.retrieve(batch.id)).status)
        return statuses

    assert box.run(live()) == ["in_progress", "failed", "in_progress"]


@pytest.mark.parametrize(
    "change",
    [
        {"endpoint": "/v1/nonsense"},
        {"completion_window": "48h"},
        {"input_file_id": "file-nope"},
        {"metadata": {"k" * 65: "v"}},
        {"metadata": {str(n): "v" for n in range(17)}},
        {"output_expires_after": {"anchor": "created_at", "seconds": 10}},
        {"extra_body": {"priority": 1}},
    ],
)
def test_a_bad_creation_is_refused_at_once(change: Any) -> None:
    """Faults of the call itself, not of its file, are 400 and create nothing."""
    box = Box()

    async def create() -> None:
        client = box.openai()
        file = await client.files.create(file=("a.jsonl", io.BytesIO(openai_lines(1))), purpose="batch")
        call: dict[str, Any] = {
            "input_file_id": file.id,
            "endpoint": "/v1/responses",
            "completion_window": "24h",
        }
        await client.batches.create(**(call | change))

    with pytest.raises(openai.BadRequestError):
        box.run(create())
    assert box.simulation.account().batches_created == 0


def test_lists_page_newest_first() -> None:
    """List walks all batches through its pages, newest first."""
    box = Box()

    async def walk() -> tuple[list[str], list[str]]:
        created = []
        for _ in range(7):
            created.append((await box.openai_batch(openai_lines(1))).id)
            await box.wait(minutes=1)
        first = await box.openai().batches.list(limit=3)
        assert first.has_more
        listed = [batch.id async for batch in box.openai().batches.list(limit=3)]
        return created, listed

    created, listed = box.run(walk())
    assert listed == created[::-1]


def test_files_can_be_read_and_deleted() -> None:
    """An upload comes back byte for byte until it is deleted; a taken batch does not need it any more."""
    box = Box(WorldSettings(batch=HOUR))
    content = openai_lines(5000)

    async def live() -> Any:
        client = box.openai()
        file = await client.files.create(
            file=("a.jsonl", io.BytesIO(content)),
            purpose="batch",
            expires_after={"anchor": "created_at", "seconds": 7200},
        )
        assert (file.bytes, file.expires_at) == (len(content), file.created_at + 7200)
        assert (await client.files.content(file.id)).content == content
        batch = await client.batches.create(input_file_id=file.id, endpoint="/v1/responses", completion_window="24h")
        assert (await client.files.delete(file.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.files.content(file.id)
        await box.wait(hours=2)
        return await client.batches.retrieve(batch.id)

    batch = box.run(live())
    assert (batch.status, batch.request_counts.completed) == ("completed", 5000)


def test_results_expire() -> None:
    """Result files are gone after output_expires_after."""
    box = Box(WorldSettings(batch=HOUR))

    async def live() -> None:
        client = box.openai()
        file = await client.files.create(file=("a.jsonl", io.BytesIO(openai_lines(2))), purpose="batch")
        batch = await client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/responses",
            completion_window="24h",
            output_expires_after={"anchor": "created_at", "seconds": 3600},
        )
        await box.wait(hours=1.5)
        batch = await client.batches.retrieve(batch.id)
        await client.files.content(batch.output_file_id or "")
        await box.wait(hours=1)
        with pytest.raises(openai.NotFoundError):
            await client.files.content(batch.output_file_id or "")

    box.run(live())


def test_the_law_of_a_batch_is_drawn_by_its_number() -> None:
    """Over many batches the time follows the log-normal's median and the stuck share."""
    law = BatchLaw(median_s=1200, sigma=0.5, stuck_share=0.25, stuck_s=(7200, 9000))
    box = Box(WorldSettings(batch=law))

    async def live() -> list[float]:
        client = box.openai()
        batches = [await box.openai_batch(openai_lines(1)) for _ in range(200)]
        await box.wait(hours=24)
        took = []
        for batch in batches:
            ended = await client.batches.retrieve(batch.id)
            took.append(float((ended.finalizing_at or 0) - ended.created_at))
        return sorted(took)

    took = box.run(live())
    kinds = Counter(seconds >= 7199 for seconds in took)
    assert 30 <= kinds[True] <= 70
    quick = [seconds for seconds in took if seconds < 7199]
    assert 1050 < quick[len(quick) // 2] < 1350
