"""Runs the golden cases of the authors' code through a bundle and writes the table of `docs/parity.md`.

    python benchmarks/parity.py ../shared docs/parity.md

The golden set (outputs recorded by running the authors' own code, with the script that makes
the checkpoint they belong to) is not part of this repository; its folder is the argument.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
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
from lladav.runtime.denoise import DenoisingLoop, Request
from lladav.runtime.embedding import merge_prompt

# Where the golden set says that a case is exact, every decision has a margin of at least this
# many logits; a decision with a smaller one may go either way.
MARGIN = 1e-3
# Confidence of the reference against ours, relative; the golden set's own suggestion for fp32.
CONFIDENCE_TOLERANCE = 2e-3


def applies(case: dict[str, Any]) -> bool:
    """Whether a case is ours to reproduce.

    Left out are the authors' answer-side cache, which we do not have (it ruins answers), and
    the case that makes their code raise.
    """
    cache = case.get("cache")
    return not case["error"] and (cache is None or cache[1] == 1)


def config_of(case: dict[str, Any]) -> GenerationConfig:
    return GenerationConfig(
        gen_length=case["gen_length"],
        block_length=case["block_length"],
        steps=case["steps"],
        cfg_scale=case.get("cfg_scale", 0.0),
        stop_ids=tuple(map(tuple, case.get("stop_ids", []))),
        suffix_ids=tuple(case.get("suffix_ids", [])),
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
        self._trace = [entry for entry in trace if entry["pos"]]
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

    def _select(self, candidates: np.ndarray, transfers: int) -> np.ndarray:
        entry = next(self._entries)
        own = set(super()._select(candidates, transfers).tolist())
        relative = (self._positions - self._prompt_length).tolist()
        rows = [relative.index(position) for position in entry["pos"]]
        close = (entry.get("conf_gap_logit") or np.inf) < MARGIN or (entry.get("logit_gap") or np.inf) < MARGIN
        for row, token, confidence in zip(rows, entry["tok"], entry["conf"], strict=True):
            agrees = int(self._picks[row]) == token
            self.same_token += agrees
            self.same_position += row in own
            self.narrow += close and not (agrees and row in own)
            if agrees:
                self.error = max(self.error, abs(float(self._confidences[row]) - confidence) / confidence)
            self._picks[row] = token
        return np.array(rows, np.int64)


def replay(pipeline: Pipeline, case: dict[str, Any], images: Sequence[Path]) -> Replay:
    """Runs one case teacher-forced."""
    manifest = pipeline.bundle.manifest
    config = config_of(case)
    rows, _ = merge_prompt(case["ids"], pipeline.table, [pipeline.image_rows(i) for i in images], manifest.max_prompt)
    request = Request(rows, Schedule.of(config, 1), config, config.stop_ids, config.suffix_ids)
    return _TeacherForced(pipeline.denoiser, pipeline.table, manifest.tokens, request).follow(case["trace"])


class GoldenSet:
    """The golden cases, and the bundles they run on, each exported once."""

    def __init__(self, shared: Path, workspace: Path) -> None:
        self.parity = shared / "parity"
        self.facts = json.loads((self.parity / "goldens.json").read_text("utf-8"))
        self._workspace = workspace
        self._pipelines: dict[tuple[str, int, Precision], Pipeline] = {}

    @property
    def cases(self) -> dict[str, dict[str, Any]]:
        return dict(self.facts["gen"]["cases"])

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


def table(golden: GoldenSet) -> str:
    """Every case in fp32 and fp16, as Markdown."""
    lines = [
        "| case | P + G | passes | fp32 answer | fp32 confidence error | fp16 same token | fp16 same position |",
        "|---|---|---|---|---|---|---|",
    ]
    totals = np.zeros(3, np.int64)
    for name, case in golden.cases.items():
        if not applies(case):
            continue
        images = golden.images(case.get("images", []))
        wide = golden.pipeline(case["checkpoint"], case["rows"])
        answer = wide.generate(prompt_ids=case["ids"], images=images, config=config_of(case))
        same = list(answer.token_ids) == case["output_ids"]
        exact = replay(wide, case, images)
        half = replay(golden.pipeline(case["checkpoint"], case["rows"], "fp16"), case, images)
        totals += (half.picks, half.same_token, half.same_position)
        verdict = "identical" if same else f"{exact.narrow} narrow decisions differ"
        lines.append(
            f"| `{name}` | {case['prompt_len']} + {case['gen_length']} | {len(answer.steps)} | {verdict} "
            f"| {exact.confidence_error:.1e} | {half.same_token}/{half.picks} | {half.same_position}/{half.picks} |"
        )
        print(lines[-1], flush=True)
    picks, tokens, positions = totals.tolist()
    lines.append(f"| **all** | | | | | {tokens / picks:.2%} | {positions / picks:.2%} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="folder that holds parity/goldens.json")
    parser.add_argument("page", type=Path, help="Markdown page whose table is replaced")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as workspace:
        text = table(GoldenSet(options.shared, Path(workspace)))
    page = options.page.read_text("utf-8")
    start, end = "<!-- table -->", "<!-- end of table -->"
    before, rest = page.split(start)
    options.page.write_text(f"{before}{start}\n{text}\n{end}{rest.split(end)[1]}", "utf-8")


if __name__ == "__main__":
    main()
