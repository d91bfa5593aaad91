"""The throttle and the circuit, in simulated time."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from prefect_llm_tiers.engine.throttle import Circuit, Throttle
from prefect_llm_tiers.simulator.clock import SimulatedClock

START = datetime(2026, 11, 21, tzinfo=UTC)


def in_time(work: Callable[[SimulatedClock], Awaitable[None]]) -> None:
    """Run `work` on a simulated clock."""
    clock = SimulatedClock(START, lambda: START)

    async def main() -> None:
        await work(clock)

    clock.run(main(), name="test")


def test_no_more_calls_than_the_limit_are_in_flight() -> None:
    """Whoever comes too many waits until one ends; nobody is forgotten."""

    async def work(clock: SimulatedClock) -> None:
        throttle = Throttle(clock, ceiling=4, start=2)
        flying = peak = done = 0

        async def call() -> None:
            nonlocal flying, peak, done
            await throttle.acquire()
            flying += 1
            peak = max(peak, flying)
            await clock.sleep_until(clock.now() + timedelta(seconds=1))
            flying -= 1
            done += 1
            throttle.release()

        await asyncio.gather(*(call() for _ in range(50)))
        assert peak == 2
        assert done == 50

    in_time(work)


def test_the_limit_grows_by_one_a_round_up_to_its_ceiling_and_is_cut_by_half() -> None:
    """Additive growth, multiplicative cut; calls that hit the limit together cut once."""

    async def work(clock: SimulatedClock) -> None:
        throttle = Throttle(clock, ceiling=6, start=4)
        for _ in range(4):
            throttle.succeeded()
        assert throttle.limit == 5
        for _ in range(100):
            throttle.succeeded()
        assert throttle.limit == 6
        for _ in range(10):
            throttle.limited(retry_after_s=None)
        assert throttle.limit == 3
        await clock.sleep_until(clock.now() + timedelta(seconds=5))
        for _ in range(4):
            throttle.limited(retry_after_s=None)
            await clock.sleep_until(clock.now() + timedelta(seconds=5))
        assert throttle.limit == 1

    in_time(work)


def test_a_pause_that_the_provider_asks_for_is_kept() -> None:
    """No call starts before `retry-after` has passed."""

    async def work(clock: SimulatedClock) -> None:
        throttle = Throttle(clock, ceiling=4)
        throttle.limited(retry_after_s=30)
        await throttle.acquire()
        assert clock.now() == START + timedelta(seconds=30)

    in_time(work)


def test_calls_start_no_faster_than_the_accounts_rate() -> None:
    """At 60 requests a minute the tenth call starts nine seconds after the first."""

    async def work(clock: SimulatedClock) -> None:
        throttle = Throttle(clock, ceiling=100, requests_per_minute=60, start=100)
        await asyncio.gather(*(throttle.acquire() for _ in range(10)))
        assert clock.now() == START + timedelta(seconds=9)

    in_time(work)


def test_a_waiter_that_is_cancelled_takes_no_place() -> None:
    """A place that was handed to a cancelled waiter goes to the next."""

    async def work(clock: SimulatedClock) -> None:
        throttle = Throttle(clock, ceiling=1, start=1)
        await throttle.acquire()
        given_up = asyncio.create_task(throttle.acquire())
        patient = asyncio.create_task(throttle.acquire())
        await clock.sleep_until(clock.now() + timedelta(seconds=1))
        throttle.release()
        given_up.cancel()
        async with asyncio.timeout(60):
            await patient

    in_time(work)


def test_an_open_circuit_is_probed_by_one_call_after_a_minute() -> None:
    """The others wait for what the probe finds, and go when it came through."""

    async def work(clock: SimulatedClock) -> None:
        circuit = Circuit(clock)
        assert not await circuit.enter()
        circuit.refused()
        assert circuit.is_open
        went: list[tuple[bool, datetime]] = []

        async def call() -> None:
            probe = await circuit.enter()
            went.append((probe, clock.now()))
            if probe:
                await clock.sleep_until(clock.now() + timedelta(seconds=3))
                circuit.answered()

        await asyncio.gather(*(call() for _ in range(5)))
        assert [probe for probe, _ in went] == [True, False, False, False, False]
        assert went[0][1] == START + Circuit.REFUSED
        assert all(at >= START + Circuit.REFUSED + timedelta(seconds=3) for _, at in went[1:])

    in_time(work)


def test_a_stall_holds_the_circuit_open_for_longer_than_a_refusal() -> None:
    """A refusal costs milliseconds, a stall a whole timeout."""

    async def work(clock: SimulatedClock) -> None:
        circuit = Circuit(clock)
        circuit.refused(stalled=True)
        assert await circuit.enter()
        assert clock.now() == START + Circuit.STALLED > START + Circuit.REFUSED

    in_time(work)


def test_an_outage_is_counted_from_its_first_refusal_to_the_next_answer() -> None:
    """Found down or fallen later, over or still lasting: the law of outages needs to know each."""

    async def work(clock: SimulatedClock) -> None:
        circuit = Circuit(clock)

        async def later(minutes: float) -> None:
            await clock.sleep_until(clock.now() + timedelta(minutes=minutes))

        circuit.refused()
        await later(5)
        circuit.refused()
        assert circuit.found_down(clock.now())
        await later(5)
        circuit.answered()
        assert (circuit.down(clock.now()), circuit.recoveries) == (timedelta(minutes=10), 1)
        await later(30)
        circuit.refused()
        await later(3)
        assert (circuit.down(clock.now()), circuit.recoveries) == (timedelta(minutes=13), 1)
        assert circuit.found_down(clock.now())

    in_time(work)


def test_a_refusal_that_the_next_call_disproves_is_no_outage() -> None:
    """Of many calls in flight some may be refused while the others go through."""

    async def work(clock: SimulatedClock) -> None:
        circuit = Circuit(clock)
        for _ in range(20):
            circuit.refused()
            await clock.sleep_until(clock.now() + timedelta(seconds=2))
            circuit.answered()
        assert (circuit.down(clock.now()), circuit.recoveries) == (timedelta(0), 0)
        assert not circuit.found_down(clock.now())

    in_time(work)


def test_a_start_that_is_not_used_is_the_next_ones() -> None:
    """A call that turned out not to be needed costs no turn of the account's rate."""

    async def work(clock: SimulatedClock) -> None:
        throttle = Throttle(clock, ceiling=4, requests_per_minute=6)
        for _ in range(20):
            await throttle.acquire()
            throttle.unused()
            throttle.release()
        assert clock.now() == START
        for _ in range(2):
            await throttle.acquire()
        assert clock.now() == START + timedelta(seconds=10)

    in_time(work)
