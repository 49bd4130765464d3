"""The command line of the checks; see the package."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import benchmarks.gpu as package
from benchmarks.gpu.finding import CannotRunError, Finding, write
from benchmarks.gpu.rig import Rig, real_rig
from benchmarks.make_full_size import LAYERS
from lladav.errors import LladavError

Check = Callable[[Rig, argparse.Namespace], Finding]


def _look(rig: Rig, options: argparse.Namespace) -> Finding:
    from benchmarks.gpu import bundles, look

    return look.look(rig, bundles.demo(options.work))


def _rtx_loads(rig: Rig, options: argparse.Namespace) -> Finding:
    from benchmarks.gpu import bundles, rtx_loads

    return rtx_loads.rtx_loads(rig, bundles.demo(options.work))


def _kernels(rig: Rig, _: argparse.Namespace) -> Finding:
    from benchmarks.gpu import kernels

    return kernels.kernels(rig)


def _goldens(rig: Rig, options: argparse.Namespace) -> Finding:
    from benchmarks.gpu import goldens

    return goldens.goldens(rig, goldens.open_set(options.shared, options.work), options.cases)


def _prepare(_: Rig, options: argparse.Namespace) -> Finding:
    from benchmarks.gpu import bundles

    return bundles.prepare(options.work, options.layers)


def _steps(rig: Rig, options: argparse.Namespace) -> Finding:
    from benchmarks.gpu import bundles, steps

    bundle = bundles.full_size(options.work, options.layers)
    return steps.steps(rig, bundle, options.prompts, options.canvases, options.passes)


def _caption(rig: Rig, options: argparse.Namespace) -> Finding:
    from benchmarks.gpu import bundles, caption

    return caption.caption(rig, bundles.full_size(options.work, options.layers), length=128, rounds=3)


def _profile(rig: Rig, options: argparse.Namespace) -> Finding:
    from benchmarks.gpu import bundles, profiles

    bundle = bundles.full_size(options.work, options.layers) if options.full_size else bundles.demo(options.work)
    return profiles.profiles(rig, bundle, options.output, length=64, runs=10)


def _forms(rig: Rig, options: argparse.Namespace) -> Finding:
    from benchmarks.gpu import bundles, forms

    made = bundles.full_size_forms(options.work, options.layers)
    return forms.forms(rig, made, options.prompts, options.canvases, options.passes, rounds=5)


def _authors(_: Rig, options: argparse.Namespace) -> Finding:
    from benchmarks.gpu import authors_loop, bundles, roofline, steps

    roofline.cuda_torch()
    manifest = bundles.full_size(options.work, options.layers).manifest
    ours = steps.best_steps(options.output / "steps.json")
    return authors_loop.authors(manifest.geometry, manifest.tokens, options.prompts, options.canvases, ours)


def _soak(rig: Rig, options: argparse.Namespace) -> Finding:
    from benchmarks.gpu import bundles, soak

    bundle = bundles.full_size(options.work, options.layers) if options.full_size else bundles.demo(options.work)
    return soak.soak(rig, bundle, options.steps, options.prompts[0], options.canvases[0])


CHECKS: dict[str, Check] = {
    "look": _look,
    "rtx_loads": _rtx_loads,
    "kernels": _kernels,
    "goldens": _goldens,
    "prepare": _prepare,
    "steps": _steps,
    "caption": _caption,
    "profile": _profile,
    "forms": _forms,
    "authors": _authors,
    "soak": _soak,
}
"""In the order of `all`: what takes longest, or needs what another makes, comes later."""

_WITHOUT_DEVICE = frozenset({"prepare", "authors"})


def at_least_two(text: str) -> int:
    """Reads a number; of one pass or position there is nothing to compare."""
    if (found := int(text)) < 2:
        raise argparse.ArgumentTypeError(f"{text} is less than 2")
    return found


def numbers(text: str) -> tuple[int, ...]:
    """Reads `900,3650`."""
    return tuple(at_least_two(part) for part in text.split(","))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "python -m benchmarks.gpu", description=package.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("check", choices=["all", *CHECKS])
    made.add_argument("--output", type=Path, required=True, metavar="DIR", help="where what was found goes")
    made.add_argument("--work", type=Path, default=Path("build/gpu"), metavar="DIR", help="where bundles are made")
    made.add_argument("--shared", type=Path, default=Path("../shared"), metavar="DIR", help="with parity/goldens.json")
    made.add_argument("--cases", type=lambda text: tuple(text.split(",")), default=(), help="golden cases, or all")
    made.add_argument("--layers", type=int, default=LAYERS, help="language layers of the real geometry; fewer to try")
    made.add_argument("--prompts", type=numbers, default=(900, 3650), help="prompt positions; soak takes the first")
    made.add_argument("--canvases", type=numbers, default=(32, 64, 128), help="canvas positions; soak takes the first")
    made.add_argument("--passes", type=at_least_two, default=16, help="of each answer that `steps` measures")
    made.add_argument("--steps", type=at_least_two, default=10_000, help="of the soak")
    made.add_argument(
        "--full-size", action="store_true", help="soak and profile the real geometry, not the demo checkpoint"
    )
    return made


def run(name: str, rig: Rig, options: argparse.Namespace) -> Finding:
    """One check; where it cannot run, the reason. Whatever goes wrong in it, others can run behind it."""
    try:
        if name not in _WITHOUT_DEVICE:
            rig.device  # noqa: B018 - before bundles are made for nothing
        return CHECKS[name](rig, options)
    except (CannotRunError, LladavError) as error:
        return Finding(skipped=str(error))
    except Exception:
        return Finding(failed=traceback.format_exc())


def main(arguments: Sequence[str] | None = None, rig: Rig | None = None) -> bool:
    """Runs one check or all of them, and prints what they found.

    Returns:
        Whether nothing failed.
    """
    options = parser().parse_args(arguments)
    rig = rig or real_rig()
    sound = True
    for name in CHECKS if options.check == "all" else (options.check,):
        finding = run(name, rig, options)
        sound &= not finding.failed
        print(write(name, finding, options.output), flush=True)
    return sound


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
