"""The file of statistics: what is written is read, and nothing else."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lladav.calib.collector import Collector
from lladav.errors import CalibrationError
from lladav.manifest import Manifest
from lladav.reductions import BINS, bin_edges, bin_numbers
from lladav.statistics import Statistics
from lladav.statistics_header import CalibrationRun, Condition, GraphRecord, Header, SourceFile

BASE, CROP = Condition(kind="base"), Condition(kind="crop")
LAYER = "model.mm_projector.0"
LANGUAGE_LAYER = "model.layers.0.mlp.up_proj"


@pytest.fixture
def header(tiny_bundle: Path) -> Header:
    manifest = Manifest.read(tiny_bundle)
    return Header(
        lladav="1",
        bundle=manifest.sha256,
        checkpoint=manifest.checkpoint.fingerprint,
        geometry=manifest.geometry,
        run=CalibrationRun(sources=(SourceFile(name="a.png", sha256="0"),), count=2, asked=None),
        graphs={"connector": GraphRecord(conditions=(BASE, CROP), linears={LAYER: LAYER, "shared": LAYER})},
        done=2,
    )


def observed(header: Header, values: Any, conditions: list[Condition]) -> Statistics:
    statistics = Statistics.empty(header, {LAYER: len(values[0])})
    collector = Collector({"connector": (BASE, CROP)}, statistics.arrays)
    collector.counting("connector", conditions)(LAYER, np.asarray(values, np.float32))
    return statistics


@pytest.fixture
def some(header: Header) -> Statistics:
    return observed(header, [[1, -2], [3, 0], [-5, 1]], [BASE, CROP, CROP])


@given(arrays(np.float32, 40, elements=st.floats(0, float(np.float32(3e38)), width=32)))
def test_a_value_lies_between_the_edges_of_its_bin(values: np.ndarray) -> None:
    numbers, edges = bin_numbers(values), bin_edges()
    inside = numbers < BINS - 1
    assert (values[inside] < edges[numbers[inside]]).all()
    above = numbers > 0
    assert (values[above] >= edges[numbers[above] - 1]).all()


def test_bins_are_an_eighth_wide_at_most() -> None:
    edges = bin_edges().astype(np.float64)
    assert len(edges) == BINS
    assert (edges[0], edges[-1]) == (2.0**-24, 2.0**20)
    assert (np.diff(edges) / edges[:-1] <= 1 / 8).all()


@given(st.lists(st.floats(2.0**-20, 2.0**19, width=32), min_size=1, max_size=60), st.floats(0.1, 100))
def test_percentiles_are_those_of_the_values_up_to_a_bin(values: list[float], percent: float) -> None:
    column = np.array(values, np.float32)[:, None]
    record = GraphRecord(conditions=(BASE, CROP), linears={LAYER: LAYER})
    statistics = observed(Header.model_construct(graphs={"connector": record}), column, [BASE] * len(values))
    exact = float(np.percentile(column, percent, method="inverted_cdf"))
    found = statistics.of(LAYER).percentile(percent)
    assert exact <= found <= exact * 1.125


def test_statistics_are_read_as_they_were_written(some: Statistics, tmp_path: Path) -> None:
    some.write(tmp_path / "some.npz")
    found = Statistics.open(tmp_path / "some.npz")
    assert found.header == some.header
    assert found.arrays.keys() == some.arrays.keys()
    for name, array in some.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)
    with np.load(tmp_path / "some.npz") as plain:  # without this library
        np.testing.assert_array_equal(plain[f"{LAYER}/absmax"], [[1, 2], [5, 1]])


def test_conditions_are_added_up(some: Statistics) -> None:
    everything = some.of("shared")
    assert everything.rows == 3
    np.testing.assert_array_equal(everything.absmax, [5, 2])
    np.testing.assert_allclose(everything.mean_square, [35 / 3, 5 / 3])
    crops = some.of(LAYER, lambda condition: condition.kind == "crop")
    assert crops.rows == 2
    np.testing.assert_array_equal(crops.absmax, [5, 1])
    assert some.rows("connector").tolist() == [1, 2]


def test_what_was_not_seen_is_an_error(some: Statistics) -> None:
    with pytest.raises(CalibrationError, match="no linear layer 'lm_head'"):
        some.of("lm_head")
    with pytest.raises(CalibrationError, match=f"no input of {LAYER}"):
        some.of(LAYER, lambda condition: condition.kind == "step")


def test_statistics_of_another_model(some: Statistics, tiny_bundle: Path) -> None:
    manifest = Manifest.read(tiny_bundle)
    some.check(manifest)
    other = manifest.checkpoint.model_copy(update={"fingerprint": "f" * 64})
    with pytest.raises(CalibrationError, match="checkpoint"):
        some.check(manifest.model_copy(update={"checkpoint": other}))
    smaller = manifest.geometry.model_copy(update={"vision": None})
    with pytest.raises(CalibrationError, match="geometry"):
        some.check(manifest.model_copy(update={"geometry": smaller}))


def test_an_unfinished_calibration_is_not_opened(some: Statistics, header: Header, tmp_path: Path) -> None:
    unfinished = Statistics(header.model_copy(update={"done": 1}), some.arrays)
    unfinished.write(tmp_path / "some.npz")
    with pytest.raises(CalibrationError, match="1 of 2 questions"):
        Statistics.open(tmp_path / "some.npz")
    assert Statistics.read(tmp_path / "some.npz").header.done == 1


@pytest.mark.parametrize("harm", ["cut", "flip", "other", "shape", "key", "version"])
def test_damaged_files_are_named(some: Statistics, header: Header, tmp_path: Path, harm: str) -> None:
    file = tmp_path / "some.npz"
    some.write(file)
    contents = bytearray(file.read_bytes())
    if harm == "cut":
        file.write_bytes(contents[:-100])
    elif harm == "flip":
        contents[contents.index(b"\x93NUMPY") + 140] ^= 1
        file.write_bytes(contents)
    elif harm == "other":
        np.savez(file, a=np.zeros(2))
    elif harm == "shape":
        more = header.graphs["connector"].model_copy(update={"conditions": (BASE,)})
        Statistics(header.model_copy(update={"graphs": {"connector": more}}), some.arrays).write(file)
    else:
        text = header.model_dump_json()
        if harm == "key":
            text = text.replace('"done":', '"surprise":1,"done":')
        else:
            text = text.replace('"schema_version":2', '"schema_version":1')
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("header.json", text)
    with pytest.raises(CalibrationError, match=r"some\.npz"):
        Statistics.open(file)


@pytest.fixture
def of_language(header: Header) -> Statistics:
    record = GraphRecord(conditions=(BASE,), linears={LANGUAGE_LAYER: LANGUAGE_LAYER})
    return Statistics.empty(header.model_copy(update={"graphs": {"denoiser": record}}), {LANGUAGE_LAYER: 4})


@pytest.mark.parametrize("kind", ["absmax", "square_sum", "moments"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused(
    of_language: Statistics, tmp_path: Path, kind: str, value: float
) -> None:
    of_language.arrays[f"{LANGUAGE_LAYER}/{kind}"].flat[1] = value
    of_language.write(tmp_path / "some.npz")
    with pytest.raises(CalibrationError, match=f"{LANGUAGE_LAYER}/{kind} has values that are no finite numbers"):
        Statistics.open(tmp_path / "some.npz")


def test_moments_are_read_where_they_are_wanted(of_language: Statistics, some: Statistics, tmp_path: Path) -> None:
    of_language.write(tmp_path / "some.npz")
    found = [Statistics.open(tmp_path / "some.npz", moments=wanted) for wanted in (True, False)]
    assert found[0].moments(LANGUAGE_LAYER).shape == (1, 4, 4)
    assert found[0].arrays.keys() - found[1].arrays.keys() == {f"{LANGUAGE_LAYER}/moments"}
    for statistics, layer in ((found[1], LANGUAGE_LAYER), (some, LAYER)):
        with pytest.raises(CalibrationError, match=f"no moments of the inputs of {layer}"):
            statistics.moments(layer)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="does not exist"):
        Statistics.open(tmp_path / "none.npz")


def test_a_failed_write_leaves_what_was_there(
    some: Statistics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "some.npz"
    some.write(file)
    before = file.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.lib.format.write_array", full)
    with pytest.raises(CalibrationError, match="No space left"):
        some.write(file)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["some.npz"]
