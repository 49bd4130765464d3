"""Presets, what overrides them, and options that contradict one another."""

from __future__ import annotations

from typing import Any

import pytest

from lladav.errors import OptionError
from lladav.runtime.config import GenerationConfig
from lladav.runtime.presets import PRESETS, resolve


def knobs(**options: Any) -> dict[str, Any]:
    return resolve(GenerationConfig(**options)).model_dump(exclude_none=True)


def test_balanced_unless_the_authors_schedule_is_asked_for() -> None:
    assert knobs()["preset"] == "balanced"
    assert knobs(refresh_interval=2)["preset"] == "balanced"
    assert knobs(temperature=0.5, cfg_scale=1.0)["preset"] == "balanced"
    assert knobs(block_length=4, selector="factor")["preset"] == "balanced"
    for options in ({"steps": 4}, {"block_length": 4}, {"remasking": "random"}, {"steps": 4, "selector": "fixed"}):
        found = knobs(**options)
        assert (found["preset"], found["refresh_interval"], found["selector"]) == ("exact", 1, "fixed")


def test_exact_alone_lets_the_model_predict_masks() -> None:
    assert [name for name in PRESETS if not resolve(GenerationConfig(preset=name)).forbid_mask] == ["exact"]


def test_adaptive_selectors_never_predict_masks() -> None:
    assert resolve(GenerationConfig(preset="exact", selector="factor")).forbid_mask


def test_grid_may_be_written_as_on_the_command_line() -> None:
    assert GenerationConfig(max_grid="2x3") == GenerationConfig(max_grid=(2, 3))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PRESETS)
def test_every_knob_can_be_overridden(name: Any) -> None:
    found = knobs(preset=name, refresh_interval=5, selector="entropy", gamma=0.3, max_grid=(1, 2))
    assert found["preset"] == name
    assert (found["refresh_interval"], found["selector"], found["gamma"]) == (5, "entropy", 0.3)
    assert (found["max_grid"], found["view"]) == ((1, 2), "anyres")
    assert not {"factor", "delta", "threshold", "steps"} & found.keys()


def test_parameters_left_to_the_selector_are_in_the_result() -> None:
    assert knobs(selector="threshold")["threshold"] == 0.9
    assert knobs(preset="fast", delta=0.15)["delta"] == 0.15
    assert knobs(preset="fast", view="single")["view"] == "single"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 4, "selector": "threshold"}, "--steps 4 and the threshold selector"),
        ({"steps": 4, "preset": "balanced"}, "--selector fixed"),
        ({"remasking": "random", "preset": "fast"}, "--remasking random"),
        ({"deadline_ms": 50, "preset": "exact"}, "--deadline-ms and the exact preset"),
        ({"deadline_ms": 50, "steps": 4}, "--preset realtime"),
        ({"threshold": 0.9}, "--threshold"),
        ({"selector": "fixed", "gamma": 0.1}, "--gamma"),
        ({"selector": "threshold", "threshold": 1.5}, "--threshold"),
        ({"view": "single", "max_grid": (2, 2)}, "--view single and --max-grid"),
        ({"view": "single", "image_aspect": "pad"}, "--view single and --image-aspect pad"),
    ],
)
def test_contradictions_name_the_option_and_the_way_out(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError) as caught:
        resolve(GenerationConfig(**options))
    assert words in str(caught.value)


def test_realtime_takes_steps() -> None:
    assert knobs(preset="realtime", steps=3, deadline_ms=50)["steps"] == 3
