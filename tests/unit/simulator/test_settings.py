"""Settings of a world: what they refuse, and how they are read from a file."""

import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.errors import ConfigurationError
from prefect_llm_tiers.simulator.decoding import settings_from
from prefect_llm_tiers.simulator.faults import Faults
from prefect_llm_tiers.simulator.server import serve
from prefect_llm_tiers.simulator.settings import BatchLaw, FlexOutages, LiveLaw, WorldSettings, all_faults

FILE = """
seed = 4
stuck_batches = ["openai:0", "anthropic:2"]
requests_per_minute = 500
batch = { median_s = 600, progress = "bursty" }
live.flex = { base_s = 5 }
batch_requests = { openai = 1000 }

[flex_outages]
mean_up_s = 3600
mean_down_s = 600

[faults]
create_twice = 0.1
output_late = 1
output_late_s = [700, 900]
only = { create_502_taken = [0, 2] }
"""


def test_a_file_says_what_the_world_is_like() -> None:
    """Names are those of the structs, nested as they are; what is left out keeps its default."""
    assert settings_from(tomllib.loads(FILE)) == WorldSettings(
        seed=4,
        stuck_batches=("openai:0", "anthropic:2"),
        requests_per_minute=500,
        batch=BatchLaw(median_s=600, progress="bursty"),
        live={Tier.FLEX: LiveLaw(base_s=5)},
        batch_requests={"openai": 1000},
        flex_outages=FlexOutages(mean_up_s=3600, mean_down_s=600),
        faults=Faults(create_twice=0.1, output_late=1, output_late_s=(700, 900), only={"create_502_taken": (0, 2)}),
    )
    assert settings_from({}) == WorldSettings()


def test_settings_survive_json() -> None:
    """What one process encodes another one reads, every fault included."""
    settings = all_faults(seed=9, rate=0.25)
    assert settings_from(msgspec.json.decode(msgspec.json.encode(settings))) == settings


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ({"sed": 1}, "there is no setting 'sed'. Did you mean 'seed'? `WorldSettings` lists"),
        ({"create_twice": 0.1}, "there is no setting 'create_twice' at the top. It belongs under `faults`"),
        (
            {"faults": {"create_twise": 0.1}},
            "there is no setting 'create_twise' in `faults`. Did you mean 'create_twice'? `Faults` lists",
        ),
        ({"live": {"flex": {"bas_s": 1}}}, "Did you mean 'base_s'? `LiveLaw` lists"),
        ({"faults": {"create_twice": 1.5}}, "in `faults`, create_twice is 1.5; a chance is from 0 to 1"),
        ({"faults": {"create_twice": float("nan")}}, "create_twice is nan"),
        ({"error_rate": -0.1}, "error_rate is -0.1; a chance is from 0 to 1"),
        ({"error_rate": "often"}, "in `error_rate`, expected `float`, got `str`"),
        ({"faults": {"only": {"line_cutt": [1]}}}, "only names 'line_cutt', which is no fault; 'line_cut' is"),
        ({"faults": {"only": {"line_cut": [-1]}}}, "only.line_cut is (-1,); give a list of occasions"),
        ({"faults": {"create_late_s": [9, 1]}}, "create_late_s is [9, 1]; give two numbers of seconds"),
        ({"faults": {"create_late_s": [9]}}, "in `faults.create_late_s`, expected `array` of length 2"),
        ({"faults": {"list_spell_s": 0}}, "list_spell_s is 0; it must be above 0"),
        ({"stuck_batches": "first"}, "in `stuck_batches`, expected `array`, got `str`"),
        ({"stuck_batches": ["first"]}, "stuck_batches holds 'first'; name a dialect and the number"),
        ({"batch": {"median_s": 0}}, "in `batch`, median_s is 0; it must be above 0"),
        ({"batch_by_model": {"m": {"sigma": -1}}}, "sigma is -1; it must be at least 0"),
        ({"live": {"fast": {}}}, "in `live`, invalid enum value 'fast'"),
        ({"flex_outages": {"mean_up_s": 0, "mean_down_s": 1}}, "mean_up_s is 0; it must be above 0"),
        ({"requests_per_minute": 0}, "requests_per_minute is 0; it must be at least 1"),
        ({"batch_bytes": {"groq": 4}}, "batch_bytes names 'groq'; the dialects are openai and anthropic"),
    ],
)
def test_what_cannot_be_is_refused_in_words(mapping: dict[str, Any], said: str) -> None:
    """A slip names the field, its value and what it may be."""
    with pytest.raises(ConfigurationError) as caught:
        settings_from(mapping)
    assert said in str(caught.value)


def test_python_is_told_the_same() -> None:
    """Settings made in Python refuse the same values, where they are made."""
    with pytest.raises(ValueError, match="line_cut is 2; a chance is from 0 to 1"):
        Faults(line_cut=2)
    with pytest.raises(ValueError, match="stuck_batches is 'first'; give a list"):
        WorldSettings(stuck_batches="first")  # type: ignore[arg-type]


@pytest.mark.parametrize("speed", [0, -1, float("inf"), float("nan")])
def test_a_server_whose_time_stands_still_is_refused(speed: float) -> None:
    """Speed 0 is no speed, and says so before anything listens."""
    with pytest.raises(ConfigurationError, match="cannot run at speed"):
        serve(speed=speed)


def test_all_faults_are_all_faults() -> None:
    """The preset for soaks leaves no fault out."""
    settings = all_faults(seed=1, rate=0.01)
    assert {getattr(settings.faults, name) for name in Faults.names()} == {0.01}
    assert len(Faults.names()) > 50
    assert settings.error_rate == settings.batch_row_error_rate == settings.unparsable_rate == 0.01


def test_the_page_shows_settings_that_work() -> None:
    """The settings in the documentation are read as they stand there."""
    page = (Path(__file__).parents[3] / "docs" / "simulator.md").read_text()
    (shown,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    settings = settings_from(tomllib.loads(shown))
    assert settings.faults.only == {"create_502_taken": (0,)}
    assert (settings.batch.median_s, settings.faults.line_missing) == (1200, 0.2)
