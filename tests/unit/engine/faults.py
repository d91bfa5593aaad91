"""Ways to fail: providers that lose, refuse, stall or mangle; processes that die; clocks that are wrong."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar

from prefect_llm_tiers.core.ports import Ledger
from prefect_llm_tiers.errors import LedgerUnusable
from prefect_llm_tiers.providers.opening import ASGIApp
from prefect_llm_tiers.simulator.clock import SimulatedClock

T = TypeVar("T")

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def losing_replies(app: ASGIApp, *, path: str, method: str, times: int) -> ASGIApp:
    """Return a provider that does what it is asked and answers 502, for the first calls of one kind."""
    return _faulty(app, path=path, method=method, times=times, does_it=True)


def refusing(app: ASGIApp, *, path: str, method: str, times: int) -> ASGIApp:
    """Return a provider that does nothing and answers 502, for the first calls of one kind."""
    return _faulty(app, path=path, method=method, times=times, does_it=False)


def _faulty(app: ASGIApp, *, path: str, method: str, times: int, does_it: bool) -> ASGIApp:
    left = times

    def judge(call: Call) -> Reply | None:
        nonlocal left
        if (call.method, call.path) != (method, path) or not left:
            return None
        left -= 1
        return Reply(502, b"bad gateway", does_it=does_it)

    return meddling(app, judge)


@dataclass(frozen=True)
class Call:
    """What is known of a call before it reaches the provider."""

    method: str
    path: str
    body: bytes


@dataclass(frozen=True)
class Reply:
    """What comes back in the place of the provider's reply.

    Attributes:
        status: HTTP status; 0 for a call that never answers.
        body: Its body.
        headers: Its headers.
        does_it: Whether the provider does what it is asked all the same.
        change: Makes the body from the provider's own, whose status stays.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    does_it: bool = False
    change: Callable[[bytes], bytes] | None = None


def meddling(app: ASGIApp, judge: Callable[[Call], Reply | None]) -> ASGIApp:
    """Return a provider whose replies `judge` may replace; None leaves a call to the provider."""

    async def served(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        reply = judge(Call(scope["method"], scope["path"], body))
        given = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def again() -> MutableMapping[str, Any]:
            return next(given, None) or await receive()

        if reply is None:
            await app(scope, again, send)
            return
        own: list[MutableMapping[str, Any]] = []

        async def keep(message: MutableMapping[str, Any]) -> None:
            own.append(message)

        if reply.does_it or reply.change:
            await app(scope, again, keep)
        if not reply.status:
            await asyncio.Event().wait()
        if reply.change:
            whole = b"".join(message.get("body", b"") for message in own)
            await send({**own[0], "headers": []})
            await send({"type": "http.response.body", "body": reply.change(whole)})
            return
        headers = [(name.encode(), value.encode()) for name, value in reply.headers.items()]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})

    return served


class Died(BaseException):
    """A process that is gone: nothing after this line happens in it."""


class Mortal:
    """A ledger as one process sees it, which dies at its n-th decision or fact: just before it, or just after.

    Everything it calls after that raises as well, so that no `finally` gives a lease back. What a process does at
    every look, as renewing its lease, is no boundary of its own: between two of those nothing is sent.
    """

    BOUNDARIES = frozenset(
        {
            "enter",
            "rebase",
            "record_plan",
            "record_tier",
            "finish",
            "forget_failures",
            "reopen",
            "fail",
            "begin_calls",
            "record_calls",
            "abandon_calls",
            "plan_batch",
            "attach",
            "leave",
            "advance_batch",
            "note_batch",
            "note_copy",
            "doubt",
            "record_results",
            "settle_batch",
            "observe",
        }
    )

    def __init__(self, ledger: Ledger, *, at: int, after: bool) -> None:
        self._ledger = ledger
        self._left = at
        self._after = after
        self.dead = False

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._ledger, name)
        if not callable(attribute):
            return attribute

        def called(*args: Any, **kwargs: Any) -> Any:
            if self.dead:
                raise Died
            self._left -= name in self.BOUNDARIES
            self.dead = self._left < 0
            if self.dead and not self._after:
                raise Died
            result = attribute(*args, **kwargs)
            if self.dead:
                raise Died
            return result

        return called


class Watch:
    """A clock that is ahead of the provider's by a span, which may change while it runs."""

    def __init__(self, clock: SimulatedClock, ahead: timedelta) -> None:
        self._clock = clock
        self.ahead = ahead

    def now(self) -> datetime:
        return self._clock.now() + self.ahead

    def wall(self) -> datetime:
        return self._clock.wall()

    async def sleep_until(self, when: datetime) -> None:
        while (left := when - self.now()) > timedelta(0):
            # In steps, as the real one: a clock that is set meanwhile is noticed.
            await self._clock.sleep_until(self._clock.now() + min(left, timedelta(minutes=1)))

    def run(self, main: Coroutine[Any, Any, T], *, name: str) -> T:
        return self._clock.run(main, name=name)


class Flaky:
    """A ledger whose n-th write of one kind fails, as on a disk that is full for a moment."""

    def __init__(self, ledger: Ledger, name: str, at: int) -> None:
        self._ledger, self._name, self._left = ledger, name, at

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._ledger, name)
        if name != self._name:
            return attribute

        def called(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                raise LedgerUnusable("The disk is full.")
            return attribute(*args, **kwargs)

        return called
