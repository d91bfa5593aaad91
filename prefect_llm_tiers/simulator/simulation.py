"""A simulated provider: one world, two dialects, one ASGI app."""

import threading
from datetime import UTC, datetime

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from prefect_llm_tiers.core.ports import Clock
from prefect_llm_tiers.errors import ConfigurationError
from prefect_llm_tiers.simulator.account import Account, Billed
from prefect_llm_tiers.simulator.answers import Answering
from prefect_llm_tiers.simulator.anthropic_api import AnthropicDialect
from prefect_llm_tiers.simulator.clock import PublishedClock, ScaledClock, SimulatedClock
from prefect_llm_tiers.simulator.openai_api import OpenAIDialect
from prefect_llm_tiers.simulator.records import BatchRecord, records
from prefect_llm_tiers.simulator.settings import WorldSettings
from prefect_llm_tiers.simulator.world import World

__all__ = ["Simulation", "in_process"]


class Simulation:
    """A provider in a box.

    `app` speaks both dialects: OpenAI's under `/v1` for `base_url="http://host/v1"`, Anthropic's for
    `base_url="http://host"`. Any key is good that does not begin with `bad`.

    Args:
        settings: What the world is like.
        clock: Its time; calls must run on loops of this clock where it is simulated.
        answer: A model of your own: takes the request, returns text or an object to send as JSON.
    """

    def __init__(self, settings: WorldSettings, clock: Clock, *, answer: Answering | None = None) -> None:
        self.settings = settings
        self.clock = clock
        self.world = World(settings, clock, answer)
        self._openai = OpenAIDialect(self.world)
        self._anthropic = AnthropicDialect(self.world)
        self.app = Starlette(
            routes=[
                *self._openai.routes(),
                *self._anthropic.routes(),
                Route("/v1/models", self._models, methods=["GET"]),
                Route("/v1/models/{id}", self._model, methods=["GET"]),
                Route("/_simulator/account", self._show_account, methods=["GET"]),
                Route("/_simulator/batches", self._show_batches, methods=["GET"]),
                Route("/_simulator/billed", self._show_billed, methods=["GET"]),
                Route("/_simulator/clock", self._show_clock, methods=["GET"]),
            ]
        )
        self._list_models = {
            True: self._anthropic.guarded(self._anthropic.list_models),
            False: self._openai.guarded(self._openai.list_models),
        }
        self._retrieve_model = {
            True: self._anthropic.guarded(self._anthropic.retrieve_model),
            False: self._openai.guarded(self._openai.retrieve_model),
        }

    def account(self) -> Account:
        """Return what was asked and what it would have cost, as of now."""
        return self.world.account()

    def batches(self) -> list[BatchRecord]:
        """Return every batch that was ever taken, the first one's first, those that nobody can see among them."""
        return records(self.world)

    def billed(self) -> dict[str, Billed]:
        """Return what was billed for each body; the amounts add up to the account's, to the last digit."""
        return self.world.billed()

    async def _models(self, request: Request) -> Response:
        return await self._list_models[_is_anthropic(request)](request)

    async def _model(self, request: Request) -> Response:
        return await self._retrieve_model[_is_anthropic(request)](request)

    async def _show_account(self, _: Request) -> Response:
        return Response(msgspec.json.encode(self.account()), media_type="application/json")

    async def _show_batches(self, _: Request) -> Response:
        return Response(msgspec.json.encode(self.batches()), media_type="application/json")

    async def _show_billed(self, _: Request) -> Response:
        return Response(msgspec.json.encode(self.billed()), media_type="application/json")

    async def _show_clock(self, _: Request) -> Response:
        published = PublishedClock(
            origin=self.clock.origin if isinstance(self.clock, ScaledClock) else self.world.origin,
            speed=self.clock.speed if isinstance(self.clock, ScaledClock) else None,
            now=self.clock.now(),
        )
        return Response(msgspec.json.encode(published), media_type="application/json")


def _is_anthropic(request: Request) -> bool:
    """Both dialects have `/v1/models`; only Anthropic's clients say which version they speak."""
    return "anthropic-version" in request.headers


_named: dict[str, Simulation] = {}
_named_lock = threading.Lock()


def in_process(name: str, settings: WorldSettings | None = None, clock: Clock | None = None) -> Simulation:
    """Return the simulation of this name, made at first use and kept for the life of the process.

    Two providers that name the same simulation share its world, its clock and its account.

    Args:
        name: Which one.
        settings: What its world is like; where it exists already, None takes it as it is.
        clock: Its time; without one, simulated time that starts at the real instant of the first use.

    Raises:
        ConfigurationError: It exists with other settings or another clock.
    """
    with _named_lock:
        found = _named.get(name)
        if found is None:
            clock = clock or SimulatedClock(datetime.now(UTC))
            found = _named[name] = Simulation(settings or WorldSettings(), clock)
            return found
        for what, wanted, has in (("settings", settings, found.settings), ("clock", clock, found.clock)):
            if wanted is not None and wanted != has:
                raise ConfigurationError(
                    f"The simulation '{name}' exists in this process with other {what}; its world cannot "
                    "change while others use it. Choose another name, or leave them out to share it."
                )
        return found
