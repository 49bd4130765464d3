"""What quantised bundles keep of the answers: every form, with statistics of calibrations that see more or less.

    python -m benchmarks.quantized_quality --data node_modules --cache CACHE --work WORK --page docs/quality.md

Asks the demo checkpoint's bundles the questions about held-out drawings of `benchmarks/quality.py`. Calibrations see
other drawings, of a style that the checkpoint was trained on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.calibration import PROMPTS
from benchmarks.demo_checkpoint.drawings import load_style, load_things
from benchmarks.gpu.bundles import DEMO
from benchmarks.parity import replaced
from benchmarks.quality import Case, make_cases
from lladav.calib import CalibrationConfig, calibrate
from lladav.export import ExportConfig, export
from lladav.export.agreement import AgreementReport, agreement
from lladav.runtime import GenerationConfig, Pipeline
from lladav.runtime.question import Question

STYLES, CALIBRATION_STYLE = ("twemoji", "openmoji"), "noto"
REFERENCE = "fp16"
GATES = {"w8a8": 0.5, "w8": 0.3, "w4": 1.5}
"""Points of accuracy that a form may lose against the reference."""

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
        name: as a gate calls it.
        options: of `ExportConfig`.
        calibration: whose statistics it takes; None for none.
    """

    name: str
    options: dict[str, Any]
    calibration: str | None = None


FORMS = (
    Form(REFERENCE, {"dtype": "fp16"}),
    Form("fp32", {"dtype": "fp32"}),
    Form("w8", {"dtype": "fp16", "quantize": "w8"}),
    Form("w4", {"dtype": "fp16", "quantize": "w4"}),
    *(Form("w8a8", {"dtype": "fp16", "quantize": "w8a8"}, calibration) for calibration in CALIBRATIONS),
)


@dataclass(frozen=True, eq=False)
class Measured:
    """One form.

    Attributes:
        right: `[n]` bool, by question.
        texts: of the answers.
        beside: the comparison with the reference.
    """

    form: Form
    right: np.ndarray
    texts: tuple[str, ...]
    beside: AgreementReport


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
        options = dict(form.options)
        if form.calibration is not None:
            options["statistics"] = self._statistics(form.calibration)
        path = self._folder / "-".join(filter(None, (form.name, form.calibration))).replace(" ", "_")
        if not path.exists():
            export(DEMO, path, ExportConfig(verify=False, **options))
        return path

    def measure(self, form: Form) -> Measured:
        """Asks all questions, and replays the first ones."""
        bundle = self.bundle(form)
        pipe = Pipeline.load(bundle, feature_cache_bytes=0)
        asked = [Question(prompt=case.text, images=[case.image]) for case in self._cases]
        texts = tuple(answer.text.strip() for answer in pipe.generate_batch(asked, GenerationConfig()))
        right = np.array([text == case.answer for text, case in zip(texts, self._cases, strict=True)])
        beside = agreement(bundle, self.bundle(FORMS[0]), images=self.asked, questions=self.questions)
        return Measured(form, right, texts, beside)

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


def rows(found: Sequence[Measured]) -> Iterator[str]:
    """The table; the first is what the others are held against."""
    reference = found[0]
    yield (
        "| form | calibration | right | against fp16, points | lost / won | equal answers "
        "| same tokens | by margin | KL mean | KL largest | worst layers |"
    )
    yield "|---" * 11 + "|"
    for one in found:
        lost = int((reference.right & ~one.right).sum())
        won = int((one.right & ~reference.right).sum())
        equal = np.mean([ours == theirs for ours, theirs in zip(reference.texts, one.texts, strict=True)])
        total = one.beside.total
        worst = ", ".join(f"{layer.error:.2f}" for layer in one.beside.worst[:3])
        yield (
            f"| {one.form.name} | {one.form.calibration or ''} | {one.right.mean():.3f} "
            f"| {100 * (one.right.mean() - reference.right.mean()):+.2f} | {lost} / {won} | {equal:.1%} "
            f"| {total.same:.1%} | {total.same_by_margin:.1%} | {total.divergence_mean:.2g} "
            f"| {total.divergence_max:.2g} | {worst} |"
        )


def gates(found: Sequence[Measured]) -> Iterator[str]:
    """A line per gate, with its verdict for every bundle of the form."""
    for name, points in GATES.items():
        for one in found:
            if one.form.name == name:
                lost = 100 * (found[0].right.mean() - one.right.mean())
                label = f"`{name}`" + (f" ({one.form.calibration})" if one.form.calibration else "")
                verdict = "kept" if lost <= points else "**broken**"
                yield f"- {label} loses {lost:.2f} points against {REFERENCE}; at most {points} are allowed: {verdict}."


def page(found: Sequence[Measured], pictures: int) -> Iterator[str]:
    """The section of `docs/quality.md`."""
    beside = found[0].beside
    yield (
        f"Written by `benchmarks/quantized_quality.py`: {len(found[0].right)} questions about held-out drawings "
        f"({', '.join(STYLES)}), preset `balanced`. Right is an exact match of the whole answer; lost and won are "
        "answers that only the reference has right, and only the other. Tokens, margins and KL, in nats, are of "
        f"{beside.total.rows:,} rows of the passes of {beside.answers.asked} of the questions, on the reference's "
        "canvases (`lladav verify --quantized`). Worst layers are the three largest relative errors of outputs, on "
        f"the reference's input to their block. Calibrations see {pictures} drawings of another style "
        f"({CALIBRATION_STYLE}) and six prompts; text alone, the prompts."
    )
    yield ""
    yield from gates(found)
    yield ""
    yield from rows(found)


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
    work = Workplace(args.work, make_cases(styles, things, args.count), args.compared)
    found = []
    for form in FORMS:
        found.append(work.measure(form))
        print(form.name, form.calibration or "", found[-1].right.mean(), found[-1].beside.total, flush=True)
    text = args.page.read_text("utf-8")
    args.page.write_text(replaced(text, "quantised bundles", page(found, args.pictures)), "utf-8")


if __name__ == "__main__":
    main()
