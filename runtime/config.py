"""What can be chosen about an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from lladav.errors import OptionError, faults_of
from lladav.runtime.schema import template_text
from lladav.runtime.selectors import SelectorName

PresetName = Literal["exact", "quality", "balanced", "fast", "realtime"]
View = Literal["anyres", "single"]
# Beyond it, float32 logits lose what tells them apart, and then overflow.
_LARGEST = 1e4
Grid: TypeAlias = tuple[PositiveInt, PositiveInt]


class GenerationConfig(BaseModel):
    """Options of one answer; those of the authors keep their names and meanings (`generate_with_embeds`).

    Attributes:
        gen_length: masks to fill; the bundle's default when None.
        block_length: blocks are filled from left to right; None is one block of `gen_length`.
        steps: denoising steps over all blocks, with the fixed selector only; None is the preset's.
        temperature: of Gumbel sampling; 0 takes the likeliest token.
        seed: of sampling and of random remasking; the same seed gives the same answer.
        cfg_scale: classifier-free guidance against a prompt of masks; 0 is off.
        remasking: how positions are ranked for being committed.
        stop: texts that end the answer. None is the chat template's end of turn for a text
            prompt and nothing for a prompt given as ids.
        stop_ids: further stops as token ids, looked for after `stop`.
        suffix: text pinned behind the canvas, which the model sees and the answer ends with.
        suffix_ids: the same as token ids; not both.
        image_aspect: `anyres` cuts pictures into crops; `pad` is the authors' harness for several
            pictures, one gray-padded crop each.
        preset: what the knobs below are where they are None. Without one it is `exact` where
            steps, block_length or random remasking are given, which belong to the authors'
            schedule, and else `balanced`.
        refresh_interval: every this many steps the whole sequence is computed (a refresh); the
            steps between compute the canvas alone against the prompt's keys and values of
            the last refresh. 1 refreshes always, as the authors' loop does; 0 only once.
        selector: how many positions a step commits.
        threshold: least confidence, of the threshold selector.
        factor: of the factor selector.
        delta: of the Frechet selector.
        gamma: nats, of the entropy-bounded selector.
        deadline_ms: milliseconds from the call to the answer; see `runtime/pacing.py`.
        template: the answer as text with holes; see `runtime/template.py`. `schema=` takes a
            pydantic model or JSON schema of flat fields instead, which becomes a template.
        max_grid: most columns and rows of crops of a picture.
        view: `single` shows one view of the whole picture instead of crops.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gen_length: PositiveInt | None = None
    block_length: PositiveInt | None = None
    steps: PositiveInt | None = None
    temperature: NonNegativeFloat = Field(default=0.0, le=_LARGEST)
    seed: NonNegativeInt = 0
    cfg_scale: NonNegativeFloat = Field(default=0.0, le=_LARGEST)
    remasking: Literal["low_confidence", "random"] = "low_confidence"
    stop: tuple[str, ...] | None = None
    stop_ids: tuple[tuple[NonNegativeInt, ...], ...] = ()
    suffix: str | None = None
    suffix_ids: tuple[NonNegativeInt, ...] = ()
    image_aspect: Literal["anyres", "pad"] = "anyres"
    preset: PresetName | None = None
    refresh_interval: NonNegativeInt | None = None
    selector: SelectorName | None = None
    threshold: PositiveFloat | None = Field(default=None, allow_inf_nan=False)
    factor: PositiveFloat | None = Field(default=None, allow_inf_nan=False)
    delta: NonNegativeFloat | None = Field(default=None, allow_inf_nan=False)
    gamma: NonNegativeFloat | None = Field(default=None, allow_inf_nan=False)
    deadline_ms: PositiveFloat | None = Field(default=None, allow_inf_nan=False)
    template: str | None = None
    max_grid: Grid | None = None
    view: View | None = None

    @model_validator(mode="before")
    @classmethod
    def _schema_as_template(cls, options: object) -> object:
        if not isinstance(options, Mapping) or options.get("schema") is None:
            return options
        if options.get("template") is not None:
            raise ValueError("a schema and a template contradict each other; leave one of them out")
        given = {name: value for name, value in options.items() if name != "schema"}
        return {**given, "template": template_text(options["schema"])}

    @field_validator("max_grid", mode="before")
    @classmethod
    def _columns_x_rows(cls, value: object) -> object:
        """Takes `"2x3"` for `(2, 3)`."""
        if not isinstance(value, str):
            return value
        columns, _, rows = value.lower().partition("x")
        if not (columns.isdecimal() and rows.isdecimal()):
            raise ValueError(f"{value[:60]!r} is no grid; write columns x rows, like 2x2")
        return int(columns), int(rows)

    @model_validator(mode="after")
    def _consistent(self) -> GenerationConfig:
        if self.suffix and self.suffix_ids:
            raise ValueError("suffix and suffix_ids cannot both be given")
        if any(not ids for ids in self.stop_ids) or any(not text for text in self.stop or ()):
            raise ValueError("a stop must not be empty")
        if self.template is not None:
            for name, given in (("suffix", self.suffix or self.suffix_ids), ("stop", self.stop or self.stop_ids)):
                if given:
                    raise ValueError(f"a template is the whole answer, so there is no {name} beside it")
        return self


class Schedule(BaseModel):
    """Lengths and steps with every default filled in and checked against one another."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gen_length: PositiveInt
    block_length: PositiveInt
    steps: PositiveInt

    @classmethod
    def of(cls, config: GenerationConfig, default_length: int, default_steps: int | None = None) -> Schedule:
        """Fills defaults in; without a number of steps there is one per token.

        Raises:
            OptionError: lengths or steps do not divide evenly.
        """
        length = config.gen_length or default_length
        block = config.block_length or length
        steps = config.steps or length
        if block > length or length % block:
            fitting = [n for n in range(1, length + 1) if length % n == 0]
            raise OptionError(
                f"gen_length {length} is not a multiple of block_length {block}",
                cure=f"choose a block_length among {', '.join(map(str, fitting))}, or another gen_length",
            )
        blocks = length // block
        if config.steps is None and default_steps is not None:
            steps = min(-(-default_steps // blocks) * blocks, length)
        if steps < blocks or steps % blocks:
            below, above = max(blocks, steps - steps % blocks), steps - steps % blocks + blocks
            raise OptionError(
                f"{steps} steps cannot be shared evenly by {blocks} blocks ({length} tokens in blocks of {block})",
                cure=f"choose --steps {below}" + (f" or {above}" if above != below else ""),
            )
        return cls(gen_length=length, block_length=block, steps=steps)

    @property
    def blocks(self) -> int:
        return self.gen_length // self.block_length

    @property
    def steps_per_block(self) -> int:
        return self.steps // self.blocks

    def transfers(self, masked: int) -> list[int]:
        """How many positions each step of a block with `masked` masks commits."""
        base, extra = divmod(masked, self.steps_per_block)
        return [base + (i < extra) for i in range(self.steps_per_block)]


def generation_config(**options: object) -> GenerationConfig:
    """A `GenerationConfig` from options of a command line or a request.

    Raises:
        OptionError: naming the options that are unknown or out of range.
    """
    try:
        return GenerationConfig.model_validate(options)
    except ValidationError as error:
        faults = faults_of(error, "options")
        raise OptionError(f"these options cannot be used: {faults}", cure="see `lladav run --help`") from error
