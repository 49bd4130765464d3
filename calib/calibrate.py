"""From a bundle, pictures and prompts to statistics of what its linear layers multiply.

A calibration of text alone, or of one pass, never sees what a diffusion model sees: canvases from all
masks to none, behind rows of pictures. DLLMQuant (arXiv 2508.14090) finds that this decides what is
left of a quantised model; so rows are counted apart by pass, place and share of masks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt

from lladav import __version__
from lladav.bundle import Bundle
from lladav.calib.collector import Collector, refuse_constant
from lladav.calib.file_observer import FileObserver
from lladav.calib.graph_inputs import SavedInputs, find_inputs
from lladav.calib.observed_graph import ObservedGraph
from lladav.calib.question_observer import QuestionObserver
from lladav.calib.questions import PROMPTS, find_pictures, pair, read_prompts, source_file
from lladav.errors import CalibrationError, OptionError
from lladav.export.progress import Progress
from lladav.runtime.images import open_image
from lladav.statistics import SUFFIX, Statistics
from lladav.statistics_header import Asked, CalibrationRun, Condition, GraphRecord, Header


class CalibrationConfig(BaseModel):
    """What is asked, and how it is answered.

    The defaults commit a sixteenth of the canvas per pass and refresh in every third, so that each
    of the five mask ratios is met by refreshes and by steps. Answers have no stop, for the same reason.

    Attributes:
        limit: most questions; None asks as many as there are pictures or prompts.
        seed: of the order of pictures.
        gen_length: positions of the canvas; None is the bundle's default.
        steps: passes per answer, at most one per position.
        refresh_interval: see `runtime.GenerationConfig`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    limit: PositiveInt | None = None
    seed: NonNegativeInt = 0
    gen_length: PositiveInt | None = None
    steps: PositiveInt = 16
    refresh_interval: NonNegativeInt = 3


class Observer(Protocol):
    """Shows the model one thing after another.

    Attributes:
        conditions: of each graph, what rows are told apart by.
        graphs: by name.
        passes: of the denoiser, or of a graph, for each thing.
    """

    conditions: dict[str, tuple[Condition, ...]]
    graphs: dict[str, ObservedGraph]
    passes: int

    def observe(self, number: int, collector: Collector, advance: Callable[[int], None]) -> None:
        """Counts all that one thing makes the linear layers multiply.

        Args:
            number: 0, 1, ... in an order that is fixed.
            collector: where it is counted.
            advance: called with 1 after every pass.
        """


def calibrate(
    bundle: str | Path,
    output: str | Path,
    *,
    images: str | Path | None = None,
    prompts: str | Path | None = None,
    inputs: Sequence[str | Path] = (),
    config: CalibrationConfig | None = None,
    save_inputs: str | Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Statistics:
    """Runs a bundle and records statistics of the input of every linear layer.

    After every question they are written beside `output`, and an interrupted calibration goes on
    from there when it is called again. Equal arguments give equal bytes.

    Args:
        bundle: a folder in fp32 or fp16, not quantised.
        output: `.npz` file to be made; docs/calibration.md describes it.
        images: folder of pictures; None asks questions about none.
        prompts: text file, a prompt per line; None asks `questions.PROMPTS`.
        inputs: `.npz` files, or folders of them, that are run instead of questions.
        config: of the questions.
        save_inputs: folder in which inputs of the graphs are saved, for other tools.
        force: replace `output`, and drop an unfinished calibration of something else.
        progress: called while it runs, in passes.

    Raises:
        CalibrationError: too few pictures, no prompt, inputs of no graph, an `output` that is there
            already, a bundle that is quantised, or activations that are constant or no numbers,
            naming the layer.
        ImageError, PromptError, BundleError, BackendError, OptionError: as from the runtime.
    """
    target = Path(output)
    _check_target(target, force)
    opened = Bundle.open(bundle)
    if opened.manifest.quantization is not None:
        raise CalibrationError(
            f"{bundle} is quantised to {opened.manifest.quantization.form} already",
            cure="calibrate a bundle that was exported without --quantize",
        )
    if inputs:
        if images is not None or prompts is not None or save_inputs is not None:
            raise OptionError(
                "--inputs takes the place of questions, so --images, --prompts and --save-inputs contradict it",
                cure="leave it out, or leave them out",
            )
        observer, run = _files(opened, inputs)
    else:
        saved = None
        if save_inputs is not None:
            saved = SavedInputs(Path(save_inputs), opened.manifest.graphs)
            _check_folder(saved.folder, force or _state(target).exists())
        observer, run = _questions(opened, images, prompts, config or CalibrationConfig(), saved)
    header = Header(
        lladav=__version__,
        bundle=opened.manifest.sha256,
        checkpoint=opened.manifest.checkpoint.fingerprint,
        geometry=opened.manifest.geometry,
        run=run,
        graphs={
            name: GraphRecord(conditions=observer.conditions[name], linears=graph.linears)
            for name, graph in observer.graphs.items()
        },
        done=0,
    )
    return _observe_all(observer, header, target, force, progress or Progress())


def _check_target(target: Path, force: bool) -> None:
    if target.suffix != SUFFIX:
        raise CalibrationError(f"{target} does not end in {SUFFIX}", cure=f"name it {target.stem}{SUFFIX}")
    if not target.parent.is_dir():
        raise CalibrationError(f"{target.parent} is not a folder", cure="make it first, or choose another place")
    if not os.access(target.parent, os.W_OK):  # better known now than after a question
        raise CalibrationError(f"{target.parent} may not be written to", cure="choose a folder you may write to")
    if target.exists() and not force:
        raise CalibrationError(f"{target} exists already", cure="pass --force to replace it, or choose another name")


def _check_folder(folder: Path, goes_on: bool) -> None:
    if folder.is_dir() and any(folder.iterdir()) and not goes_on:
        raise CalibrationError(
            f"{folder} is not empty", cure="pass --force to write into it all the same, or choose another folder"
        )


def _state(target: Path) -> Path:
    """Where a calibration that is under way keeps what it has counted."""
    return target.with_name(f".{target.name}.partial")


def _files(bundle: Bundle, inputs: Sequence[str | Path]) -> tuple[Observer, CalibrationRun]:
    files = find_inputs([Path(path) for path in inputs])
    observer = FileObserver(bundle, files)
    return observer, CalibrationRun(sources=tuple(map(source_file, files)), count=len(files), asked=None)


def _questions(
    bundle: Bundle,
    images: str | Path | None,
    prompts: str | Path | None,
    config: CalibrationConfig,
    saved: SavedInputs | None,
) -> tuple[Observer, CalibrationRun]:
    pictures = find_pictures(Path(images)) if images is not None else ()
    texts = read_prompts(Path(prompts)) if prompts is not None else PROMPTS
    questions = pair(pictures, texts, config.limit, config.seed)
    length = config.gen_length or bundle.manifest.generation.gen_length
    asked = Asked(
        prompts=tuple(dict.fromkeys(question.prompt for question in questions)),
        gen_length=length,
        steps=min(config.steps, length),
        refresh_interval=config.refresh_interval,
    )
    shown = dict.fromkeys(question.picture for question in questions if question.picture)
    for picture in shown:
        open_image(picture)  # what cannot be read is better known now than hours later
    run = CalibrationRun(sources=tuple(map(source_file, shown)), count=len(questions), asked=asked)
    return QuestionObserver(bundle, questions, asked, saved), run


def _observe_all(observer: Observer, header: Header, target: Path, force: bool, progress: Progress) -> Statistics:
    state = _state(target)
    channels = {tensor: count for graph in observer.graphs.values() for tensor, count in graph.channels.items()}
    found = _unfinished(state, header, force) or Statistics.empty(header, channels)
    collector = Collector(observer.conditions, found.arrays)
    progress.start("calibrate", header.run.count * observer.passes)
    progress.advance(found.header.done * observer.passes)
    for number in range(found.header.done, header.run.count):
        with _dropping(state):
            observer.observe(number, collector, progress.advance)
        found = Statistics(header.model_copy(update={"done": number + 1}), found.arrays)
        found.write(state)
    with _dropping(state):
        refuse_constant(found)
    state.replace(target)
    return found


@contextmanager
def _dropping(state: Path) -> Iterator[None]:
    """Keeps nothing of a calibration that would fail again; a full disk or a file that is gone can be mended."""
    try:
        yield
    except CalibrationError as error:
        if not isinstance(error.__cause__, OSError):
            state.unlink(missing_ok=True)
        raise


def _unfinished(state: Path, header: Header, force: bool) -> Statistics | None:
    """What an interrupted calibration of the same things has counted."""
    if not state.exists():
        return None
    with suppress(CalibrationError):  # of another version
        found = Statistics.read(state)
        if found.header.model_copy(update={"done": 0}) == header:
            return found
    if force:
        return None
    raise CalibrationError(
        f"{state} is an unfinished calibration of other things: another bundle, pictures, prompts, options or version",
        cure="finish it with the same command, or pass --force to drop it",
    )
