"""Outputs of the authors' own code, and what it takes to hold ours against them.

The golden set (recorded outputs, with the script that makes the checkpoint they belong to) is
not part of this repository; tests that need it skip where it is absent.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lladav.export.config import ExportConfig
from lladav.export.exporter import export
from lladav.manifest import Precision
from lladav.runtime import GenerationConfig, Pipeline
from lladav.runtime.config import Schedule
from lladav.runtime.denoise import DenoisingLoop, Turn
from lladav.runtime.embedding import merge_prompt
from lladav.runtime.images import open_image, preprocess
from lladav.runtime.loop import Request
from lladav.runtime.presets import resolve

# Where the golden set says that a case is exact, every decision has a margin of at least this
# many logits; a decision with a smaller one may go either way.
MARGIN = 1e-3
# Confidence of the reference against ours, relative; the golden set's own suggestion for fp32.
CONFIDENCE_TOLERANCE = 2e-3
# Absolute, in fp32. A tenth of what changes a decision, and well above the rounding noise of the
# reference itself (fp32 against fp64: 1.4e-5, 3e-6 and 1.7e-4).
FEATURE_TOLERANCE, CONNECTOR_TOLERANCE, LOGIT_TOLERANCE = 1e-3, 1e-4, 2e-3


def applies(case: dict[str, Any]) -> bool:
    """Whether a case is ours to reproduce.

    Left out are the authors' answer-side cache, which we do not have (it ruins answers), and
    the case that makes their code raise.
    """
    cache = case.get("cache")
    return not case.get("error") and (cache is None or cache[1] == 1)


def config_of(case: dict[str, Any]) -> GenerationConfig:
    return GenerationConfig(
        gen_length=case["gen_length"],
        block_length=case["block_length"],
        steps=case["steps"],
        cfg_scale=case.get("cfg_scale", 0.0),
        stop_ids=tuple(map(tuple, case.get("stop_ids", []))),
        suffix_ids=tuple(case.get("suffix_ids", [])),
        refresh_interval=case.get("cache", [1])[0],
    )


@dataclass(frozen=True)
class Replay:
    """A case replayed step by step on the reference's own canvases.

    Attributes:
        picks: decisions taken by the reference.
        same_token: of which our token at that position is the same.
        same_position: of which we would have committed the same position in the same step.
        narrow: decisions that differ, but whose margin in the reference is below `MARGIN`.
        confidence_error: largest relative error of the confidence in a token we agree on.
    """

    picks: int
    same_token: int
    same_position: int
    narrow: int
    confidence_error: float


class _TeacherForced(DenoisingLoop):
    """Commits what the reference committed, and counts what it would have done itself."""

    def follow(self, trace: list[dict[str, Any]]) -> Replay:
        self._entries = iter(trace)
        self.same_token = self.same_position = self.narrow = 0
        self.error = 0.0
        for _ in self:
            pass
        return Replay(
            picks=sum(len(entry["pos"]) for entry in trace),
            same_token=self.same_token,
            same_position=self.same_position,
            narrow=self.narrow,
            confidence_error=self.error,
        )

    def _select(self, turn: Turn) -> np.ndarray:
        canvas, entry = turn.canvas, next(self._entries)
        own = set(super()._select(turn).tolist())
        positions = canvas.positions.tolist()
        rows = [positions.index(position) for position in entry["pos"]]
        close = (entry.get("conf_gap_logit") or np.inf) < MARGIN or (entry.get("logit_gap") or np.inf) < MARGIN
        for row, token, confidence in zip(rows, entry["tok"], entry["conf"], strict=True):
            agrees = int(canvas.tokens[row]) == token
            self.same_token += agrees
            self.same_position += row in own
            self.narrow += close and not (agrees and row in own)
            if agrees:
                self.error = max(self.error, abs(float(canvas.confidences[row]) - confidence) / confidence)
            canvas.tokens[row] = token
        return np.array(rows, np.int64)


def request_of(prompt: np.ndarray, config: GenerationConfig) -> Request:
    """The request for an answer to a merged prompt `[P, D]`, with options that name every length."""
    return Request((prompt,), Schedule.of(config, 1), config, resolve(config), config.stop_ids, config.suffix_ids)


def replay(pipeline: Pipeline, case: dict[str, Any], images: Sequence[Path]) -> Replay:
    """Runs one case teacher-forced."""
    manifest = pipeline.bundle.manifest
    config = config_of(case)
    rows, _ = merge_prompt(case["ids"], pipeline.table, [pipeline.image_rows(i) for i in images], manifest.max_prompt)
    request = request_of(rows, config)
    return _TeacherForced(pipeline.denoiser, pipeline.table, manifest.tokens, request).follow(case["trace"])


def generation_cases(parity: Path) -> dict[str, dict[str, Any]]:
    """The cases of generation by name, of the folder that holds goldens.json; none where it does not."""
    if not (parity / "goldens.json").is_file():
        return {}
    plain = json.loads((parity / "goldens.json").read_text("utf-8"))["gen"]["cases"]
    return {**plain, **json.loads((parity / "goldens_prompt_cache.json").read_text("utf-8"))["cases"]}


class GoldenSet:
    """The golden cases, and the bundles they run on, each exported once."""

    def __init__(self, shared: Path, workspace: Path) -> None:
        self.parity = shared / "parity"
        self.facts = json.loads((self.parity / "goldens.json").read_text("utf-8"))
        self.arrays = np.load(self.parity / "goldens.npz")
        self._workspace = workspace
        self._pipelines: dict[tuple[str, int, Precision], Pipeline] = {}

    @property
    def cases(self) -> dict[str, dict[str, Any]]:
        """Of generation, by name."""
        return generation_cases(self.parity)

    def error(self, spec: dict[str, Any], found: np.ndarray) -> float:
        """Largest absolute difference at the positions that the golden set samples of a tensor."""
        if list(found.shape) != spec["shape"]:
            raise ValueError(f"shape {list(found.shape)} instead of {spec['shape']}")
        samples, values = self.arrays[spec["npz"] + "/idx"], self.arrays[spec["npz"] + "/val"]
        return float(np.abs(found.reshape(-1)[samples] - values).max())

    def images(self, names: Sequence[str]) -> list[Path]:
        return [next(self.parity.glob(f"images/{name}.*")) for name in names]

    def checkpoint(self, name: str) -> Path:
        """The checkpoint that cases call "fp32", "bf16" or "patched"."""
        folder = self._workspace / name
        if not folder.exists():
            seed = str(self.facts["checkpoint"]["seed"])
            command = [sys.executable, str(self.parity / "make_checkpoint.py"), str(folder), "--seed", seed]
            if name == "bf16":
                command += ["--dtype", "bfloat16"]
            elif name in self.facts["gen"]["patches"]:
                patch = self._workspace / f"{name}.json"
                patch.write_text(json.dumps(self.facts["gen"]["patches"][name]))
                command += ["--patch", str(patch)]
            subprocess.run(command, check=True, capture_output=True)
        return folder

    def pipeline(self, checkpoint: str = "fp32", rows: int = 126464, precision: Precision = "fp32") -> Pipeline:
        """A pipeline on that checkpoint; `rows` as the cases give them."""
        key = (checkpoint, rows, precision)
        if key not in self._pipelines:
            source = self.checkpoint(checkpoint)
            every = rows == json.loads((source / "config.json").read_text("utf-8"))["vocab_size"]
            config = ExportConfig(dtype=precision, vocab_rows="all" if every else "tokenizer", verify=False)
            bundle = self._workspace / f"{checkpoint}-{rows}-{precision}.bundle"
            export(source, bundle, config)
            self._pipelines[key] = Pipeline.load(bundle)
        return self._pipelines[key]

    def crops(self, name: str, pipeline: Pipeline) -> np.ndarray:
        """Crops uint8 `[T, S, S, 3]` of a golden picture, or of the set's synthetic one."""
        if name == "synthetic_2crops":
            seed = np.random.SeedSequence([51, zlib.crc32(name.encode()), 2])
            return np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (2, 384, 384, 3), dtype=np.uint8)
        return preprocess(open_image(self.images([name])[0]), pipeline.pictures.encoder.preprocessing).pixels

    def merged_prompt(self, pipeline: Pipeline, case: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Prompt `[P, D]` of a case of `merge`, and the token at each of its positions `[P]`."""
        aspect: Any = case["aspect_override"] or "anyres"
        rows = [pipeline.image_rows(path, aspect) for path in self.images(case["images"])]
        return merge_prompt(case["ids"], pipeline.table, rows, pipeline.bundle.manifest.max_prompt)

    def logits(self, pipeline: Pipeline, name: str) -> np.ndarray:
        """Logits of the last positions of a case of `fwd`, in a window with padding."""
        case = self.facts["fwd"]["cases"][name]
        if case["ids"] is None:
            embeds = self.arrays[f"fwd/{name}/embeds"].reshape(case["length"], -1)
        else:
            rows = [pipeline.image_rows(path) for path in self.images([case["image"]] if case["image"] else [])]
            text, _ = merge_prompt(case["ids"], pipeline.table, rows, pipeline.bundle.manifest.max_prompt)
            masks = pipeline.table.gather([pipeline.bundle.manifest.tokens.mask] * (case["length"] - len(text)))
            embeds = np.concatenate((text, masks))
        tail = case["tail"]
        window = pipeline.denoiser.window([case["length"] - tail], tail, tail)
        window.prompt[0, : case["length"] - tail], window.canvas[0, :tail] = embeds[:-tail], embeds[-tail:]
        return window.refresh(window.canvas_start + np.arange(tail))[0]
