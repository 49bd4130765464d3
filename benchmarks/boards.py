"""Writes the predicted tables of `docs/performance.md` and `docs/jetson.md`, from the targets' data alone.

    python -m benchmarks.boards docs

Nothing is run on any board or GPU: the figures are those of `lladav plan` for LLaDA-V's geometry.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu.bundles import DEMO
from benchmarks.make_full_size import real_geometry
from benchmarks.pages import replace_parts
from lladav.engines import Prediction, load_target, predict
from lladav.engines.builder import MEMORY_PER_WEIGHT_STREAMED, MEMORY_PER_WEIGHT_WHOLE
from lladav.engines.prediction import PREDICTED
from lladav.export import ExportConfig, export
from lladav.manifest import Buckets, Manifest

PROMPTS, CANVASES = (900, 3650), (32, 64, 128)
BOARDS = ("orin-agx-64", "orin-agx-32", "orin-nx-16", "orin-nano-8", "thor")
CARDS = ("a100", "h100", "h200", "l4", "rtx-30", "rtx-40", "rtx-50")
# bfloat16 takes as many bytes as float16 and runs as fast.
PRECISIONS = tuple(precision for precision in PREDICTED if precision != "bf16")
_HEAD_PARTS = 8
JETPACK_6 = "10.3"
"""Its TensorRT."""


def llada_v(folder: Path) -> Path:
    """A bundle whose manifest has LLaDA-V's sizes, which is all that predictions read; its files are the demo's."""
    export(DEMO, folder, ExportConfig(dtype="fp16", verify=False))
    small = Manifest.read(folder)
    geometry = real_geometry()
    g = geometry.language
    table = small.tables["embed_tokens"].model_copy(update={"shape": (g.vocab_rows, g.hidden_size)})
    buckets = Buckets(tiles=small.buckets.tiles, prompt=PROMPTS, canvas=CANVASES)
    large = {"geometry": geometry, "buckets": buckets, "head_parts": _HEAD_PARTS}
    small.model_copy(update={**large, "tables": {**small.tables, "embed_tokens": table}}).write(folder)
    return folder


def latencies(bundle: Path) -> Iterator[str]:
    """A row per target, precision and prompt."""
    heads = ("target", "weights", "prompt", f"refresh, canvas {CANVASES[-1]}", *(f"step, {c}" for c in CANVASES))
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for target in (*BOARDS, *CARDS):
        for precision in PRECISIONS:
            if precision not in load_target(target).precisions:
                continue
            found = [predict(bundle, target, precision=precision, canvas=canvas) for canvas in CANVASES]
            for number, prompt in enumerate(PROMPTS):
                yield _row(found, number, prompt)


def _row(found: list[Prediction], number: int, prompt: int) -> str:
    first, last = found[0], found[-1]
    cells = [first.target.title, first.precision, f"{prompt:,}"]
    if last.rows[number].free < 0:
        return f"| {' | '.join([*cells, *['does not fit'] * (1 + len(found))])} |"
    times = [last.rows[number].refresh_ms, *(one.rows[number].step_ms for one in found)]
    return f"| {' | '.join([*cells, *map(_milliseconds, times)])} |"


def memory(bundle: Path) -> Iterator[str]:
    """A row per board and precision, in GB: what an answer takes and what building takes."""
    answers = [f"answer, prompt {prompt:,}" for prompt in PROMPTS]
    heads = ("board", "weights", "memory", "of weights", *answers, "left", "building, JetPack 6", "building, JetPack 7")
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for board in BOARDS:
        target = load_target(board)
        for precision in PRECISIONS:
            rows = predict(bundle, board, precision=precision, canvas=CANVASES[-1]).rows
            weights, free = rows[0].needs.weights, rows[-1].free
            cells = [target.title, precision, f"{target.memory_gb:g}", _gb(weights)]
            cells += [_gb(row.needs.total) for row in rows]
            cells.append(_gb(free) if free >= 0 else f"**{_gb(-free)} missing**")
            # What JetPack 6 carries cannot stream a plan to a file.
            for version, factor in ((JETPACK_6, MEMORY_PER_WEIGHT_WHOLE), ("", MEMORY_PER_WEIGHT_STREAMED)):
                fits = factor * weights <= target.memory_gb * 1e9
                needed = _gb(factor * weights) if fits else f"**{_gb(factor * weights)}**"
                cells.append(needed if not version or version in target.versions else "")
            yield f"| {' | '.join(cells)} |"


def _milliseconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("docs", type=Path, help="folder with performance.md and jetson.md, whose tables are replaced")
    docs = parser.parse_args().docs
    with tempfile.TemporaryDirectory() as folder:
        bundle = llada_v(Path(folder) / "bundle")
        for page, name, lines in (("performance", "latencies", latencies), ("jetson", "memory", memory)):
            replace_parts(docs / f"{page}.md", {name: lines(bundle)})


if __name__ == "__main__":
    main()
