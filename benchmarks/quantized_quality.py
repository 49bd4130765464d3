"""What quantised bundles keep of the answers: every form, with statistics of calibrations that see more or less.

    python -m benchmarks.quantized_quality --data node_modules --cache CACHE --work WORK --page docs/quality.md

Asks the demo checkpoint's bundles the questions about held-out drawings of `benchmarks/quality.py`. Calibrations see
other drawings, of a style that the checkpoint was trained on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from benchmarks.calibration import PROMPTS
from benchmarks.demo_checkpoint.drawings import load_style, load_things
from benchmarks.gpu.bundles import DEMO
from benchmarks.pages import replace_parts
from benchmarks.quality import Case, make_cases
from lladav.calib import CalibrationConfig, calibrate
from lladav.export import ExportConfig, export
from lladav.export.agreement import StepAgreement, agreement
from lladav.runtime import GenerationConfig, Pipeline
from lladav.runtime.question import Question

STYLES, CALIBRATION_STYLE = ("twemoji", "openmoji"), "noto"
REFERENCE = "fp16"
GATES = {"w8a8": 0.5, "w8": 0.3, "w4": 1.5}
"""Points of accuracy that a form may lose against the reference, with whatever other options."""

WORST = 3
_WINDOW = 16


@dataclass(frozen=True)
class Calibration:
    """What a calibration sees.

    Attributes:
        steps: passes per answer; 1 sees canvases of all masks alone.
        pictures: whether it is shown any.
    """

    steps: int
    pictures: bool


CALIBRATIONS = {
    "steps and pictures": Calibration(16, True),
    "first pass, pictures": Calibration(1, True),
    "steps, text alone": Calibration(16, False),
    "first pass, text alone": Calibration(1, False),
}


@dataclass(frozen=True)
class Form:
    """A way to export.

    Attributes:
        name: of the form and what else is in integers.
        options: of `ExportConfig`.
        calibration: whose statistics it takes; None for none.
    """

    name: str
    options: dict[str, Any] = field(hash=False)
    calibration: str | None = None

    @property
    def label(self) -> str:
        """What tells it from others of its name."""
        return self.calibration or "none"


def quantised_form(name: str, calibration: str | None = None) -> Form:
    """Linear layers in integers."""
    return Form(name, {"dtype": "fp16", "quantize": name}, calibration)


def fastest_form(name: str, calibration: str | None = None) -> Form:
    """With what the CPU computes fastest: an 8-bit head, and 8-bit weights made of 4-bit ones."""
    form = quantised_form(name, calibration)
    widened = {"widen_on_cpu": True} if name == "w4" else {}
    return Form(
        f"{name}, 8-bit head{', widened' if widened else ''}",
        form.options | {"quantize_head": True} | widened,
        calibration,
    )


FORMS = (
    Form(REFERENCE, {"dtype": "fp16"}),
    Form("fp32", {"dtype": "fp32"}),
    Form("fp16, int8 prompt KV", {"dtype": "fp16", "prompt_kv": "int8"}),
    quantised_form("w8"),
    quantised_form("w4"),
    *(quantised_form(name, "steps and pictures") for name in ("w8", "w4", "w8a8")),
    *(quantised_form(name, "first pass, pictures") for name in ("w4", "w8a8")),
    *(quantised_form("w8a8", calibration) for calibration in ("steps, text alone", "first pass, text alone")),
    *(fastest_form(name) for name in ("w8", "w4")),
    *(fastest_form(name, "steps and pictures") for name in ("w8", "w4", "w8a8")),
)


class Measured(BaseModel):
    """One form.

    Attributes:
        texts: all answers.
        asked: questions that are replayed.
        steps: what they found, of all passes.
        worst: largest relative errors of layers.
        kept: layers that are no integers.
    """

    texts: tuple[str, ...]
    asked: int
    steps: StepAgreement
    worst: tuple[tuple[str, float], ...]
    kept: int


class Workplace:
    """Pictures, questions, statistics and bundles in one folder, each made once.

    Args:
        folder: where they are.
        cases: all questions.
        compared: how many of them, the first, are replayed step by step.
    """

    def __init__(self, folder: Path, cases: Sequence[Case], compared: int) -> None:
        self._folder, self._cases = folder, cases
        self.questions = folder / "questions.jsonl"
        self.asked = folder / "asked"
        self.asked.mkdir(parents=True, exist_ok=True)
        lines = []
        # Every other style in turn, so that the first ones are of all.
        for number in np.arange(len(cases)).reshape(len(STYLES), -1).T.ravel()[:compared].tolist():
            case = cases[number]
            case.image.save(self.asked / f"{number}.png")
            lines.append(json.dumps({"image": f"{number}.png", "prompt": case.text, "answer": case.answer}))
        self.questions.write_text("\n".join(lines) + "\n", "utf-8")
        (folder / "prompts.txt").write_text("\n".join(PROMPTS), "utf-8")

    def bundle(self, form: Form) -> Path:
        """Exports, and calibrates before where the form asks for it."""
        path = self._folder / f"{form.name}-{form.label}".replace(" ", "_").replace(",", "")
        if path.exists():
            return path
        options = dict(form.options)
        if form.calibration is not None:
            options["statistics"] = self._statistics(form.calibration)
        export(DEMO, path, ExportConfig(verify=False, **options))
        return path

    def measure(self, form: Form) -> Measured:
        """Asks all questions, and replays the first ones; what was measured in this folder before is read."""
        bundle = self.bundle(form)
        kept = bundle / "measured.json"
        if kept.exists():
            return Measured.model_validate_json(kept.read_text("utf-8"))
        pipe = Pipeline.load(bundle, feature_cache_bytes=0)
        asked = [Question(prompt=case.text, images=[case.image]) for case in self._cases]
        texts = tuple(answer.text.strip() for answer in pipe.generate_batch(asked, GenerationConfig()))
        beside = agreement(bundle, self.bundle(FORMS[0]), images=self.asked, questions=self.questions)
        quantization = pipe.bundle.manifest.quantization
        found = Measured(
            texts=texts,
            asked=beside.answers.asked,
            steps=beside.total,
            worst=tuple((layer.layer, layer.error) for layer in beside.worst[:WORST]),
            kept=len(quantization.kept) if quantization else 0,
        )
        kept.write_text(found.model_dump_json(), "utf-8")
        return found

    def _statistics(self, name: str) -> Path:
        path = self._folder / f"{name.replace(' ', '_').replace(',', '')}.npz"
        wanted = CALIBRATIONS[name]
        if not path.exists():
            calibrate(
                self.bundle(FORMS[0]),
                path,
                images=self._folder / "calibration" if wanted.pictures else None,
                prompts=self._folder / "prompts.txt",
                config=CalibrationConfig(gen_length=_WINDOW, steps=wanted.steps),
            )
        return path


class Table:
    """All forms; the first is what the others are held against.

    Args:
        found: by form.
        answers: the right ones.
    """

    def __init__(self, found: Mapping[Form, Measured], answers: Sequence[str]) -> None:
        self._found = found
        self._right = {
            form: np.array([text == answer for text, answer in zip(one.texts, answers, strict=True)])
            for form, one in found.items()
        }
        self._reference = next(iter(found))

    def _lost(self, form: Form) -> float:
        """Points of accuracy."""
        return 100 * float(self._right[self._reference].mean() - self._right[form].mean())

    def rows(self) -> Iterator[str]:
        """In Markdown."""
        yield (
            "| form | calibration | kept layers | right | against fp16, points | lost / won | equal answers "
            "| same tokens | by margin | KL mean | KL largest | worst layers |"
        )
        yield "|---" * 12 + "|"
        reference = self._right[self._reference]
        for form, one in self._found.items():
            right = self._right[form]
            pairs = zip(self._found[self._reference].texts, one.texts, strict=True)
            equal = np.mean([ours == theirs for ours, theirs in pairs])
            worst = ", ".join(f"{error:.2f}" for _, error in one.worst)
            yield (
                f"| {form.name} | {form.label} | {one.kept} | {right.mean():.3f} | {0 - self._lost(form):+.2f} "
                f"| {(reference & ~right).sum()} / {(right & ~reference).sum()} | {equal:.1%} "
                f"| {one.steps.same:.1%} | {one.steps.same_by_margin:.1%} | {one.steps.divergence_mean:.2g} "
                f"| {one.steps.divergence_max:.2g} | {worst} |"
            )

    def gates(self) -> Iterator[str]:
        """A line per gate and bundle of its form, with the verdict."""
        for form in self._found:
            points = GATES.get(form.options.get("quantize", ""))
            if points is not None:
                lost = self._lost(form)
                verdict = "kept" if lost <= points else "**broken**"
                yield (
                    f"- `{form.name}`, calibration: {form.label}, loses {lost:.2f} points against {REFERENCE}; "
                    f"at most {points} are allowed: {verdict}."
                )

    def page(self, pictures: int) -> Iterator[str]:
        """The section of `docs/quality.md`."""
        one = self._found[self._reference]
        yield (
            "Written by `python -m benchmarks.quantized_quality --data node_modules --cache CACHE --work WORK --page "
            f"docs/quality.md`: {len(one.texts)} questions about held-out drawings "
            f"({', '.join(STYLES)}), preset `balanced`. Right is an exact match of the whole answer; lost and won are "
            "answers that only the reference has right, and only the other. Tokens, margins and KL, in nats, are of "
            f"{one.steps.rows:,} rows of the passes of {one.asked} of the questions, on the reference's canvases "
            f"(`lladav verify --quantized`). Worst layers are the {WORST} largest relative errors of outputs, on the "
            f"reference's input to their block. Calibrations see {pictures} drawings of another style "
            f"({CALIBRATION_STYLE}) and six prompts, or the prompts alone. Kept layers are those that the export chose."
        )
        yield ""
        yield from self.gates()
        yield ""
        yield from self.rows()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the node_modules folder")
    parser.add_argument("--cache", type=Path, required=True, help="folder for rendered drawings")
    parser.add_argument("--work", type=Path, required=True, help="folder for pictures, statistics and bundles")
    parser.add_argument("--page", type=Path, required=True, help="Markdown page whose section is replaced")
    parser.add_argument("--count", type=int, default=600, help="questions per style")
    parser.add_argument("--compared", type=int, default=120, help="questions that are replayed step by step")
    parser.add_argument("--pictures", type=int, default=64, help="that calibrations see")
    args = parser.parse_args()
    things = load_things(args.data)
    styles = [load_style(args.data, name, args.cache) for name in STYLES]
    shown = args.work / "calibration"
    shown.mkdir(parents=True, exist_ok=True)
    seen = make_cases([load_style(args.data, CALIBRATION_STYLE, args.cache)], things, args.pictures)
    for number, case in enumerate(seen):
        case.image.save(shown / f"{number:03d}.png")
    cases = make_cases(styles, things, args.count)
    work = Workplace(args.work, cases, args.compared)
    found = {}
    for form in FORMS:
        found[form] = work.measure(form)
        print(form.name, form.label, found[form].steps, flush=True)
        table = Table(found, [case.answer for case in cases])
        replace_parts(args.page, {"quantised bundles": table.page(args.pictures)})


if __name__ == "__main__":
    main()
