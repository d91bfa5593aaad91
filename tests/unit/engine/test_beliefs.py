"""What the engine sees of latencies, and what the next plan makes of it."""

from datetime import timedelta
from pathlib import Path

from prefect_llm_tiers.core.observations import ObservedBatch, ObservedLane
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.engine.job import LaterStep
from prefect_llm_tiers.planning.priors import LiveRate
from prefect_llm_tiers.planning.problem import PRIORS
from prefect_llm_tiers.providers.capabilities import Dialect
from prefect_llm_tiers.simulator.settings import BatchLaw, FlexOutages
from tests.unit.engine.box import MODELS, START, Box, documents, until

HOUR = timedelta(hours=1)


def lanes(box: Box, tier: Tier, model: str = MODELS[Dialect.OPENAI]) -> list[ObservedLane]:
    """What the ledger has of a live tier."""
    return box.ledger.observed_lanes(provider="openai", model=model, account=None, tier=tier)


def batches(box: Box) -> list[ObservedBatch]:
    """What the ledger has of batches."""
    return box.ledger.observed_batches(
        provider="openai", model=MODELS[Dialect.OPENAI], account=None, now=box.clock.now()
    )


def test_a_lane_tells_what_it_asked_and_how_fast(tmp_path: Path) -> None:
    """Requests, time, calls in flight, the latency of a call and the tokens of an answer are written down."""
    box = Box.at(tmp_path)
    process = box.carry_out(tiers=(Tier.STANDARD,), prompts=documents(50))
    (lane,) = lanes(box, Tier.STANDARD)
    assert (lane.requests, lane.visits, lane.concurrency, lane.began_at) == (50, 1, 16, START)
    assert process.done is not None
    assert timedelta(0) < lane.latency < lane.busy <= process.done.finished_at - START
    assert lane.output_tokens > 0
    assert (lane.found_down, lane.down, lane.recoveries) == (False, timedelta(0), 0)


def test_a_run_that_asks_nothing_saw_nothing(tmp_path: Path) -> None:
    """Answers that were there before say nothing of how fast they come."""
    box = Box.at(tmp_path)
    box.carry_out(tiers=(Tier.STANDARD,))
    box.carry_out("second", id="run-2", tiers=(Tier.STANDARD,))
    assert len(lanes(box, Tier.STANDARD)) == 1


def test_a_flex_outage_is_no_slowness_of_flex(tmp_path: Path) -> None:
    """The time in which the tier took no calls is told apart from the time in which it worked."""
    box = Box.at(tmp_path, flex_outages=FlexOutages(mean_up_s=30, mean_down_s=1800), seed=3)
    box.carry_out(tiers=(Tier.FLEX,), due_in=None, prompts=documents(50))
    (lane,) = lanes(box, Tier.FLEX)
    assert lane.requests == 50
    assert lane.down > timedelta(minutes=1)
    assert lane.recoveries >= 1
    assert lane.busy + lane.down == box.clock.now() - START


def test_a_run_that_is_taken_over_adds_to_one_row(tmp_path: Path) -> None:
    """A second process of the run brings its own visit and repeats nothing of the first one's."""
    box = Box.at(tmp_path)
    box.process("first", until(START + timedelta(seconds=1)), tiers=(Tier.STANDARD,), prompts=documents(50))
    box.carry_out("second", tiers=(Tier.STANDARD,), prompts=documents(50))
    (lane,) = lanes(box, Tier.STANDARD)
    assert lane.requests == 50


def test_plans_say_that_they_rest_on_priors_until_something_was_seen(tmp_path: Path) -> None:
    """The first plan knows nothing, and says so; the second knows one night, and says that it weighs little."""
    box = Box.at(tmp_path, batch=BatchLaw(median_s=900, sigma=0.1, stuck_share=0))
    first = box.carry_out(due_in=None)
    second = box.carry_out("second", id="run-2", due_in=None, prompts=documents(30))
    assert first.notes.plans[0].basis == PRIORS
    assert second.notes.plans[0].basis == "priors, which outweigh 1 batch of 1 night"


def test_the_tenth_night_is_planned_by_what_the_nine_before_it_showed(tmp_path: Path) -> None:
    """Batches of two hours, night after night, end in a plan that expects batches of about two hours."""
    box = Box.at(tmp_path, batch=BatchLaw(median_s=7200, sigma=0.1, stuck_share=0))
    for night in range(10):
        box.clock.run(box.clock.sleep_until(START + night * 24 * HOUR), name=f"evening-{night}")
        process = box.carry_out(
            f"night-{night}", id=f"run-{night}", due_in=None, prompts=[f"Night {night}: {n}" for n in range(5)]
        )
    first, last = box.ledger.step_run("run-0"), process.notes.plans[0]
    assert first is not None
    assert last.basis == "9 batches of 9 nights"
    law = last.step("summary").batch
    assert law is not None
    assert 4500 < law.median_s < 7500
    assert all(not one.censored for one in batches(box))


def test_later_steps_of_the_chain_are_planned_by_what_was_seen_of_their_models(tmp_path: Path) -> None:
    """A step's own history tells nothing of another model; that model's own does."""
    box = Box.at(tmp_path, batch=BatchLaw(median_s=7200, sigma=0.1, stuck_share=0))
    box.carry_out(due_in=None)
    later = tuple(
        LaterStep(
            name=name,
            provider="openai",
            model=model,
            tiers=(Tier.BATCH, Tier.STANDARD),
            after=("summary",),
            rate=LiveRate(concurrency=16),
            window=24 * HOUR,
            cancel=timedelta(minutes=10),
            input_tokens=20.0,
            output_tokens=40.0,
        )
        for name, model in (("same", MODELS[Dialect.OPENAI]), ("other", "gpt-6"))
    )
    process = box.carry_out("second", id="run-2", due_in=None, prompts=documents(30), later=later)
    plan = process.notes.plans[0]
    same, other = plan.step("same").batch, plan.step("other").batch
    assert same is not None
    assert other is not None
    assert same == plan.step("summary").batch
    assert other.median_s < same.median_s
