"""Graphs beside the PyTorch model, a layer at a time, so that neither has to fit in memory.

Each layer runs on PyTorch's own activations, which shows the one that is wrong, and all of them
in a row, which shows what becomes of the result.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lladav.bundle import Bundle
from lladav.export.graph_pieces import GraphPieces
from lladav.export.progress import Progress
from lladav.export.prompt_kv_graph import LARGEST_CODE, LEAST_SCALE
from lladav.export.streamed_reference import StreamedReference
from lladav.export.verification import (
    Comparison,
    Row,
    tolerance_of,
    tolerance_of_cached_steps,
    tolerance_on_cpu,
)
from lladav.manifest import CPU_DENOISER
from lladav.prompt_kv import PAST, PRESENT
from lladav.runtime import merge
from lladav.runtime.denoiser import no_past
from lladav.runtime.embedding import EmbeddingTable, merge_prompt
from lladav.runtime.images import open_image, pixel_values, preprocess
from lladav.runtime.prompt import IMAGE_TOKEN, ChatTokenizer
from lladav.runtime.sessions import PADDED

Floats = npt.NDArray[np.float32]
Values = dict[str, npt.NDArray[Any]]

QUESTION = "What is this?"
# Enough positions to see every kind of row, and few enough that 32 real layers take minutes.
PICTURE_ROWS, CANVAS = 48, 8
# Padding behind prompt and canvas, which must change nothing.
PROMPT_PADDING, CANVAS_PADDING = 5, 3
_TABLE_ROWS = 1 << 12


class LayerByLayer:
    """Compares what a bundle holds with the reference; every comparison becomes a row.

    Args:
        bundle: what is verified.
        reference: of the same checkpoint.
        progress: called with the bytes of weights that are done.

    Attributes:
        rows: so far.
    """

    def __init__(self, bundle: Bundle, reference: StreamedReference, progress: Progress) -> None:
        self.rows: list[Row] = []
        self._bundle = bundle
        self._manifest = bundle.manifest
        self._reference = reference
        self._progress = progress
        self._tolerance = tolerance_of(bundle.manifest)

    def compare(self, image: Path) -> Floats:
        """Fills `rows`.

        Returns:
            PyTorch's embedding `[P, D]` of a question about the picture.
        """
        features = None
        if self._manifest.geometry.vision is not None:
            features = self._connector(self._vision_encoder(image))
        prompt = self._prompt(features)
        self._denoiser(prompt)
        return prompt

    def _report(self, *comparisons: Comparison) -> None:
        self.rows += [comparison.row for comparison in comparisons]

    def _vision_encoder(self, image: Path) -> Floats:
        """Compares the tower on one crop; returns PyTorch's features `[1, tokens, D_vision]`."""
        pre = self._manifest.preprocessing
        assert pre is not None
        pixels = pixel_values(preprocess(open_image(image), pre).pixels[:1], mean=pre.mean, std=pre.std)
        graph = self._graph("vision_encoder")
        layers = Comparison("vision_encoder", "worst layer by itself", self._tolerance.layer)
        whole = Comparison("vision_encoder", "features", self._tolerance.whole)
        stream, before = "pixel_values", pixels
        values: Values = {stream: pixels}
        for scope, expected in self._reference.vision(pixels):
            piece = graph.piece(scope)
            alone = piece.run(values | {stream: before})
            values |= piece.run(values)
            stream = piece.outputs[-1]
            layers.add(alone[stream], expected, scope, before=before if before.shape == expected.shape else None)
            before = expected
            self._progress.advance(piece.bytes)
        whole.add(values[graph.results["vision_features"]], before)
        self._report(layers, whole)
        return before

    def _connector(self, hidden: Floats) -> Floats:
        """Returns PyTorch's `[1, tokens, D]`."""
        graph = self._graph("connector")
        piece = graph.piece()
        got = piece.run({"vision_features": hidden})[graph.results["image_features"]]
        expected = self._reference.connect(hidden)
        comparison = Comparison("connector", "image features", self._tolerance.layer)
        comparison.add(got, expected)
        self._progress.advance(piece.bytes)
        self._report(comparison)
        return expected

    def _prompt(self, features: Floats | None) -> Floats:
        """Compares the embedding table and a merged prompt; returns PyTorch's `[P, D]`."""
        specs, tokens = self._manifest.tables, self._manifest.tokens
        table = EmbeddingTable(self._bundle.file(specs["embed_tokens"].file), specs["embed_tokens"])
        stored = Comparison("prompt", "embedding table", self._tolerance.stored)
        for start in range(0, table.rows, _TABLE_ROWS):
            stop = min(start + _TABLE_ROWS, table.rows)
            got = table.gather(np.arange(start, stop))
            stored.add(got, self._reference.embedding(start, stop), f"rows {start} to {stop - 1}")

        tokenizer = ChatTokenizer(self._bundle.file("tokenizer.json"), tokens, self._manifest.generation.system_prompt)
        ids = [tokens.bos, *tokenizer.encode(QUESTION), tokens.end_of_turn]
        expected = np.concatenate([self._reference.embedding(i, i + 1) for i in ids])
        pictures = []
        if features is not None:
            newline = np.fromfile(self._bundle.file(specs["image_newline"].file), "<f4")
            assert self._manifest.geometry.vision is not None
            plan = merge.crop_plan(self._manifest.geometry.vision.side, newline=True)
            chosen = np.linspace(0, len(plan) - 1, min(PICTURE_ROWS, len(plan))).astype(np.int64)
            pictures = [merge.apply(plan, features, newline)[chosen]]
            theirs = np.concatenate((features[0], self._reference.newline()[None]))[chosen]
            ids.insert(1, IMAGE_TOKEN)
            expected = np.concatenate((expected[:1], theirs, expected[1:]))
        merged, _ = merge_prompt(ids, table, pictures, len(expected))
        rows = Comparison("prompt", "merged rows", self._tolerance.stored)
        rows.add(merged, expected)
        self._report(stored, rows)
        return expected

    def _denoiser(self, prompt: Floats) -> None:
        """Compares the full pass over prompt and canvas, and the step pass over the canvas alone."""
        graph, tolerance = self._graph("denoiser"), self._tolerance
        cached = tolerance_of_cached_steps(self._manifest)
        embeds = np.concatenate((prompt, self._canvas()))[None]
        window = _Window(len(prompt), CANVAS)
        layers = Comparison("denoiser", "worst layer by itself", tolerance.layer)
        cache = Comparison("denoiser", "present keys and values", tolerance.whole)
        full = Comparison("denoiser", "logits, full pass", tolerance.whole)
        step = Comparison("denoiser", "logits, step pass", cached)

        full_pass = window.full_pass(embeds) | no_past(self._manifest)
        step_pass = window.step_pass(full_pass)
        rotary = graph.piece("rotary")
        full_pass |= rotary.run(full_pass)
        step_pass |= rotary.run(step_pass)
        stream, before = "inputs_embeds", embeds
        for i, layer in enumerate(self._reference.language(embeds)):
            piece = graph.piece(layer.scope)
            alone = piece.run(full_pass | {stream: window.laid_out(before)})
            full_pass |= piece.run(full_pass)
            kept = {
                name.removeprefix(PRESENT): full_pass[value]
                for name, value in graph.results.items()
                if name.startswith(f"{PRESENT}{i}.")
            }
            for name, expected in (("key", layer.key), ("value", layer.value)):
                real = {part: array[:, :, window.real] for part, array in kept.items()}
                scale, where = real.get(f"{i}.{name}_scale"), f"{layer.scope} {name}"
                cache.add(_unrounded(expected, real[f"{i}.{name}"], scale), expected, where)
                if scale is not None:
                    cache.add(scale, _scales(expected), f"{where} scale")
            step_pass |= {f"{PAST}{name}": array[:, :, : window.canvas_start] for name, array in kept.items()}
            step_pass |= piece.run(step_pass)
            stream = piece.outputs[-1]
            got, after = alone[stream], layer.hidden
            if i == self._manifest.geometry.language.layers - 1:  # for the chosen rows alone
                before, after = (rows[:, len(prompt) :] for rows in (before, after))
            else:
                got = got[:, window.real]
            layers.add(got, after, layer.scope, before=before)
            before = after
            self._progress.advance(piece.bytes)
        expected = self._reference.logits(before)
        head, logits = graph.piece("head"), graph.results["logits"]
        layers.add(head.run({stream: before})[logits], expected, "head")
        full.add(head.run(full_pass)[logits], expected)
        step.add(head.run(step_pass)[logits], expected)
        self._progress.advance(head.bytes)
        self._report(layers, cache, full, step)
        if CPU_DENOISER in self._manifest.graphs:
            given = {name: value for name, value in step_pass.items() if name.startswith(PAST)}
            self._denoiser_cpu(
                window.full_pass(embeds) | no_past(self._manifest), window.step_pass(full_pass) | given, expected
            )

    def _denoiser_cpu(self, full_pass: Values, step_pass: Values, expected: Floats) -> None:
        """Compares the logits of the form that the runtime uses, with the same prompt kept."""
        graph = self._graph(CPU_DENOISER)
        layers = range(self._manifest.geometry.language.layers)
        comparisons = []
        on_cpu = tolerance_on_cpu(self._manifest)
        cached = max(on_cpu, tolerance_of_cached_steps(self._manifest))
        for name, values, whole in (("full", full_pass, on_cpu), ("step", step_pass, cached)):
            for scope in ("parts", "rotary", *(f"layers.{i}" for i in layers), "head"):
                values |= graph.piece(scope).run(values)
            comparisons.append(Comparison("denoiser", f"logits, {name} pass for the CPU", whole))
            comparisons[-1].add(values[graph.results["logits"]], expected)
        self._report(*comparisons)

    def _graph(self, name: str) -> GraphPieces:
        return GraphPieces(self._bundle.file(self._manifest.graphs[name].file))

    def _canvas(self) -> Floats:
        """A canvas half filled with random tokens: `[CANVAS, D]`."""
        ids = np.random.default_rng(0).integers(0, self._manifest.geometry.language.vocab_rows, CANVAS)
        ids[::2] = self._manifest.tokens.mask
        return np.concatenate([self._reference.embedding(i, i + 1) for i in ids.tolist()])


def _unrounded(expected: Floats, kept: npt.NDArray[Any], scale: Floats | None = None) -> Floats:
    """Keys or values that a graph kept; of codes, what is nearest to those expected and may be rounded to them."""
    if scale is None:
        return kept
    nearest: Floats = np.clip(expected, (kept - 0.5) * scale, (kept + 0.5) * scale)
    return nearest


def _scales(vectors: Floats) -> Floats:
    """What 1 stands for in codes of vectors `[B, H, K, Dh]`: `[B, H, K, 1]`."""
    scales: Floats = np.maximum(np.abs(vectors).max(axis=3, keepdims=True) / LARGEST_CODE, LEAST_SCALE)
    return scales


class _Window:
    """Positions as the runtime lays them out: `[prompt | padding | canvas | padding]`.

    Attributes:
        canvas_start: window position of the first canvas position.
        real: window positions that are no padding.
    """

    def __init__(self, prompt: int, canvas: int) -> None:
        self.canvas_start = prompt + PROMPT_PADDING
        self.real = np.concatenate((np.arange(prompt), self.canvas_start + np.arange(canvas)))
        self._size = self.canvas_start + canvas + CANVAS_PADDING
        self._rows = self.real[prompt:]

    def laid_out(self, sequence: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """`[1, P + G, ...]` -> `[1, W, ...]`, zero where there is padding."""
        laid = np.zeros((1, self._size, *sequence.shape[2:]), sequence.dtype)
        laid[:, self.real] = sequence
        return laid

    def full_pass(self, embeds: Floats) -> Values:
        """Inputs of the pass over the whole window, the past not counted."""
        bias = np.full((1, 1, 1, self._size), PADDED, np.float32)
        bias[..., self.real] = 0
        return {
            "inputs_embeds": self.laid_out(embeds),
            "position_ids": self.laid_out(np.arange(embeds.shape[1])[None]),
            "attention_bias": bias,
            "rows": self._rows,
            "kept": np.arange(self._size),
            "keep": np.array([self.canvas_start]),
        }

    def step_pass(self, full_pass: Values) -> Values:
        """Inputs of the pass over the canvas, with the prompt and its padding as past."""
        return {
            "inputs_embeds": full_pass["inputs_embeds"][:, self.canvas_start :],
            "position_ids": full_pass["position_ids"][:, self.canvas_start :],
            "attention_bias": full_pass["attention_bias"],
            "rows": self._rows - self.canvas_start,
            "kept": np.arange(0),
            "keep": np.array([0]),
        }
