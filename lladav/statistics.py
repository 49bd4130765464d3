"""Statistics of a model's activations: what a calibration leaves, and a quantised export reads.

The file is arrays, so that this module needs numpy, as the core otherwise does not (docs/calibration.md).
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from lladav.errors import CalibrationError, faults_of
from lladav.geometry import Geometry
from lladav.manifest import LANGUAGE_LAYERS, Manifest
from lladav.reductions import BINS, bin_edges, moment_shape
from lladav.staging import staged_file
from lladav.statistics_header import Condition, GraphRecord, Header

Floats = npt.NDArray[np.float32]
Sums = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

SUFFIX = ".npz"
_HEADER = "header.json"
_CALIBRATE = "calibrate a bundle of this checkpoint with `lladav calibrate`"
_ARRAYS: dict[str, type[np.generic]] = {"absmax": np.float32, "square_sum": np.float64, "histogram": np.int64}
_MOMENTS = "moments"


@dataclass(frozen=True)
class Activations:
    """Statistics of one input, or of several together.

    Attributes:
        absmax: `[channels]` float32 largest absolute values.
        mean_square: `[channels]` float64.
        histogram: `[BINS]` int64 absolute values of all channels; see `bin_edges`.
        rows: how many positions were seen.
    """

    absmax: Floats
    mean_square: Sums
    histogram: Counts
    rows: int

    def percentile(self, percent: float) -> float:
        """A value that `percent` of the absolute values do not exceed, at most 1/8 too large.

        It is the upper edge of a bin, and never more than the largest value.
        """
        needed = percent / 100 * self.histogram.sum()
        number = int(np.searchsorted(np.cumsum(self.histogram), needed))
        return min(float(bin_edges()[min(number, BINS - 1)]), float(self.absmax.max()))


@dataclass(frozen=True)
class Statistics:
    """Statistics of the input of every linear layer.

    Attributes:
        arrays: for every tensor of `header.graphs` three of them, whose first dimension is the
            graph's conditions: `TENSOR/absmax` `[n, channels]` float32, `TENSOR/square_sum`
            `[n, channels]` float64 and `TENSOR/histogram` `[n, BINS]` int64. Inputs of the language
            model's layers have a fourth, of all conditions together: `TENSOR/moments`, see `moments`;
            it is missing where it was not read.
    """

    header: Header
    arrays: Mapping[str, npt.NDArray[Any]]

    @classmethod
    def empty(cls, header: Header, channels: Mapping[str, int]) -> Statistics:
        """Statistics of nothing yet.

        Args:
            header: what they will be of.
            channels: of every tensor.
        """
        arrays = {
            f"{tensor}/{kind}": array
            for graph in header.graphs.values()
            for tensor in graph.tensors
            for kind, array in _zeros(tensor, len(graph.conditions), channels[tensor]).items()
        }
        return cls(header, arrays)

    @classmethod
    def open(cls, path: str | Path, *, moments: bool = True) -> Statistics:
        """Reads the statistics of a finished calibration.

        Args:
            path: of the file.
            moments: whether these are read too, 0.81 GB of 1.0 at the real size.

        Raises:
            CalibrationError: missing, damaged, of another version, or not finished.
        """
        found = cls.read(Path(path), moments=moments)
        done, count = found.header.done, found.header.run.count
        if done < count:
            raise CalibrationError(
                f"{path} holds {done} of {count} questions: its calibration is not finished",
                cure="run the same `lladav calibrate` command again, which goes on where it stopped",
            )
        return found

    @classmethod
    def read(cls, path: Path, *, moments: bool = True) -> Statistics:
        """As `open`, also of a calibration that is under way.

        Raises:
            CalibrationError: missing, damaged, or of another version.
        """
        cure = "run `lladav calibrate BUNDLE` again"
        try:
            with zipfile.ZipFile(path) as archive:
                header = Header.model_validate_json(archive.read(_HEADER))
                names = (name for name in _array_names(header) if moments or not name.endswith(_MOMENTS))
                arrays = {name: _read_array(archive, name) for name in names}
            _check_arrays(header, arrays)
        except FileNotFoundError as error:
            raise CalibrationError(f"{path} does not exist", cure=cure) from error
        except ValidationError as error:
            raise CalibrationError(
                f"{path} is not a valid file of statistics: {faults_of(error, 'header')}", cure=cure
            ) from error
        # A damaged archive is BadZipFile, KeyError, EOFError, ValueError, ...
        except Exception as error:
            raise CalibrationError(f"{path} holds no statistics: {error}", cure=cure) from error
        return cls(header, arrays)

    def write(self, path: Path) -> None:
        """Writes the file whole, or not at all; equal statistics give equal bytes.

        Raises:
            CalibrationError: it cannot be written.
        """
        try:
            with staged_file(path) as fresh, zipfile.ZipFile(fresh, "w") as archive:
                archive.writestr(zipfile.ZipInfo(_HEADER), self.header.model_dump_json(indent=1))
                for name in _array_names(self.header):
                    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as stream:
                        np.lib.format.write_array(stream, self.arrays[name], allow_pickle=False)
        except OSError as error:
            raise CalibrationError(
                f"{path} cannot be written: {error}", cure="free some space or choose another place"
            ) from error

    def check(self, manifest: Manifest) -> None:
        """Looks whether they are of the model that a bundle or an export holds, in whatever precision.

        Raises:
            CalibrationError: of another checkpoint or geometry.
        """
        ours, theirs = self.header.checkpoint, manifest.checkpoint.fingerprint
        if ours != theirs:
            raise CalibrationError(
                f"the statistics are of the checkpoint {ours[:12]}, this one is {theirs[:12]}", cure=_CALIBRATE
            )
        self.check_geometry(manifest.geometry)

    def check_geometry(self, geometry: Geometry) -> None:
        """The part of `check` that needs no weights.

        Raises:
            CalibrationError: of another geometry.
        """
        if self.header.geometry != geometry:
            raise CalibrationError(
                f"the statistics are of another geometry: {self.header.geometry} instead of {geometry}",
                cure=_CALIBRATE,
            )

    @property
    def linears(self) -> tuple[str, ...]:
        """Names of all linear layers, as in the checkpoint without `.weight`."""
        return tuple(name for graph in self.header.graphs.values() for name in graph.linears)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """Of all graphs."""
        return tuple(condition for graph in self.header.graphs.values() for condition in graph.conditions)

    def rows(self, graph: str) -> Counts:
        """Positions that were seen under each of a graph's conditions, at its first linear layer."""
        tensor = self.header.graphs[graph].tensors[0]
        channels = self.arrays[f"{tensor}/absmax"].shape[1]
        counts: Counts = self.arrays[f"{tensor}/histogram"].sum(axis=1) // channels
        return counts

    def of(self, linear: str, wanted: Callable[[Condition], bool] = lambda _: True) -> Activations:
        """Statistics of a layer's input over some conditions.

        Args:
            linear: name in the checkpoint, without `.weight`.
            wanted: says which conditions count.

        Raises:
            CalibrationError: no such layer, or no row was seen under these conditions.
        """
        graph = self._graph(linear)
        chosen = [number for number, condition in enumerate(graph.conditions) if wanted(condition)]
        absmax, square_sum, histogram = (self.arrays[f"{graph.linears[linear]}/{kind}"][chosen] for kind in _ARRAYS)
        counts: Counts = histogram.sum(axis=0)
        rows = int(counts.sum()) // square_sum.shape[1]
        if not rows:
            raise CalibrationError(
                f"no input of {linear} was seen under these conditions",
                cure="calibrate with more pictures, or with fewer steps between refreshes",
            )
        return Activations(absmax.max(axis=0), square_sum.sum(axis=0) / rows, counts, rows)

    def moments(self, linear: str) -> Floats:
        """Sums of products of a layer's inputs with each other, over all positions of all conditions.

        Args:
            linear: of the language model, by its name in the checkpoint, without `.weight`.

        Returns:
            `[channels / b, b, b]`, of each b channels that follow one another; b is the greatest common
            divisor of their number and 256.

        Raises:
            CalibrationError: no such layer, or none with moments.
        """
        found: Floats | None = self.arrays.get(f"{self._graph(linear).linears[linear]}/{_MOMENTS}")
        if found is None:
            raise CalibrationError(
                f"there are no moments of the inputs of {linear}",
                cure="ask for a layer of the language model, and read its statistics with moments",
            )
        return found

    def _graph(self, linear: str) -> GraphRecord:
        graph = next((g for g in self.header.graphs.values() if linear in g.linears), None)
        if graph is None:
            raise CalibrationError(
                f"the statistics know no linear layer {linear!r}",
                cure=f"choose one of {', '.join(self.linears[:4])}, ...",
            )
        return graph


def _kinds(tensor: str) -> tuple[str, ...]:
    """Arrays of one tensor, in the order of the file."""
    return (*_ARRAYS, _MOMENTS) if tensor.startswith(LANGUAGE_LAYERS) else tuple(_ARRAYS)


def _zeros(tensor: str, conditions: int, channels: int) -> dict[str, npt.NDArray[Any]]:
    """The arrays of one tensor, by their kinds."""
    shapes: dict[str, tuple[int, ...]] = {
        "absmax": (conditions, channels),
        "square_sum": (conditions, channels),
        "histogram": (conditions, BINS),
        _MOMENTS: moment_shape(channels),
    }
    return {kind: np.zeros(shapes[kind], _ARRAYS.get(kind, np.float32)) for kind in _kinds(tensor)}


def _array_names(header: Header) -> tuple[str, ...]:
    """In the order of the file."""
    return tuple(f"{tensor}/{kind}" for tensor in header.tensors for kind in _kinds(tensor))


def _read_array(archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    with archive.open(f"{name}.npy") as stream:
        array: npt.NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
        stream.read()  # only at the end the archive compares its checksum
    return array


def _check_arrays(header: Header, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    for graph in header.graphs.values():
        for tensor in graph.tensors:
            channels = arrays[f"{tensor}/absmax"].shape[-1]
            for kind, expected in _zeros(tensor, len(graph.conditions), channels).items():
                found = arrays.get(f"{tensor}/{kind}", expected)
                if (found.shape, found.dtype) != (expected.shape, expected.dtype):
                    raise ValueError(f"{tensor}/{kind} is {found.dtype} {list(found.shape)}")
                if not np.isfinite(found).all():
                    raise ValueError(f"{tensor}/{kind} has values that are no finite numbers")
