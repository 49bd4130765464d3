"""A profile as one HTML file that needs no network, in light and dark."""

from __future__ import annotations

import html
import io
import json
import warnings
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from lladav.runtime.profiling.figures import INK, drawing, figures
from lladav.runtime.profiling.record import LayerPart, Profile

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PAGE = Path(__file__).with_name("page.html")

_BOUND = (
    "Bound by bandwidth or arithmetic where that is most of the time, by launch where it is what the graph takes "
    "beyond it, by host where it is our own code."
)
_SAID = {
    "canvas": (
        "The canvas filling in",
        "The answer whose time is the median. Every position is coloured from the pass that committed it on.",
    ),
    "steps": ("Every denoising step", "What the mean time of each step consists of."),
    "histogram": ("How long answers take", "Percentiles by nearest rank."),
    "memory": ("Memory", "Each category measured on its own, beside the peak that the kernel counted."),
    "roofline": (
        "Passes below their roof",
        "The roof is what copies and matrix products reached on this machine; the higher a pass, the better.",
    ),
    "sweep": (
        "Prompt and canvas",
        "Medians of passes over the bundle's buckets.",
    ),
}


def can_draw() -> bool:
    """Whether matplotlib is there, the extra `report`."""
    return find_spec("matplotlib") is not None


def report(profile: Profile) -> str:
    """The page.

    Raises:
        ImportError: matplotlib is missing.
    """
    sections, tips = [], dict[str, str]()
    with drawing():
        for name, (figure, own) in figures(profile).items():
            body = _svg(figure) + (_player(profile) if name == "canvas" else "")
            sections.append(_section(*_SAID[name], body))
            tips |= own
    sections += _tables(profile)
    setup, asked = profile.setup, profile.workload
    precision = f"{setup.precision}, {setup.quantization}" if setup.quantization else setup.precision
    where = f"{setup.backend} on {setup.gpu or setup.processor}"
    return Template(_PAGE.read_text("utf-8")).substitute(
        title=_text(f"lladav profile: {asked.knobs.preset}, {precision}"),
        subtitle=_text(
            f"{where}, {setup.system}; {asked.prompt_tokens} prompt tokens with {asked.crops} crops, "
            f"canvas {asked.gen_length}; {profile.created}, lladav {setup.lladav}"
        ),
        headline="".join(
            f"<div><b>{_text(value)}</b><span>{_text(name)}</span></div>" for name, value in _headline(profile)
        ),
        sections="\n".join(sections),
        tips=_script(tips),
        shown=_script([list(zip(step.positions, step.tokens, strict=True)) for step in profile.shown]),
        length=str(asked.gen_length),
    )


def _svg(figure: Figure) -> str:
    """Without a header, and in the page's own ink."""
    out = io.StringIO()
    with warnings.catch_warnings():
        # Letters that matplotlib's font lacks are the browser's business.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def _script(value: object) -> str:
    """As JSON that nothing a model says can end."""
    return json.dumps(value).replace("<", "\\u003c")


def _player(profile: Profile) -> str:
    """Moves through the answer, step by step."""
    last = len(profile.shown)
    return (
        f'<label class="player">step <input type="range" id="play" min="0" max="{last}" value="{last}">'
        '<output id="answer"></output></label>'
    )


def _headline(profile: Profile) -> Iterable[tuple[str, str]]:
    answer = profile.answer_ms
    yield "median answer, ms", f"{answer.p50:,.1f}"
    yield (
        (f"p99 of {answer.n}, ms", f"{answer.p99:,.1f}")
        if answer.p99
        else (f"slowest of {answer.n}, ms", f"{answer.max:,.1f}")
    )
    yield "to the first token, ms", f"{profile.first_token_ms.p50:,.1f}"
    yield "tokens per pass", f"{profile.tokens_per_pass:.2f}"
    if profile.energy is not None:
        yield "joules per answer", f"{profile.energy.joules_per_answer:.2f}"
    if profile.frames.missed is not None:
        yield f"of {answer.n} deadlines missed", str(profile.frames.missed)
    if profile.memory is not None:
        yield "MB at the peak", f"{profile.memory.total / 1e6:,.0f}"


def _tables(profile: Profile) -> Iterable[str]:
    rows = [
        (
            name,
            *(f"{value:,.2f}" for value in (d.mean, d.p50, d.p90, d.p95)),
            f"{d.p99:,.2f}" if d.p99 else "",
            f"{d.max:,.2f}",
            f"{d.std:,.2f}",
            str(d.n),
        )
        for name, d in profile.stages.items()
    ]
    header = ("stage", "mean ms", "p50", "p90", "p95", "p99", "max", "std", "n")
    yield _section("Stages", "Of an answer, in order.", _table(header, rows))
    limits = [
        (
            name.replace("_", " "),
            f"{found.ms.p50:,.2f}",
            "" if found.limit.predicted_ms is None else f"{found.limit.predicted_ms:,.2f}",
            f"{found.limit.ms:,.2f}",
            f"{found.limit.share:.0%}",
            found.limit.bound,
        )
        for name, found in profile.passes.items()
        if found.limit is not None
    ]
    if limits:
        columns = ("pass", "p50 ms", "predicted ms", "limit ms", "of the limit", "bound by")
        yield _section("Passes against this machine's limit", _BOUND, _table(columns, limits))
    if profile.layers is not None:
        said = "From runs of their own, since looking costs time. Other: what the library fused or named itself."
        yield _section("Layers", said, _tree(profile.layers.tree))
        slowest = [(part.name, f"{part.ms:,.3f}", f"{part.share:.1%}") for part in profile.layers.slowest]
        yield _section("The slowest nodes", "Share of their graph.", _table(("node", "ms", "share"), slowest))
    frames = profile.frames.model_dump(by_alias=True, exclude={"image_age"}, exclude_none=True)
    age = profile.frames.image_age
    facts = [(name, f"{value:,.2f}" if isinstance(value, float) else str(value)) for name, value in frames.items()]
    facts.append(("Mean Image Age (ms)", f"{age.mean:,.2f}"))
    yield _section("As a camera sees it", "Under the names of ros2_benchmark.", _table(("metric", "value"), facts))
    if profile.notes:
        yield _section("Notes", "", "<ul>" + "".join(f"<li>{_text(note)}</li>" for note in profile.notes) + "</ul>")


def _tree(parts: Sequence[LayerPart]) -> str:
    rows = []
    for part in parts:
        graph, _, kind = part.name.partition("/")
        cell = f'<td class="inner">{_text(kind)}</td>' if kind else f"<td><b>{_text(graph)}</b></td>"
        bar = f'<td class="bar"><i style="width:{part.share:.1%}"></i></td>' if kind else "<td></td>"
        rows.append(f'<tr>{cell}<td class="n">{part.ms:,.2f}</td><td class="n">{part.share:.1%}</td>{bar}</tr>')
    head = '<tr><th>graph</th><th class="n">ms</th><th class="n">share</th><th></th></tr>'
    return f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Sorted by a column when its head is clicked; the first column is text, the others numbers."""

    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(f"<{tag}{' class=n' if i else ''}>{_text(value)}</{tag}>" for i, value in enumerate(values))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<table class="sorted"><thead><tr>{cells("th", header)}</tr></thead><tbody>{body}</tbody></table>'


def _section(title: str, said: str, body: str) -> str:
    return f"<section><h2>{_text(title)}</h2><p>{_text(said)}</p>{body}</section>"


def _text(value: str) -> str:
    return html.escape(value)
