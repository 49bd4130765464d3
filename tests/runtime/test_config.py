"""Options of an answer: the schedule that follows from them, and those that are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lladav.errors import OptionError
from lladav.runtime.config import GenerationConfig, Schedule, generation_config


@given(st.integers(0, 300), st.integers(1, 40), st.integers(1, 8))
def test_transfers_share_masks_evenly(masked: int, per_block: int, blocks: int) -> None:
    schedule = Schedule(gen_length=blocks, block_length=1, steps=per_block * blocks)
    transfers = schedule.transfers(masked)
    assert sum(transfers) == masked
    assert max(transfers) - min(transfers) <= 1
    assert transfers == sorted(transfers, reverse=True)


def test_defaults_are_one_block_and_one_step_per_token() -> None:
    schedule = Schedule.of(GenerationConfig(), 24)
    assert (schedule.gen_length, schedule.block_length, schedule.steps) == (24, 24, 24)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gen_length": 32, "block_length": 12}, "block_length among 1, 2, 4, 8, 16, 32"),
        ({"gen_length": 8, "block_length": 16}, "not a multiple"),
        ({"gen_length": 32, "block_length": 8, "steps": 3}, "--steps 4"),
        ({"gen_length": 32, "block_length": 8, "steps": 10}, "--steps 8 or 12"),
    ],
)
def test_lengths_that_do_not_divide_are_refused_with_what_would(options: dict[str, int], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        Schedule.of(GenerationConfig(**options), 128)


@pytest.mark.parametrize(
    "options",
    [
        {"gen_length": 0},
        {"steps": -1},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"cfg_scale": float("inf")},
        {"cfg_scale": 1e39},
        {"temperature": 1e308},
        {"max_grid": "2"},
        {"remasking": "best"},
        {"suffix": "a", "suffix_ids": (1,)},
        {"stop": ("",)},
        {"stop_ids": ((),)},
        {"gen_len": 4},
    ],
)
def test_impossible_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match="cannot be used") as caught:
        generation_config(**options)
    assert "Value error" not in str(caught.value)


def test_config_is_frozen() -> None:
    with pytest.raises(ValidationError):
        GenerationConfig().steps = 3  # type: ignore[misc]
