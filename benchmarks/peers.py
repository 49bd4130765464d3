"""Our CPU backend beside what else runs LLaDA on a CPU, on the same random weights and the same work.

    pip download --no-binary llama-cpp-python --no-deps --dest CACHE llama-cpp-python
    python -m benchmarks.peers --cache CACHE --out peers.json --table docs/peers.md

The peers are llama.cpp's diffusion example, built from the sources in that package, and the authors'
loop in PyTorch, eager and compiled. All run on one thread, in alternation, by the processor time of
their threads: a pass over 1,000 tokens and 64 masks without a cache, and whole answers of 64 tokens.
A ratio is the median over the rounds of the peer's time over ours in the same round.
"""

from __future__ import annotations

import argparse
import json
import os
import string
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import cpu, mid_size
from benchmarks.authors import AuthorsLoop
from benchmarks.cpu import CANVAS, CLOCKS, PROMPT, machine, ratio
from benchmarks.gguf_model import WEIGHTS, write_gguf
from benchmarks.llama_cpp import DiffusionExample, build
from benchmarks.noise import calibrate_on_noise
from benchmarks.peers_table import report
from lladav.bundle import Bundle
from lladav.costs import pass_cost
from lladav.errors import BackendError, LladavError
from lladav.export.checkpoint import Checkpoint
from lladav.export.config import ExportConfig
from lladav.export.exporter import export
from lladav.export.streamed_reference import StreamedReference
from lladav.linear_layers import Numbers
from lladav.manifest import Manifest
from lladav.memory_plan import Sizes
from lladav.runtime import GenerationConfig, Pipeline

OURS: dict[str, dict[str, Any]] = {
    "lladav fp32": {},
    "lladav w8": {"quantize": "w8"},
    "lladav w8a8": {"quantize": "w8a8"},
    "lladav w8a8, head too": {"quantize": "w8a8", "quantize_head": True},
    "lladav w4": {"quantize": "w4"},
    "lladav w4, widened, head too": {"quantize": "w4", "quantize_head": True, "widen_on_cpu": True},
}
"""Bundles, by what an export is asked for."""

PRESETS = ("balanced", "fast", "realtime")


class OurPass:
    """A refresh of one bundle, logits of the whole canvas wanted.

    Attributes:
        pipe: for whole answers.
    """

    def __init__(self, bundle: Bundle, ids: list[int]) -> None:
        self.pipe = Pipeline.load(bundle.path, threads=1)
        self._ids = ids
        self._window = self.pipe.denoiser.window([PROMPT], CANVAS, CANVAS, cached=True)
        self._window.place_prompt(0, self.pipe.table.gather(ids))
        self._window.canvas[:] = self.pipe.table.gather([bundle.manifest.tokens.mask])

    def seconds(self) -> float:
        return cpu.seconds(self.logits)

    def logits(self) -> np.ndarray:
        """`[1, 64, V]`."""
        return np.asarray(self._window.refresh(self._window.canvas_start + np.arange(CANVAS)))

    def answer_seconds(self, preset: str) -> float:
        """Of a whole answer."""
        config = GenerationConfig(preset=preset, gen_length=CANVAS)
        return cpu.seconds(lambda: self.pipe.generate(prompt_ids=self._ids, config=config))


class TorchPass:
    """A pass of the authors' loop."""

    def __init__(self, checkpoint: Path, bundle: Bundle, ids: list[int], *, compiled: bool) -> None:
        manifest = bundle.manifest
        reference = StreamedReference(Checkpoint.open(checkpoint), manifest.geometry)
        embedding = torch.from_numpy(reference.embedding(0, manifest.geometry.language.vocab_rows))
        model = reference.whole()
        self._loop = AuthorsLoop(torch.compile(model) if compiled else model, embedding, manifest.tokens)
        self._prompt = embedding[ids].numpy()

    def seconds(self) -> float:
        state = self._loop.start(self._prompt, CANVAS)
        return cpu.seconds(lambda: self._loop.step(state, PROMPT + CANVAS, 1))


def prompt_text() -> str:
    """Letters, each of which is one token of the mid-size model."""
    drawn = np.random.default_rng(0).integers(0, len(string.ascii_lowercase), PROMPT)
    return "".join(string.ascii_lowercase[i] for i in drawn)


def examples(cache: Path, checkpoint: Path, mask: int, kinds: list[str]) -> dict[str, DiffusionExample]:
    """llama.cpp's example on each type of weights; files that are there are taken as they are."""
    program = build(cache)
    found = {}
    for kind in kinds:
        file = cache / f"mid-{kind}.gguf"
        if not file.is_file():
            beside = file.with_suffix(".part")
            write_gguf(checkpoint, beside, kind, mid_size.GEOMETRY, mask)
            beside.rename(file)
        found[f"llama.cpp {kind}"] = DiffusionExample(program, file, prompt_text(), PROMPT + CANVAS)
    return found


def same_picks(ours: OurPass, example: DiffusionExample) -> float:
    """Share of the first picks that agree: that the weights and the work are the same."""
    theirs = example.picks()
    picks = [int(token) for token in ours.logits()[0].argmax(-1)]
    return float(np.mean([a == b for a, b in zip(picks, theirs, strict=False)])) if theirs else 0.0


def operations(manifest: Manifest) -> tuple[int, int]:
    """Of our pass, and of one that computes all rows and their logits."""
    numbers = Numbers.of(manifest, cpu=True)
    sizes = Sizes(1, PROMPT, CANVAS, 0)
    ours = pass_cost(manifest, "refresh", sizes, numbers)
    theirs = pass_cost(manifest, "refresh", sizes, numbers, rows=PROMPT + CANVAS)
    return ours.operations, theirs.operations


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    checkpoint = mid_size.write_checkpoint(folder / "mid")
    ids = [ord(letter) for letter in prompt_text()]
    ours: dict[str, OurPass] = {}
    for number, (name, form) in enumerate(OURS.items()):
        statistics = {"statistics": folder / "seen.npz"} if form.get("quantize") == "w8a8" else {}
        config = ExportConfig(dtype="fp32", vocab_rows="all", verify=False, **form, **statistics)
        bundle = export(checkpoint, folder / f"{number}.bundle", config)
        ours[name] = OurPass(bundle, ids)
        if not form:
            calibrate_on_noise(bundle, folder / "seen.npz")
    theirs = examples(options.cache, checkpoint, bundle.manifest.tokens.mask, options.weights)
    peers: dict[str, Callable[[], float]] = {name: example.pass_seconds for name, example in theirs.items()}
    if options.torch:
        for name, compiled in (("PyTorch, eager", False), ("PyTorch, compiled", True)):
            peers[name] = TorchPass(checkpoint, bundle, ids, compiled=compiled).seconds
    agreement = {name: same_picks(ours["lladav fp32"], example) for name, example in theirs.items()}
    passes = cpu.take_turns(peers | {name: own.seconds for name, own in ours.items()}, options.rounds)
    best = min(theirs, key=lambda name: float(np.median(passes[name])))
    whole = theirs[best].seconds(CANVAS)
    answers = {
        name: {preset: [own.answer_seconds(preset) for _ in range(options.answers)] for preset in PRESETS}
        for name, own in ours.items()
    }
    ours_run, theirs_run = operations(bundle.manifest)
    return {
        "operations": {name: ours_run if name in ours else theirs_run for name in passes},
        "passes": passes,
        "ratios": {name: {own: ratio(times, passes[own]) for own in ours} for name, times in passes.items()},
        "same_picks": agreement,
        "answers": {
            "best": best,
            "best_seconds": whole,
            "ours": answers,
            "ratios": {
                name: {preset: whole / float(np.median(times)) for preset, times in own.items()}
                for name, own in answers.items()
            },
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for llama.cpp's sources, build and models")
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=list(WEIGHTS), help="of llama.cpp")
    parser.add_argument("--no-torch", dest="torch", action="store_false", help="leave PyTorch out")
    parser.add_argument("--rounds", type=int, default=3, help="of passes")
    parser.add_argument("--answers", type=int, default=1, help="rounds of whole answers")
    parser.add_argument("--out", type=Path, help="JSON file of all figures")
    parser.add_argument("--table", type=Path, help="Markdown file")
    options = parser.parse_args()
    if min(options.rounds, options.answers) < 1:
        parser.error("a ratio needs at least one round")
    try:
        require_peers(options.cache)
    except LladavError as error:
        parser.error(str(error))
    cpu.clock = CLOCKS["processor"]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        results = {"machine": machine(), **measure(options, Path(folder))}
    results["machine"]["load_after"] = round(os.getloadavg()[0], 2)
    print(json.dumps({"passes": results["ratios"], "answers": results["answers"]["ratios"]}, indent=1))
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    if options.table:
        options.table.write_text(report(results), "utf-8")


def require_peers(cache: Path) -> None:
    """What takes a moment to look for, before anything that takes minutes.

    Raises:
        BackendError: the `gguf` package is missing, or llama.cpp cannot be built.
    """
    try:
        import gguf  # noqa: F401 - used by write_gguf
    except ImportError as error:
        raise BackendError(
            "the models of llama.cpp are written with gguf, which is missing", cure="pip install gguf"
        ) from error
    build(cache)


if __name__ == "__main__":
    main()
