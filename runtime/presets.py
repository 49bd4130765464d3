"""From a preset and its overrides to every knob of the denoising loop.

Presets and their published points: facts on Fast-dLLM (arXiv 2505.22618, tables 3 and 10, prompt
cache on LLaDA-V) and Fast-dLLM++ (arXiv 2606.02955, Frechet selector); what they cost and keep
on the demo checkpoint is measured in `docs/quality.md`.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, PositiveInt

from lladav.errors import OptionError
from lladav.runtime.config import GenerationConfig, Grid, PresetName, View
from lladav.runtime.selectors import Selector, SelectorName, make_selector

REALTIME_PASSES = 8
"""Passes of the `realtime` preset, or one per token where the canvas is shorter."""

_PARAMETERS: dict[SelectorName, str] = {
    "threshold": "threshold",
    "factor": "factor",
    "frechet": "delta",
    "entropy": "gamma",
}


class Knobs(BaseModel):
    """What a preset and its overrides come to; part of every answer.

    Attributes:
        preset: where the values come from that were not given.
        refresh_interval: see `GenerationConfig`.
        selector: how many positions a pass commits.
        threshold: of the threshold selector; None with another one, as the next three.
        factor: of the factor selector.
        delta: of the Frechet selector.
        gamma: of the entropy-bounded selector.
        steps: of the fixed selector; None with an adaptive one.
        max_grid: most columns and rows of crops; None is the authors' rule.
        view: `single` shows one view of the whole picture instead of crops.
        forbid_mask: the mask token is never predicted; the authors' loop lets it be.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: PresetName
    refresh_interval: NonNegativeInt
    selector: SelectorName
    threshold: NonNegativeFloat | None = None
    factor: NonNegativeFloat | None = None
    delta: NonNegativeFloat | None = None
    gamma: NonNegativeFloat | None = None
    steps: PositiveInt | None = None
    max_grid: Grid | None = None
    view: View = "anyres"
    forbid_mask: bool = True

    def make_selector(self) -> Selector:
        return make_selector(
            self.selector, threshold=self.threshold, factor=self.factor, delta=self.delta, gamma=self.gamma
        )


PRESETS: dict[PresetName, Knobs] = {
    "exact": Knobs(preset="exact", refresh_interval=1, selector="fixed", forbid_mask=False),
    "quality": Knobs(preset="quality", refresh_interval=4, selector="fixed"),
    "balanced": Knobs(preset="balanced", refresh_interval=8, selector="factor", factor=1.0),
    "fast": Knobs(preset="fast", refresh_interval=32, selector="frechet", delta=0.2, max_grid=(2, 2)),
    "realtime": Knobs(preset="realtime", refresh_interval=0, selector="fixed", view="single"),
}


def preset_of(config: GenerationConfig) -> PresetName:
    """The preset that was asked for: options of the authors' schedule alone ask for `exact`, else `balanced`."""
    if config.preset is not None:
        return config.preset
    scheduled = config.steps is not None or config.block_length is not None or config.remasking == "random"
    return "exact" if scheduled and config.selector in (None, "fixed") else "balanced"


def resolve(config: GenerationConfig) -> Knobs:
    """Lays the options that were given over their preset.

    Raises:
        OptionError: options that contradict one another.
    """
    name = preset_of(config)
    base = PRESETS[name]
    selector = config.selector or base.selector
    _check(config, name, selector)
    # An adaptive loop would commit a predicted mask for ever.
    forbid_mask = base.forbid_mask or selector != "fixed"
    chosen: dict[str, Any] = {"preset": name, "selector": selector, "forbid_mask": forbid_mask}
    for option in ("refresh_interval", "max_grid", "view"):
        given = getattr(config, option)
        chosen[option] = getattr(base, option) if given is None else given
    if config.max_grid is not None and config.view is None:
        chosen["view"] = "anyres"
    for name_, parameter in _PARAMETERS.items():
        given = getattr(config, parameter)
        if given is None and selector == base.selector == name_:
            given = getattr(base, parameter)
        chosen[parameter] = given
    if selector == "fixed":
        chosen["steps"] = config.steps
    knobs = Knobs(**chosen)
    made = knobs.make_selector()
    # A parameter that was left to the selector's own default is shown in the result too.
    return knobs.model_copy(update={p: getattr(made, p) for n, p in _PARAMETERS.items() if n == selector})


def _check(config: GenerationConfig, preset: PresetName, selector: SelectorName) -> None:
    if selector != "fixed":
        if config.steps is not None:
            raise OptionError(
                f"--steps {config.steps} and the {selector} selector contradict each other: it takes as many steps "
                "as the answer needs",
                cure="leave --steps out, or pass --selector fixed",
            )
        if config.remasking == "random":
            raise OptionError(
                f"--remasking random and the {selector} selector contradict each other: it decides by confidence",
                cure="leave one of them out, or pass --selector fixed",
            )
    if config.deadline_ms is not None and preset == "exact":
        why = "" if config.preset else " (--steps, --block-length and --remasking random ask for it)"
        raise OptionError(
            f"--deadline-ms and the exact preset contradict each other{why}: a deadline changes the answer",
            cure="name another preset: --preset realtime keeps a fixed number of steps",
        )
    if config.image_aspect == "pad" and (config.view or config.max_grid):
        option = "--view" if config.view else "--max-grid"
        raise OptionError(
            f"{option} {config.view or ''}".rstrip() + " and --image-aspect pad contradict each other: it is one crop",
            cure="leave one of them out",
        )
    if config.view == "single" and config.max_grid is not None:
        raise OptionError(
            "--view single and --max-grid contradict each other: a single view has no grid", cure="pass one of them"
        )
