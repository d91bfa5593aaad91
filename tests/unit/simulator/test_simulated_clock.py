import asyncio
import contextlib
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import anyio.to_thread
import pytest

from prefect_llm_tiers.engine.system import SystemClock
from prefect_llm_tiers.errors import ConfigurationError
from prefect_llm_tiers.simulator.clock import ScaledClock, SimulatedClock

START = datetime(2026, 11, 2, tzinfo=UTC)
WALL = datetime(2030, 1, 1, tzinfo=UTC)


def make_clock(*, stall_s: float = 10.0) -> SimulatedClock:
    """Return a clock at START."""
    return SimulatedClock(START, lambda: WALL, stall_s=stall_s)


def test_waiting_for_months_jumps_to_the_instant_waited_for() -> None:
    """A wait ends exactly at its instant, never before, and costs no real time."""
    clock = make_clock()

    async def wait() -> list[datetime]:
        seen = []
        for day in range(1, 121):
            await clock.sleep_until(START + timedelta(days=day, microseconds=day))
            seen.append(clock.now())
        return seen

    assert clock.run(wait(), name="a") == [START + timedelta(days=d, microseconds=d) for d in range(1, 121)]


def test_a_past_instant_is_no_wait() -> None:
    """sleep_until of the past returns without a jump."""
    clock = make_clock()
    clock.run(clock.sleep_until(START - timedelta(days=1)), name="a")
    assert clock.now() == START


def test_the_wall_is_the_injected_one() -> None:
    """wall() is what the callable says, whatever simulated time does."""
    clock = make_clock()
    clock.run(clock.sleep_until(START + timedelta(days=3)), name="a")
    assert clock.wall() == WALL


def test_time_goes_on_between_runs() -> None:
    """A second run starts where the first one ended."""
    clock = make_clock()
    clock.run(clock.sleep_until(START + timedelta(hours=5)), name="a")
    clock.run(asyncio.sleep(60), name="b")
    assert clock.now() == START + timedelta(hours=5, minutes=1)


def test_timeouts_of_asyncio_and_anyio_are_simulated() -> None:
    """asyncio.timeout and anyio's cancel scopes end in simulated time."""
    clock = make_clock()

    async def wait() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600):
                await asyncio.Event().wait()
        with anyio.move_on_after(3600) as scope:
            await anyio.sleep_forever()
        assert scope.cancelled_caught

    clock.run(wait(), name="a")
    assert clock.now() == START + timedelta(hours=2)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_announced_runs_are_in_the_same_order_every_time(threads: int) -> None:
    """Eight workers over 1, 2 or 4 loops interleave alike in every repetition."""

    def order() -> list[tuple[int, int, float]]:
        clock = make_clock()
        seen: list[tuple[int, int, float]] = []

        async def worker(number: int) -> None:
            for turn in range(20):
                await asyncio.sleep((turn * 7 + number * 3) % 11)
                seen.append((number, turn, (clock.now() - START).total_seconds()))

        async def workers(thread: int) -> None:
            await asyncio.gather(*(worker(number) for number in range(thread, 8, threads)))

        def run(thread: int) -> None:
            clock.run(workers(thread), name=f"thread-{thread}")

        runs = [threading.Thread(target=run, args=(thread,)) for thread in range(threads)]
        with clock.hold(*(f"thread-{thread}" for thread in range(threads))):
            for each in reversed(runs):
                each.start()
        for each in runs:
            each.join()
        return seen

    first = order()
    assert len(first) == 160
    assert [second for _, _, second in first] == sorted(second for _, _, second in first)
    assert all(order() == first for _ in range(5))


def test_time_stands_still_while_a_loop_is_busy() -> None:
    """A wake-up of one loop does not fire while another loop's thread still works."""
    clock = make_clock()
    works = threading.Event()
    slept = threading.Event()
    early: list[bool] = []

    async def busy() -> None:
        works.set()
        # Blocks the loop's thread: the sleeper's wake-up must not come meanwhile.
        early.append(slept.wait(0.3))
        await asyncio.sleep(7200)

    async def sleeper() -> None:
        await asyncio.sleep(3600)
        slept.set()

    def run_sleeper() -> None:
        works.wait()
        clock.run(sleeper(), name="sleeper")

    thread = threading.Thread(target=run_sleeper)
    thread.start()
    clock.run(busy(), name="busy")
    thread.join()
    assert early == [False]
    assert slept.is_set()
    assert clock.now() == START + timedelta(hours=2)


def test_a_callback_from_another_loop_comes_before_any_jump() -> None:
    """What one loop hands to another is taken at the instant it was handed over."""
    clock = make_clock()
    loops: dict[str, asyncio.AbstractEventLoop] = {}
    futures: dict[str, asyncio.Future[float]] = {}
    took: list[tuple[float, float]] = []

    async def taker() -> None:
        loops["taker"] = asyncio.get_running_loop()
        for _ in range(50):
            futures["next"] = asyncio.get_running_loop().create_future()
            handed = await futures["next"]
            took.append((handed, asyncio.get_running_loop().time()))

    async def giver() -> None:
        for _ in range(50):
            await asyncio.sleep(1)
            loops["taker"].call_soon_threadsafe(futures["next"].set_result, asyncio.get_running_loop().time())

    threads = [
        threading.Thread(target=lambda: clock.run(taker(), name="a-taker")),
        threading.Thread(target=lambda: clock.run(giver(), name="b-giver")),
    ]
    with clock.hold("a-taker", "b-giver"):
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join()
    assert took == [(float(turn), float(turn)) for turn in range(1, 51)]


def test_threads_of_anyio_are_waited_for() -> None:
    """A function in anyio's worker thread ends before time jumps to a timeout around it."""
    clock = make_clock()
    finished = threading.Event()
    finished_at: list[datetime] = []

    async def work() -> None:
        async with asyncio.timeout(30):
            await anyio.to_thread.run_sync(lambda: finished.wait(0.2))
        finished_at.append(clock.now())

    clock.run(work(), name="a")
    assert finished_at == [START]


def test_threads_of_asyncio_run_inline() -> None:
    """asyncio.to_thread stays in the calling thread, so that its order is the loop's."""
    clock = make_clock()

    async def where() -> tuple[int, int]:
        return threading.get_ident(), await asyncio.to_thread(threading.get_ident)

    here, there = clock.run(where(), name="a")
    assert here == there


def test_a_worker_that_waits_for_the_loop_does_not_deadlock() -> None:
    """A worker thread may itself wait for simulated time; time goes on after a moment of patience."""
    clock = make_clock()

    async def work() -> None:
        await anyio.to_thread.run_sync(lambda: anyio.from_thread.run(anyio.sleep, 3600))

    clock.run(work(), name="a")
    assert clock.now() == START + timedelta(hours=1)


def test_waiting_for_nothing_raises() -> None:
    """Loops that all wait without a timer fail with the reason instead of hanging."""
    clock = make_clock(stall_s=0.05)
    with pytest.raises(RuntimeError, match=r"every loop \(lost\) waits without a timer"):
        clock.run(asyncio.Event().wait(), name="lost")


def test_settling_delays_the_jump_and_changes_no_instant() -> None:
    """A clock that gives unannounced threads a moment to join still ends waits at their instants."""
    clock = SimulatedClock(START, lambda: WALL, settle_s=0.02)
    clock.run(asyncio.sleep(3600), name="a")
    assert clock.now() == START + timedelta(hours=1)


def test_an_announced_run_that_never_comes_raises() -> None:
    """Time that stands still for an announced run names the one that is missing."""
    clock = make_clock(stall_s=0.05)
    with clock.hold("here", "missing"):
        pass
    with pytest.raises(RuntimeError, match="missing was announced"):
        clock.run(asyncio.sleep(1), name="here")


def test_waiting_inside_a_hold_raises() -> None:
    """A run in the thread that holds time back fails with the reason instead of hanging."""
    clock = make_clock(stall_s=0.05)
    with clock.hold(), pytest.raises(RuntimeError, match=r"a hold\(\) has lasted"):
        clock.run(asyncio.sleep(1), name="here")


def test_a_real_socket_is_an_error() -> None:
    """A socket cannot be waited for in simulated time, even where a library swallows the first error."""
    clock = make_clock()

    async def connect() -> None:
        with contextlib.suppress(Exception):  # an SDK would make a connection error of it, and retry
            await asyncio.open_connection("127.0.0.1", 9)
        await asyncio.sleep(1)

    with pytest.raises(ConfigurationError, match="opened a real socket"):
        clock.run(connect(), name="a")


@pytest.mark.parametrize(
    "make",
    [make_clock, SystemClock, lambda: ScaledClock(datetime.now(UTC), 1000.0)],
    ids=["sim", "sys", "scaled"],
)
def test_a_running_loop_cannot_hold_another(
    make: Callable[[], SimulatedClock | SystemClock | ScaledClock],
) -> None:
    """run() in a thread that runs a loop raises, whichever clock."""
    clock = make()

    async def nested() -> None:
        with pytest.raises(RuntimeError, match="already runs an event loop"):
            clock.run(asyncio.sleep(0), name="inner")

    clock.run(nested(), name="outer")


def test_a_loop_of_another_clock_is_refused() -> None:
    """sleep_until under a foreign loop raises instead of sleeping for real hours."""
    with pytest.raises(RuntimeError, match="loop of another clock"):
        asyncio.run(make_clock().sleep_until(START + timedelta(hours=1)))


def test_a_naive_start_is_refused() -> None:
    """An instant without a time zone is an error, not UTC by guess."""
    with pytest.raises(ValueError, match="naive"):
        SimulatedClock(datetime(2026, 1, 1), lambda: WALL)  # noqa: DTZ001


def test_scaled_time_is_real_time_times_its_speed() -> None:
    """Processes with one origin and speed agree, and sleep_until never returns early."""
    origin = datetime.now(UTC)
    clock, twin = ScaledClock(origin, 36_000.0), ScaledClock(origin, 36_000.0)
    until = origin + timedelta(hours=1)
    clock.run(clock.sleep_until(until), name="a")
    assert clock.now() >= until
    assert twin.now() >= until


def test_system_time_is_real() -> None:
    """now() and wall() are the real instant, and sleep_until never returns early."""
    clock = SystemClock()
    before = datetime.now(UTC)
    until = clock.now() + timedelta(milliseconds=20)
    clock.run(clock.sleep_until(until), name="a")
    assert clock.now() >= until
    assert before <= clock.wall() <= datetime.now(UTC)
