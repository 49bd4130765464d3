"""Inputs that are exchanged with other tools."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lladav.bundle import Bundle
from lladav.calib import CalibrationConfig, calibrate
from lladav.calib.graph_inputs import SavedInputs, load_inputs
from lladav.errors import CalibrationError
from lladav.export import ExportConfig, export
from lladav.runtime.sessions import PADDED
from lladav.statistics import Statistics

SHORT = CalibrationConfig(gen_length=8, steps=4, refresh_interval=2, limit=2)
"""Two questions of four passes."""


@pytest.fixture(scope="module")
def saved(
    tiny_bundle: Path, pictures: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Statistics]:
    """Inputs that a calibration saved, and its statistics."""
    folder = tmp_path_factory.mktemp("saved")
    statistics = calibrate(
        tiny_bundle, folder / "s.npz", images=pictures, prompts=prompts, config=SHORT, save_inputs=folder / "inputs"
    )
    return folder / "inputs", statistics


def test_every_batch_has_the_inputs_of_its_graph(saved: tuple[Path, Statistics], tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    for graph in ("denoiser", "vision_encoder"):
        files = sorted((saved[0] / graph).iterdir())
        assert files
        for file in files:
            found, inputs = load_inputs(bundle, file)
            assert found == graph
            assert set(inputs) == {spec.name for spec in bundle.manifest.graphs[graph].inputs}
    assert len(list((saved[0] / "denoiser").iterdir())) == SHORT.limit


def test_saved_refreshes_take_turns(saved: tuple[Path, Statistics], tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    wanted = [len(load_inputs(bundle, file)[1]["rows"]) for file in sorted((saved[0] / "denoiser").iterdir())]
    assert wanted == [8, 4]  # masks on the canvas at the first and at the second refresh


def test_saved_crops_give_the_statistics_of_the_tower(
    saved: tuple[Path, Statistics], tiny_bundle: Path, tmp_path: Path
) -> None:
    folder, statistics = saved
    again = calibrate(tiny_bundle, tmp_path / "again.npz", inputs=[folder / "vision_encoder"])
    assert list(again.header.graphs) == ["vision_encoder"]
    for linear in again.linears:
        ours, theirs = again.of(linear), statistics.of(linear)
        np.testing.assert_array_equal(ours.absmax, theirs.absmax)
        np.testing.assert_array_equal(ours.histogram, theirs.histogram)
        np.testing.assert_allclose(ours.mean_square, theirs.mean_square)


def test_a_saved_window_gives_part_of_the_statistics(
    saved: tuple[Path, Statistics], tiny_bundle: Path, tmp_path: Path
) -> None:
    folder, statistics = saved
    again = calibrate(tiny_bundle, tmp_path / "again.npz", inputs=sorted((folder / "denoiser").iterdir()))
    assert [condition.kind for condition in again.conditions] == ["refresh", "step"]
    for linear in again.linears:
        theirs = statistics.of(linear, lambda condition: condition.kind == "refresh")
        assert (again.of(linear).absmax <= theirs.absmax).all()
    assert again.rows("denoiser")[1] == 0


def test_padding_of_a_window_is_not_counted(saved: tuple[Path, Statistics], tiny_bundle: Path, tmp_path: Path) -> None:
    file = sorted((saved[0] / "denoiser").iterdir())[0]
    with np.load(file) as archive:
        inputs = dict(archive)
    plain = calibrate(tiny_bundle, tmp_path / "plain.npz", inputs=[file])
    padding = 5
    inputs["inputs_embeds"] = np.pad(inputs["inputs_embeds"], ((0, 0), (0, padding), (0, 0)), constant_values=1e3)
    inputs["position_ids"] = np.pad(inputs["position_ids"], ((0, 0), (0, padding)))
    bias = np.pad(inputs["attention_bias"], ((0, 0), (0, 0), (0, 0), (0, padding)), constant_values=PADDED)
    np.savez(tmp_path / "padded.npz", **(inputs | {"attention_bias": bias}))
    padded = calibrate(tiny_bundle, tmp_path / "s.npz", inputs=[tmp_path / "padded.npz"])
    for linear in plain.linears:
        assert padded.of(linear).rows == plain.of(linear).rows
        np.testing.assert_allclose(padded.of(linear).absmax, plain.of(linear).absmax, rtol=1e-3, err_msg=linear)


def test_order_of_rows_changes_nothing(saved: tuple[Path, Statistics], tiny_bundle: Path, tmp_path: Path) -> None:
    """As many rows as positions, some of them padding, the last ones first."""
    with np.load(sorted((saved[0] / "denoiser").iterdir())[0]) as archive:
        inputs = dict(archive)
    rows = np.arange(inputs["inputs_embeds"].shape[1])
    inputs["inputs_embeds"][0, -4:] = 1e3
    inputs["attention_bias"][..., -4:] = PADDED
    found = []
    for name, order in (("there", rows), ("back", rows[::-1])):
        np.savez(tmp_path / f"{name}-inputs.npz", **(inputs | {"rows": order}))
        found.append(calibrate(tiny_bundle, tmp_path / f"{name}.npz", inputs=[tmp_path / f"{name}-inputs.npz"]))
    there, back = found
    for linear in there.linears:
        np.testing.assert_array_equal(there.of(linear).absmax, back.of(linear).absmax, err_msg=linear)


def test_types_are_those_of_the_graph(tiny_checkpoint: Path, tmp_path: Path, prompts: Path) -> None:
    half = export(tiny_checkpoint, tmp_path / "half", ExportConfig(dtype="fp16", verify=False)).path
    calibrate(half, tmp_path / "s.npz", prompts=prompts, config=SHORT, save_inputs=tmp_path / "inputs")
    types = {spec.name: spec.dtype for spec in Bundle.open(half).manifest.graphs["denoiser"].inputs}
    with np.load(tmp_path / "inputs" / "denoiser" / "00000.npz") as archive:
        assert {name: str(array.dtype) for name, array in archive.items()} == types
        assert archive["past_key_values.0.key"].dtype == np.float16


@pytest.fixture
def refused(tiny_bundle: Path, tmp_path: Path) -> Callable[..., None]:
    def refuse(match: str, *files: Path) -> None:
        with pytest.raises(CalibrationError, match=match):
            calibrate(tiny_bundle, tmp_path / "refused.npz", inputs=files)
        assert not list(tmp_path.glob("*refused*"))

    return refuse


def test_files_that_are_no_inputs(refused: Callable[..., None], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(r"holds no \.npz files", empty)
    refused(r"inputs\.json does not end in \.npz", tmp_path / "inputs.json")
    refused("cannot be read", tmp_path / "absent.npz")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
    refused("cannot be read", tmp_path / "cut.npz")
    np.savez(tmp_path / "other.npz", pixels=np.zeros(3))
    refused("has the arrays pixels, which no graph", tmp_path / "other.npz")


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (np.zeros((1, 3, 28, 28), np.float32), r"is float32 \[1, 3, 28, 28\] instead of"),
        (np.zeros((3, 56, 56), np.float32), r"is float32 \[3, 56, 56\] instead of"),
        (np.zeros((1, 3, 56, 56), np.uint8), r"is uint8 \[1, 3, 56, 56\] instead of"),
        (np.full((1, 3, 56, 56), np.nan, np.float32), r"input of \S+layers\.0\.self_attn\.q_proj is not a finite"),
    ],
)
def test_arrays_that_do_not_fit(refused: Callable[..., None], tmp_path: Path, pixels: np.ndarray, said: str) -> None:
    np.savez(tmp_path / "bad.npz", pixel_values=pixels)
    refused(said, tmp_path / "bad.npz")


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("position_ids", lambda a: a[:, :-3], "position_ids is int64 .* instead of"),
        ("attention_bias", lambda a: a[..., :-1], "attention_bias is for"),
        ("rows", lambda a: a + 1000, "rows holds 1"),
        ("kept", lambda a: a - 1, "kept holds -1"),
        ("past_key_values.1.value", lambda a: np.repeat(a, 2, axis=0), r"past_key_values\.1\.value is float32"),
    ],
)
def test_sizes_that_contradict_one_another(
    refused: Callable[..., None],
    saved: tuple[Path, Statistics],
    tmp_path: Path,
    name: str,
    change: Callable[[np.ndarray], np.ndarray],
    said: str,
) -> None:
    with np.load(saved[0] / "denoiser" / "00000.npz") as archive:
        inputs = dict(archive)
    inputs[name] = change(inputs[name])
    np.savez(tmp_path / "bad.npz", **inputs)
    refused(said, tmp_path / "bad.npz")


def test_a_folder_in_use_is_not_mixed_up(
    tiny_bundle: Path, prompts: Path, tmp_path: Path, saved: tuple[Path, Statistics]
) -> None:
    with pytest.raises(CalibrationError, match="is not empty"):
        calibrate(tiny_bundle, tmp_path / "s.npz", prompts=prompts, config=SHORT, save_inputs=saved[0])


def test_a_batch_that_cannot_be_written_leaves_nothing(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.savez", full)
    folder = SavedInputs(tmp_path / "inputs", Bundle.open(tiny_bundle).manifest.graphs)
    with pytest.raises(CalibrationError, match="No space left"):
        folder.save("vision_encoder", "0", {"pixel_values": np.zeros((1, 3, 56, 56), np.float32)})
    assert not list((tmp_path / "inputs" / "vision_encoder").iterdir())
