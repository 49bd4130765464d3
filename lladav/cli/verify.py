"""`lladav verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from lladav.cli import screen
from lladav.errors import OptionError

if TYPE_CHECKING:
    from lladav.export.agreement import AgreementReport, StepAgreement
    from lladav.export.verification import VerificationReport

_WORST = 10
_PAIR = "Two bundles"


def verify(
    bundle: Annotated[Path | None, typer.Argument(help="Folder made by `lladav export`.")] = None,
    checkpoint: Annotated[Path | None, typer.Argument(help="The checkpoint it was made from.")] = None,
    image: Annotated[Path | None, typer.Option(help="Picture to compare on instead of the built-in one.")] = None,
    quantized: Annotated[
        Path | None, typer.Option(rich_help_panel=_PAIR, help="Bundle to compare with another one, not with PyTorch.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(rich_help_panel=_PAIR, help="The other one, of the same checkpoint.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(rich_help_panel=_PAIR, help="Folder of pictures to ask about.", show_default="one photograph"),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(rich_help_panel=_PAIR, help="Text file, a prompt per line.", show_default="What is this?"),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=_PAIR,
            help='JSON lines {"image": ..., "prompt": ..., "answer": ...} instead; paths are relative to --images.',
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(rich_help_panel=_PAIR, min=1, help="Most questions.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", rich_help_panel=_PAIR, help="Print one JSON object instead of tables.")
    ] = False,
) -> None:
    """Compare every graph of a bundle with PyTorch, or the answers of a quantised bundle with those of another one."""
    if quantized is None and reference is None:
        given = [images, prompts, questions, limit, as_json or None]
        if bundle is None or checkpoint is None or any(value is not None for value in given):
            raise OptionError(
                "a bundle is verified with its checkpoint; --images, --prompts, --questions, --limit and --json are "
                "for two bundles",
                cure="pass BUNDLE CHECKPOINT, or --quantized BUNDLE --reference BUNDLE",
            )
        _verify(bundle, checkpoint, image)
        return
    if quantized is None or reference is None or bundle is not None or image is not None:
        raise OptionError(
            "two bundles are compared by --quantized and --reference, without BUNDLE, CHECKPOINT and --image",
            cure="pass --quantized BUNDLE --reference BUNDLE, with --images FOLDER for pictures",
        )
    from lladav.export import require

    require("export")
    from lladav.export.agreement import agreement
    from lladav.export.progress import Progress

    with screen.stage_bars(screen.stderr(), percent=True) as bars:
        report = agreement(
            quantized,
            reference,
            images=images,
            prompts=prompts,
            questions=questions,
            limit=limit,
            progress=Progress(bars.start, bars.advance),
        )
    if as_json:
        screen.print_json(report.to_json())
    else:
        _print_agreement(report)


def _verify(bundle: Path, checkpoint: Path, image: Path | None) -> None:
    from lladav.export import require

    require("export")
    require("verify")
    from lladav.export.progress import Progress
    from lladav.export.verification import DeviationError
    from lladav.export.verify import verify as compare

    try:
        with screen.stage_bars(screen.stderr()) as bars:
            report = compare(bundle, checkpoint, image=image, progress=Progress(bars.start, bars.advance))
    except DeviationError as error:
        _print(error.report)
        raise
    _print(report)


def _print(report: VerificationReport) -> None:
    columns = ("component", "what", "difference", "tolerance", "", "where")
    table = screen.table("Largest differences from PyTorch in float32", *columns, numbers=(2, 3))
    for row in report.rows:
        verdict = screen.verdict(row.passed, "ok", "too far")
        if row.max_abs_error is None:
            verdict = Text("left out", "yellow")
        numbers = ("" if n is None else f"{n:.2g}" for n in (row.max_abs_error, row.tolerance))
        table.add_row(row.component, row.what, *numbers, verdict, row.note)
    screen.stdout().print(table)
    screen.stdout().print(f"compared in {report.seconds:.1f} s")


def _print_agreement(report: AgreementReport) -> None:
    out = screen.stdout()
    out.print(f"{report.quantised}, beside {report.reference}", soft_wrap=True)
    for note in report.notes:
        screen.stderr().print(Text("note:", "yellow"), note, soft_wrap=True)
    columns = ("graph", "kind", "layers", "mean", "worst")
    kinds = screen.table("\nOutput errors of linear layers, relative", *columns, numbers=(2, 3, 4))
    for kind in report.kinds:
        kinds.add_row(kind.graph, kind.kind, str(kind.layers), f"{kind.error:.2g}", f"{kind.worst:.2g}")
    out.print(kinds)
    worst = screen.table("\nThe worst layers", "layer", "bits", "error", numbers=(1, 2))
    for layer in report.worst[:_WORST]:
        worst.add_row(layer.layer, "" if layer.bits is None else str(layer.bits), f"{layer.error:.2g}")
    out.print(worst)
    measured = ("step", "rows", "KL mean", "KL largest", "decisions", "same token", "by margin")
    steps = screen.table("\nSteps, on the reference's canvases", *measured, numbers=tuple(range(len(measured))))
    for step in report.steps:
        steps.add_row(*_step_row(step))
    steps.add_section()
    steps.add_row(*_step_row(report.total))
    out.print(steps)
    answers = report.answers
    text = f"\nanswers: {answers.equal:.1%} of {answers.asked:,} are equal"
    if answers.reference_right is not None and answers.quantised_right is not None:
        text += f"; {answers.quantised_right:.1%} are right, and {answers.reference_right:.1%} of the reference's"
    out.print(f"{text}; compared in {report.seconds:.1f} s", soft_wrap=True)


def _step_row(step: StepAgreement) -> tuple[str, ...]:
    return (
        "all" if step.step is None else str(step.step),
        f"{step.rows:,}",
        f"{step.divergence_mean:.2g}",
        f"{step.divergence_max:.2g}",
        f"{step.decisions:,}",
        f"{step.same:.1%}",
        f"{step.same_by_margin:.1%}",
    )
