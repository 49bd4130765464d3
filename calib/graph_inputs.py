"""Calibration inputs as other tools exchange them: `.npz` files of arrays by name of the graph's input.

One file is one batch, which ModelOpt and Polygraphy take as it is (docs/calibration.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lladav.bundle import Bundle
from lladav.errors import CalibrationError
from lladav.manifest import GraphSpec, TensorSpec
from lladav.staging import staged_file
from lladav.statistics import SUFFIX

Array = npt.NDArray[Any]

OBSERVED = ("vision_encoder", "connector", "denoiser")
"""Graphs with linear layers that are quantised; `denoiser_cpu` is another form of the denoiser."""

_TYPES = {"float32": np.float32, "float16": np.float16, "int64": np.int64, "int8": np.int8}
_INTEGERS = ("int64", "int8")


@dataclass(frozen=True)
class SavedInputs:
    """A folder with one folder of batches per graph.

    Attributes:
        folder: is made with the first batch.
        graphs: of the manifest, whose types the arrays get.
    """

    folder: Path
    graphs: Mapping[str, GraphSpec]

    def save(self, graph: str, name: str, inputs: Mapping[str, Array]) -> None:
        """Writes one batch whole, or not at all; replaces what has its name.

        Raises:
            CalibrationError: it cannot be written.
        """
        file = self.folder / graph / f"{name}{SUFFIX}"
        arrays: dict[str, Any] = {s.name: inputs[s.name].astype(_TYPES[s.dtype]) for s in self.graphs[graph].inputs}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with staged_file(file) as fresh, fresh.open("wb") as stream:
                np.savez(stream, **arrays)
        except OSError as error:
            raise CalibrationError(
                f"{file} cannot be written: {error}", cure="free some space or choose another folder"
            ) from error


def find_inputs(paths: Sequence[Path]) -> tuple[Path, ...]:
    """The files that were named, and those of folders that were named, in the order of their names.

    Raises:
        CalibrationError: nothing there, or a file with another suffix.
    """
    found: list[Path] = []
    for path in paths:
        inside = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
        if not inside:
            raise CalibrationError(f"{path} holds no {SUFFIX} files", cure="pass the folder of one graph's inputs")
        found += inside
    for path in found:
        if path.suffix != SUFFIX:
            raise CalibrationError(
                f"{path} does not end in {SUFFIX}", cure="save the inputs with numpy.savez, by name of the input"
            )
    return tuple(found)


def graph_of(bundle: Bundle, file: Path) -> str:
    """The graph whose inputs a file holds, by their names.

    Raises:
        CalibrationError: no such file, damaged, or for no graph of the bundle.
    """
    with _opened(file) as archive:
        names = set(archive.files)
    known = {
        graph: {spec.name for spec in bundle.manifest.graphs[graph].inputs}
        for graph in OBSERVED
        if graph in bundle.manifest.graphs
    }
    match = next((graph for graph, inputs in known.items() if inputs == names), None)
    if match is None:
        wanted = "; ".join(f"{graph}: {_few(inputs)}" for graph, inputs in known.items())
        raise CalibrationError(
            f"{file} has the arrays {_few(names)}, which no graph of {bundle.path} takes",
            cure=f"name them after the inputs of one graph ({wanted})",
        )
    return match


def load_inputs(bundle: Bundle, file: Path) -> tuple[str, dict[str, Array]]:
    """One batch, with the name of its graph; float16 arrays as float32.

    Raises:
        CalibrationError: as `graph_of`, or arrays of other types or sizes than the graph takes.
    """
    graph = graph_of(bundle, file)
    with _opened(file) as archive:
        arrays = {name: archive[name] for name in archive.files}
    _check(file, bundle.manifest.graphs[graph].inputs, arrays)
    return graph, {name: a.astype(np.float32) if a.dtype == np.float16 else a for name, a in arrays.items()}


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            yield archive
    # NumPy and zipfile raise almost anything on damaged bytes.
    except Exception as error:
        raise CalibrationError(f"{file} cannot be read: {error}", cure="save it again with numpy.savez") from error


def _check(file: Path, specs: Sequence[TensorSpec], arrays: Mapping[str, Array]) -> None:
    """Types and sizes are those of the graph, and dimensions of one name are of one size."""
    sizes: dict[int | str, int] = {}
    for spec in specs:
        array = arrays[spec.name]
        kinds = (_TYPES[spec.dtype],) if spec.dtype in _INTEGERS else (np.float32, np.float16)
        expected = [size if isinstance(size, int) else sizes.get(size, size) for size in spec.shape]
        fits = len(expected) == array.ndim and all(
            isinstance(size, str) or size == have for size, have in zip(expected, array.shape, strict=True)
        )
        if array.dtype not in kinds or not fits:
            raise CalibrationError(
                f"{file}: {spec.name} is {array.dtype} {list(array.shape)} instead of {spec.dtype} {expected}",
                cure="see the inputs of the graph with `lladav inspect BUNDLE`",
            )
        sizes |= dict(zip(spec.shape, array.shape, strict=True))
    if "keys" in sizes:
        _check_window(file, arrays, sizes["keys"], sizes["past"], sizes["window"])


def _check_window(file: Path, arrays: Mapping[str, Array], keys: int, past: int, window: int) -> None:
    if keys != past + window:
        raise CalibrationError(
            f"{file}: attention_bias is for {keys} keys, and there are {past} of the past and {window} of the window",
            cure="give every key a bias, those of the past first",
        )
    for name in ("rows", "kept"):
        outside = arrays[name][(arrays[name] < 0) | (arrays[name] >= window)]
        if len(outside):
            raise CalibrationError(
                f"{file}: {name} holds {outside[0]}, and the window has positions 0 to {window - 1}",
                cure="count positions from the start of the window",
            )


def _few(names: set[str]) -> str:
    first = sorted(names)[:4]
    return ", ".join(first) + (f" and {len(names) - len(first)} more" if len(names) > len(first) else "")
