"""Pictures of a profile, drawn by matplotlib: for the report as SVG, and for papers as anything it writes.

Everything that is no data is drawn in one ink, which the report replaces by the page's own colour; the others
were chosen to be told apart on white and on black, and by the colour-blind.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from lladav.runtime.profiling.record import Profile, ShownStep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

INK = "#606770"
PARTS = {"graph": "#3f83c8", "sampling": "#d9822b", "commit": "#3d9e72", "host": "#a46cc4"}
_CONFIDENCE = ("#c8511b", "#dfb04e", "#3f83c8")
_WIDE, _HIGH = 8.6, 3.1
_BINS = 30
_LABELLED = 40
"""Steps or positions at most that have room for something above them."""

_LONGEST = 12
"""Characters of a token."""

Tips = dict[str, str]
"""What is said of an element of a picture, by its id."""


def drawing() -> AbstractContextManager[None]:
    """The style of all pictures.

    Raises:
        ImportError: matplotlib is missing.
    """
    import matplotlib as mpl

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "lladav",
        "font.family": "sans-serif",
        "font.size": 10,
        "text.parse_math": False,
        "text.color": INK,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": INK,
        "grid.alpha": 0.2,
        "legend.frameon": False,
        "savefig.transparent": True,
    }
    return mpl.rc_context(style)


def figures(profile: Profile) -> dict[str, tuple[Figure, Tips]]:
    """Every picture that the profile has the data for, by name; to be called within `drawing`."""
    drawn: dict[str, tuple[Figure, Tips]] = {}

    def add(name: str, draw: Callable[[Profile, Figure, Tips], None], high: float = _HIGH) -> None:
        from matplotlib.figure import Figure

        figure, tips = Figure(figsize=(_WIDE, high), layout="constrained"), dict[str, str]()
        draw(profile, figure, tips)
        drawn[name] = figure, tips

    add("canvas", _canvas, high=4.6)
    add("steps", _steps)
    add("histogram", _histogram)
    if profile.memory is not None:
        add("memory", _memory)
    if profile.rates is not None:
        add("roofline", _roofline)
    if profile.sweep:
        add("sweep", _sweep, high=3.5)
    return drawn


def _confidence() -> Colormap:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("confidence", _CONFIDENCE)


def _canvas(profile: Profile, figure: Figure, tips: Tips) -> None:
    """Positions from left to right, time from top to bottom; a position is coloured from its commit on."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.patches import Rectangle

    axes, colours, shown = figure.subplots(), _confidence(), profile.shown
    end = max(step.begin_ms + step.ms for step in shown)
    for number, step in enumerate(shown):
        done = step.begin_ms + step.ms
        axes.axhline(done, color=INK, alpha=0.25, linewidth=0.6)
        for position, confidence, token in zip(step.positions, step.confidences, step.tokens, strict=True):
            name = f"canvas-{number}-{position}"
            during = Rectangle((position - 0.5, step.begin_ms), 1, step.ms, color=colours(confidence), linewidth=0)
            after = Rectangle(
                (position - 0.5, done), 1, end - done, color=colours(confidence), linewidth=0, alpha=0.32, gid=name
            )
            during.set_gid(name + "-now")
            tips[name] = tips[name + "-now"] = (
                f"{token!r} at {position}, in {step.kind} {number}, confidence {confidence:.3f}"
            )
            axes.add_patch(during)
            axes.add_patch(after)
    positions = [position for step in shown for position in step.positions]
    axes.set_xlim(min(positions, default=0) - 0.5, max([*positions, profile.workload.gen_length - 1]) + 0.5)
    axes.set_ylim(end, 0)
    axes.set_xlabel("position in the answer")
    axes.set_ylabel("ms since the first step began")
    _label_steps(axes, shown, end)
    _label_tokens(axes, shown)
    bar = figure.colorbar(ScalarMappable(cmap=colours), ax=axes, pad=0.09, aspect=30)
    bar.outline.set_visible(False)
    bar.set_label("confidence when committed")


def _label_steps(axes: Axes, shown: tuple[ShownStep, ...], end: float) -> None:
    """Names the passes at the right, as far as there is room."""
    room = end / 16
    last = -room
    for number, step in enumerate(shown):
        middle = step.begin_ms + step.ms / 2
        if middle - last >= room:
            axes.text(
                1.01, middle, f"{step.kind} {number}", transform=axes.get_yaxis_transform(), va="center", fontsize=8
            )
            last = middle


def _label_tokens(axes: Axes, shown: tuple[ShownStep, ...]) -> None:
    """Writes the answer above its positions, where there is room."""
    tokens = {p: token.strip() for step in shown for p, token in zip(step.positions, step.tokens, strict=True)}
    if len(tokens) <= _LABELLED:
        above = axes.secondary_xaxis("top")
        texts = [
            "".join(c if c.isprintable() else "\N{MIDDLE DOT}" for c in token[:_LONGEST]) for token in tokens.values()
        ]
        above.set_xticks(list(tokens), texts, rotation=90, fontsize=8)
        above.tick_params(length=0)
        above.spines["top"].set_visible(False)


def _steps(profile: Profile, figure: Figure, tips: Tips) -> None:
    """A bar per step of what its mean time consists of, and how many tokens it committed."""
    axes, numbers = figure.subplots(), [step.step for step in profile.steps]
    bottom = [0.0] * len(numbers)
    for part, colour in PARTS.items():
        means = [getattr(step, f"{part}_ms").mean for step in profile.steps]
        bars = axes.bar(numbers, means, bottom=bottom, color=colour, label=part, width=0.8)
        for bar, step, mean in zip(bars, profile.steps, means, strict=True):
            name = f"steps-{part}-{step.step}"
            bar.set_gid(name)
            tips[name] = f"{step.kind} {step.step}: {part} {mean:.2f} of {step.ms.mean:.2f} ms, mean of {step.ms.n}"
        bottom = [below + mean for below, mean in zip(bottom, means, strict=True)]
    for step, top in zip(profile.steps, bottom, strict=True):
        if len(numbers) <= _LABELLED:
            axes.text(step.step, top, f"{step.committed:.3g}", ha="center", va="bottom", fontsize=8)
    axes.set_xlabel(
        "denoising step" + ("; above each bar the tokens it committed" if len(numbers) <= _LABELLED else "")
    )
    axes.set_ylabel("ms")
    axes.locator_params(axis="x", integer=True)
    axes.margins(y=0.12)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.legend(ncols=len(PARTS), loc="lower right", bbox_to_anchor=(1, 1))


def _histogram(profile: Profile, figure: Figure, tips: Tips) -> None:
    axes, times, found = figure.subplots(), [run.ms for run in profile.runs], profile.answer_ms
    counts, edges, bars = axes.hist(times, bins=min(_BINS, max(5, len(times) // 3)), color=PARTS["graph"], rwidth=0.92)
    for number, bar in enumerate(bars):  # type: ignore[arg-type]
        bar.set_gid(f"histogram-{number}")
        tips[f"histogram-{number}"] = (
            f"{int(counts[number])} answers of {edges[number]:.1f} to {edges[number + 1]:.1f} ms"
        )
    marks = {"p50": found.p50, "p90": found.p90, "p99": found.p99, "max": found.max}
    for row, (name, ms) in enumerate((name, ms) for name, ms in marks.items() if ms is not None):
        axes.axvline(ms, color=PARTS["sampling"], linewidth=1.2)
        text = f"{name} {ms:,.1f}"
        place = (ms, 1.02 + 0.075 * row)
        axes.text(*place, text, transform=axes.get_xaxis_transform(), ha="right", fontsize=9)
    axes.set_xlabel(f"ms per answer, {found.n} answers")
    axes.set_ylabel("answers")
    axes.locator_params(axis="y", integer=True)
    axes.grid(axis="y")
    axes.set_axisbelow(True)


def _memory(profile: Profile, figure: Figure, tips: Tips) -> None:
    assert profile.memory is not None
    axes, parts = figure.subplots(), [part for part in profile.memory.parts if part.bytes]
    colours = [PARTS["commit" if part.on_gpu else "host" if part.file_backed else "graph"] for part in parts]
    bars = axes.barh([part.name for part in parts], [part.bytes / 1e6 for part in parts], color=colours)
    for bar, part in zip(bars, parts, strict=True):
        bar.set_gid(f"memory-{part.name.replace(' ', '-')}")
        tips[f"memory-{part.name.replace(' ', '-')}"] = f"{part.name}: {part.bytes / 1e6:,.1f} MB, {part.how}"
    axes.bar_label(bars, fmt="{:,.1f}", padding=3, fontsize=8)
    axes.invert_yaxis()
    whole = f"MB at the peak of an answer, {profile.memory.total / 1e6:,.0f} in all"
    on_gpu = "\ngreen: on the GPU" if any(part.on_gpu for part in parts) else ""
    axes.set_xlabel(f"{whole}; violet: pages of files, which the kernel may drop{on_gpu}")
    axes.margins(x=0.1)


def _sweep(profile: Profile, figure: Figure, tips: Tips) -> None:
    """Refreshes at the left, steps at the right, a line per canvas."""
    colours = _confidence()
    canvases = sorted({point.canvas for point in profile.sweep})
    for axes, kind in zip(figure.subplots(1, 2), ("refresh", "step"), strict=True):
        for number, canvas in enumerate(canvases):
            points = [point for point in profile.sweep if point.canvas == canvas]
            times = [getattr(point, f"{kind}_ms") for point in points]
            colour = colours(number / max(1, len(canvases) - 1))
            axes.plot([point.prompt for point in points], times, color=colour, linewidth=1.6, label=str(canvas))
            for point, ms in zip(points, times, strict=True):
                name = f"sweep-{kind}-{canvas}-{point.prompt}"
                axes.plot([point.prompt], [ms], "o", color=colour, markersize=5, gid=name)
                tips[name] = f"{kind}: prompt {point.prompt}, canvas {canvas}: {ms:.2f} ms"
        _logarithmic(axes)
        axes.set_xticks(sorted({point.prompt for point in profile.sweep}))
        axes.tick_params(axis="x", rotation=45)
        axes.set_xlabel("positions of the prompt")
        axes.set_ylabel(f"ms per {kind}")
    axes.legend(title="canvas", loc="center left", bbox_to_anchor=(1, 0.5), reverse=True)


def _roofline(profile: Profile, figure: Figure, tips: Tips) -> None:
    """Every pass below what the machine's memory and matrix units allow at its operations per byte."""
    assert profile.rates is not None
    axes, rates = figure.subplots(), profile.rates
    ridge = rates.operations_s / rates.bytes_s
    placed = []
    for name, found in profile.passes.items():
        if found.limit is not None:
            intensity = found.limit.operations / found.limit.bytes
            placed.append((name, intensity, found.limit.operations / found.ms.p50 / 1e6, found))
    ends = (min(ridge, *(x for _, x, _, _ in placed)) / 3, max(ridge, *(x for _, x, _, _ in placed)) * 3)
    roof = [(x, min(rates.bytes_s * x, rates.operations_s) / 1e9) for x in (ends[0], ridge, ends[1])]
    axes.plot(*zip(*roof, strict=True), color=PARTS["sampling"], linewidth=1.6)
    for name, intensity, speed, found in placed:
        assert found.limit is not None
        axes.plot([intensity], [speed], "o", color=PARTS["graph"], markersize=7, gid=f"roofline-{name}")
        tips[f"roofline-{name}"] = (
            f"{name}: {found.ms.p50:.2f} ms where the limit is {found.limit.ms:.2f}, bound by {found.limit.bound}"
        )
        label = name.replace("_", " ")
        axes.annotate(label, (intensity, speed), xytext=(7, -3), textcoords="offset points", fontsize=9)
    _logarithmic(axes)
    axes.margins(y=0.15)
    axes.set_xlabel("operations per byte that must move")
    axes.set_ylabel("billion operations a second")


def _logarithmic(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.minorticks_off()
    axes.grid()
