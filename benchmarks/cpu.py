"""Speed on the CPU beside the authors' loop, all in one process and in alternation.

    python -m benchmarks.cpu --out cpu.json --table docs/speed.md
    python -m benchmarks.cpu --threads 1 --clock processor ...

Every round runs each contestant once; a ratio is the median over the rounds of the authors' time
over ours in the same round, so that what else the machine does weighs on both. Where it does much, wall
time says who was kept waiting; the processor time of one thread leaves that out.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from benchmarks import mid_size
from benchmarks.authors import AuthorsLoop
from benchmarks.speed_table import report
from lladav.bundle import Bundle
from lladav.export.config import ExportConfig
from lladav.export.exporter import export
from lladav.runtime import Answer, GenerationConfig, Pipeline
from lladav.runtime.embedding import merge_prompt
from lladav.runtime.presets import PRESETS, resolve
from lladav.runtime.question import Encoder, Question
from lladav.runtime.sessions import NUMPY_TYPES, BoundPass, open_session

DEMO = Path(__file__).parent / "demo_checkpoint"
PROMPT, CANVAS = 1000, 64
# Prompt lengths that fill their bucket.
LENGTHS = (256, 512, 1024, 2048, 4480)
Config = Mapping[str, GenerationConfig]

CONFIGS: Config = {
    "exact, R=8": GenerationConfig(preset="exact", refresh_interval=8),
    **{name: GenerationConfig(preset=name) for name in PRESETS},
}

TEMPLATE = '{"object": "{{6}}", "colour": "{{2}}", "graspable": {{bool}}}'

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}
clock = CLOCKS["wall"]


def seconds(action: Callable[[], object]) -> float:
    """Time of one call, after the threads of the call before it have gone to sleep."""
    time.sleep(0.1)
    began = clock()
    action()
    return clock() - began


def alternate(contestants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every contestant in every round."""
    return take_turns({name: functools.partial(seconds, action) for name, action in contestants.items()}, rounds)


def take_turns(contestants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What every contestant says that it took, in every round; a round before them warms up and does not count."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, measure in contestants.items():
            taken = measure()
            if number:
                times[name].append(taken)
    return times


class JointStep:
    """The step pass in the graph for engine builders, which joins the prompt's keys with the canvas'.

    Args:
        bundle: with random weights.
        threads: of one operator.
    """

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self._bundle = bundle
        self._session = open_session(bundle, "denoiser", threads)

    def bound(self, prompt: int, rows: int) -> BoundPass:
        """A pass against that many cached positions, for the first `rows` of the canvas."""
        g = self._bundle.manifest.geometry.language
        draw = np.random.default_rng(0)
        inputs: dict[str, np.ndarray] = {
            "inputs_embeds": (0.02 * draw.standard_normal((1, CANVAS, g.hidden_size))).astype(np.float32),
            "position_ids": prompt + np.arange(CANVAS)[None],
            "attention_bias": np.zeros((1, 1, 1, prompt + CANVAS), np.float32),
            "rows": np.arange(rows),
            "kept": np.zeros(0, np.int64),
        }
        for spec in self._bundle.manifest.graphs["denoiser"].inputs:
            if spec.name not in inputs:
                shape = (1, g.kv_heads, prompt, g.head_size)
                inputs[spec.name] = draw.standard_normal(shape).astype(NUMPY_TYPES[spec.dtype])
        return BoundPass(self._session, inputs, {"logits": np.zeros((1, rows, g.vocab_rows), np.float32)})


def measure_passes(pipe: Pipeline, authors: AuthorsLoop, threads: int, rounds: int) -> dict[str, Any]:
    """One pass of each kind on the mid-size model, logits of the whole canvas wanted."""
    prompt = prompt_rows(pipe)
    window = pipe.denoiser.window([PROMPT], CANVAS, CANVAS, cached=True)
    window.prompt[0, :PROMPT] = prompt
    window.canvas[:] = pipe.table.gather([pipe.bundle.manifest.tokens.mask])
    rows = window.canvas_start + np.arange(CANVAS)
    joint = JointStep(pipe.bundle, threads).bound(window.canvas_start, CANVAS)
    times = alternate(
        {
            "authors": lambda: authors.step(authors.start(prompt, CANVAS), PROMPT + CANVAS, 1),
            "refresh": lambda: window.refresh(rows),
            "step": lambda: window.step(rows),
            "step, half of the canvas decided": lambda: window.step(rows[: CANVAS // 2]),
            "step, keys and values joined": joint.run,
        },
        rounds,
    )
    return {"seconds": times, "ratios": {name: ratio(times["authors"], own) for name, own in times.items()}}


def measure_lengths(pipe: Pipeline, threads: int, rounds: int) -> dict[str, Any]:
    """A step for one row of logits against prompts of several lengths, in both forms of the graph."""
    forms = JointStep(pipe.bundle, threads)
    out: dict[str, Any] = {}
    for length in LENGTHS:
        window = pipe.denoiser.window([length], CANVAS, CANVAS, cached=True)
        window.prompt[:] = np.random.default_rng(0).standard_normal(window.prompt.shape)
        row = window.canvas_start + np.arange(1)
        window.refresh(row)
        contestants = {"in place": functools.partial(window.step, row), "joined": forms.bound(length, 1).run}
        out[str(length)] = alternate(contestants, rounds)
    language = pipe.bundle.manifest.geometry.language
    width = 4 * 2 * language.layers * language.kv_heads * language.head_size
    return {"seconds": out, "bytes_per_position": width}


def measure_answers(pipe: Pipeline, authors: AuthorsLoop, configs: Config, rounds: int) -> dict[str, Any]:
    """Whole answers of the mid-size model.

    The authors' passes all cost the same, and as many as they need take minutes, so one of them is
    taken beside every answer, times the tokens.
    """
    prompt, ids = prompt_rows(pipe), prompt_ids(pipe)
    answers: dict[str, list[Answer]] = {name: [] for name in configs}
    theirs: dict[str, list[float]] = {name: [] for name in configs}
    ours: dict[str, list[float]] = {name: [] for name in configs}
    for _ in range(rounds):
        for name, config in configs.items():
            one = seconds(lambda: authors.step(authors.start(prompt, CANVAS), PROMPT + CANVAS, 1))
            theirs[name].append(CANVAS * one)
            whole = config.model_copy(update={"gen_length": CANVAS})
            ours[name].append(
                seconds(lambda c=whole, a=answers[name]: a.append(pipe.generate(prompt_ids=ids, config=c)))
            )
    out = {name: summary(answers[name]) for name in configs}
    for name, own in out.items():
        own |= {
            "seconds": ours[name],
            "authors_seconds": theirs[name],
            "authors_passes": CANVAS,
            "ratio": ratio(theirs[name], ours[name]),
        }
    return out


def measure_demo(pipe: Pipeline, authors: AuthorsLoop, configs: Config, rounds: int) -> dict[str, Any]:
    """Denoising of whole answers about the demo's pictures, the authors' loop on the same merged prompt."""
    manifest = pipe.bundle.manifest
    encoder = Encoder(manifest, pipe.tokenizer, pipe.table.rows)
    asked = json.loads((DEMO / "pictures" / "questions.json").read_text("utf-8"))
    length = manifest.generation.gen_length
    answers: dict[str, list[Answer]] = {name: [] for name in configs}
    ratios: dict[str, list[float]] = {name: [] for name in configs}
    same = dict.fromkeys(configs, 0)
    theirs, their_passes = [], []
    for entry in asked:
        picture = DEMO / "pictures" / entry["image"]
        ids, stops = encoder.ids(Question(entry["question"], images=[picture]), GenerationConfig())
        prompt, _ = merge_prompt(ids, pipe.table, [pipe.image_rows(picture)], manifest.max_prompt)
        for number in range(rounds):
            time.sleep(0.1)
            began = time.perf_counter()
            found, passes = authors.generate(prompt, length, stops=stops)
            theirs.append(time.perf_counter() - began)
            their_passes.append(passes)
            for name, config in configs.items():
                answer = pipe.generate(entry["question"], images=[picture], config=config)
                ratios[name].append(theirs[-1] / (answer.timings_ms["denoise"] / 1e3))
                answers[name].append(answer)
                same[name] += number == 0 and list(answer.token_ids) == found
    return {
        name: summary(answers[name])
        | {
            "authors_seconds": theirs,
            "authors_passes": float(np.mean(their_passes)),
            "ratio": float(np.median(ratios[name])),
            "same_as_authors": same[name],
            "questions": len(asked),
        }
        for name in configs
    }


def measure_template(pipe: Pipeline, rounds: int) -> dict[str, Any]:
    """Whole answers about the demo's pictures in a form with holes, which the authors' loop has not."""
    asked = json.loads((DEMO / "pictures" / "questions.json").read_text("utf-8"))
    pictures = [DEMO / "pictures" / entry["image"] for entry in asked]
    config = GenerationConfig(template=TEMPLATE)
    answers = [
        pipe.generate("What is this?", images=[picture], config=config) for picture in pictures for _ in range(rounds)
    ]
    return summary(answers) | {"template": TEMPLATE}


def summary(answers: list[Answer]) -> dict[str, Any]:
    """Seconds of each answer, passes of the first, and the host's part in its passes."""
    host = {
        kind: [(s.ms - s.graph_ms, s.ms) for a in answers for s in a.steps if s.kind == kind]
        for kind in ("refresh", "step")
    }
    return {
        "seconds": [answer.timings_ms["denoise"] / 1e3 for answer in answers],
        "passes": float(np.mean([len(answer.steps) for answer in answers])),
        "refreshes": float(np.mean([sum(s.kind == "refresh" for s in a.steps) for a in answers])),
        "host_ms": {kind: float(np.median([own for own, _ in pairs])) for kind, pairs in host.items() if pairs},
        "host_share": {
            kind: float(np.median([own / all_ for own, all_ in pairs])) for kind, pairs in host.items() if pairs
        },
    }


def ratio(theirs: list[float], ours: list[float]) -> float:
    """Median of paired ratios."""
    return float(np.median(np.array(theirs) / np.array(ours)))


def prompt_ids(pipe: Pipeline) -> list[int]:
    known = min(pipe.table.rows, 100_000)
    return np.random.default_rng(0).integers(256, known, PROMPT).tolist()


def prompt_rows(pipe: Pipeline) -> np.ndarray:
    return pipe.table.gather(prompt_ids(pipe))


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


def machine() -> dict[str, Any]:
    """What the figures belong to; `load` is how many others want a core when it starts."""
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if cpuinfo.is_file()
        else []
    )
    return {
        "processor": names[0].partition(":")[2].strip() if names else platform.processor(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "load": round(os.getloadavg()[0], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--repeat", type=int, default=7, help="rounds of passes")
    parser.add_argument("--answers", type=int, default=1, help="rounds of the mid-size model's whole answers")
    parser.add_argument("--configs", nargs="*", choices=list(CONFIGS), default=list(CONFIGS), help="of whole answers")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="of the mid-size model's figures")
    parser.add_argument("--out", type=Path, help="JSON file of all figures")
    parser.add_argument("--table", type=Path, help="Markdown file")
    options = parser.parse_args()
    if options.clock == "processor" and options.threads != [1]:
        parser.error("--clock processor adds up threads that wait; it needs --threads 1")
    global clock
    clock = CLOCKS[options.clock]
    chosen = {name: config for name, config in CONFIGS.items() if name in options.configs}
    results: dict[str, Any] = {
        "machine": {**machine(), "clock": options.clock},
        "knobs": {n: resolve(c).model_dump() for n, c in chosen.items()},
    }
    with tempfile.TemporaryDirectory() as folder:
        mid = mid_size.write_checkpoint(Path(folder) / "mid")
        plain = ExportConfig(dtype="fp32", vocab_rows="all", verify=False)
        bundle = export(mid, Path(folder) / "mid.bundle", plain)
        demo = export(DEMO / "checkpoint", Path(folder) / "demo.bundle", ExportConfig(dtype="fp32", verify=False))
        for threads in options.threads:
            with torch_threads(threads):
                pipe, authors = Pipeline.load(bundle.path, threads), AuthorsLoop.of(mid, bundle.manifest)
                measured = {
                    "passes": measure_passes(pipe, authors, threads, options.repeat),
                    "answers": measure_answers(pipe, authors, chosen, options.answers),
                }
                del authors
                measured["lengths"] = measure_lengths(pipe, threads, options.repeat)
                del pipe
                authors = AuthorsLoop.of(DEMO / "checkpoint", demo.manifest)
                pipe = Pipeline.load(demo.path, threads)
                measured["demo"] = measure_demo(pipe, authors, chosen, options.repeat)
                measured["template"] = measure_template(pipe, options.repeat)
                results[f"threads={threads}"] = measured
                results["machine"]["load_after"] = round(os.getloadavg()[0], 2)
                _write(results, options.out, options.table)
                print(json.dumps({threads: measured["passes"]["ratios"]}), flush=True)


def _write(results: dict[str, Any], out: Path | None, table: Path | None) -> None:
    if out:
        out.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    if table:
        table.write_text(report(results), "utf-8")


if __name__ == "__main__":
    main()
