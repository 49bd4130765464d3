"""Calibrations of the tiny model: the same as PyTorch sees, whole or not at all, and the same again."""

from __future__ import annotations

import errno
import weakref
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny_tensors

from lladav.bundle import Bundle
from lladav.calib import CalibrationConfig, calibrate
from lladav.calib.observed_graph import ObservedGraph
from lladav.calib.passes import passes_of
from lladav.calib.questions import find_pictures, pair, read_prompts
from lladav.errors import CalibrationError
from lladav.export import ExportConfig, Progress, export
from lladav.manifest import LANGUAGE_LAYERS
from lladav.runtime import GenerationConfig, Message, Pipeline, StepEvent
from lladav.runtime.embedding import merge_prompt
from lladav.runtime.images import pixel_values
from lladav.runtime.prompt import IMAGE_TOKEN, with_images
from lladav.staging import staged_file
from lladav.statistics import Statistics
from lladav.statistics_header import Condition

Calibrated = tuple[Path, Statistics]

SHORT = CalibrationConfig(gen_length=8, steps=4, refresh_interval=2, limit=2)
"""Two questions of four passes."""


@pytest.fixture(scope="module")
def done(tiny_bundle: Path, pictures: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Calibrated:
    """A finished calibration."""
    output = tmp_path_factory.mktemp("done") / "done.npz"
    return output, calibrate(tiny_bundle, output, images=pictures, prompts=prompts, config=SHORT)


class Reference:
    """Inputs of PyTorch's linear layers, by layer and condition."""

    def __init__(self, bundle: Bundle) -> None:
        torch = pytest.importorskip("torch")
        from lladav.export.reference import LladaV

        self.model = LladaV(bundle.manifest.geometry).requires_grad_(False)
        state = self.model.state_dict()
        stored = {
            name: torch.from_numpy(tensor[: len(state[name])])
            for name, tensor in tiny_tensors(0).items()
            if name in state
        }
        self.model.load_state_dict(stored)
        self.inputs: dict[str, np.ndarray] = {}
        self.seen: dict[tuple[str, Condition], list[np.ndarray]] = defaultdict(list)
        for name, module in self.model.named_modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_pre_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(_: object, inputs: tuple[object, ...]) -> None:
            self.inputs[name] = np.asarray(inputs[0]).reshape(-1, np.shape(inputs[0])[-1])

        return hook

    def crop(self, pixels: np.ndarray, condition: Condition) -> None:
        import torch

        self.inputs.clear()
        self.model.image_features(torch.from_numpy(pixels))
        for name, values in self.inputs.items():
            self.seen[name, condition].append(values)

    def refresh(
        self, prompt: np.ndarray, ids: np.ndarray, canvas: np.ndarray, masked: np.ndarray, ratio: float
    ) -> None:
        import torch

        self.inputs.clear()
        self.model(torch.from_numpy(np.concatenate((prompt, canvas)))[None])
        where = np.array(["image" if i == IMAGE_TOKEN else "text" for i in ids] + ["canvas"] * len(canvas))
        last = f"model.layers.{self.model.geometry.language.layers - 1}"
        wanted = len(prompt) + masked
        for name, values in self.inputs.items():
            # Of the last layer only keys and values are computed for all rows, by the graph.
            partial = name == "lm_head" or (name.startswith(last) and "k_proj" not in name and "v_proj" not in name)
            rows = wanted if partial else np.arange(len(values))
            for place in np.unique(where[rows]):
                condition = Condition(kind="refresh", where=place, mask_ratio=ratio)
                self.seen[name, condition].append(values[rows[where[rows] == place]])


def test_statistics_are_those_of_pytorch(tiny_bundle: Path, pictures: Path, prompts: Path, tmp_path: Path) -> None:
    config = CalibrationConfig(gen_length=8, steps=8, refresh_interval=1, limit=2, seed=3)
    statistics = calibrate(tiny_bundle, tmp_path / "s.npz", images=pictures, prompts=prompts, config=config)
    pipe = Pipeline.load(tiny_bundle)
    reference = Reference(pipe.bundle)
    answer = GenerationConfig(preset="quality", gen_length=8, steps=8, refresh_interval=1, stop=())
    for question in pair(find_pictures(pictures), read_prompts(prompts), config.limit, config.seed):
        assert question.picture is not None
        for number, crop in enumerate(pipe.pictures.picture(question.picture, "anyres").crops):
            reference.crop(pixel_values(crop[None]), Condition(kind="crop" if number else "base"))
        ids = pipe.tokenizer.chat([Message("user", with_images(question.prompt, 1))])
        rows, kinds = merge_prompt(
            ids, pipe.table, [pipe.image_rows(question.picture)], pipe.bundle.manifest.max_prompt
        )
        steps = pipe.stream(question.prompt, images=[question.picture], config=answer)
        events = [event for event in steps if isinstance(event, StepEvent)]
        for one in passes_of(events, pipe.bundle.manifest.tokens.mask):
            reference.refresh(rows, kinds, pipe.table.gather(one.canvas), one.masked, one.mask_ratio)
    assert {name for name, _ in reference.seen} == set(statistics.linears)
    for (name, condition), parts in reference.seen.items():
        values = np.concatenate(parts)
        found = statistics.of(name, lambda c, condition=condition: c == condition)
        assert found.rows == len(values)
        scale = np.abs(values).max()
        np.testing.assert_allclose(found.absmax, np.abs(values).max(axis=0), atol=1e-4 * scale, err_msg=name)
        mean_square = np.square(values, dtype=np.float64).mean(axis=0)
        np.testing.assert_allclose(found.mean_square, mean_square, atol=1e-4 * scale**2, err_msg=name)
        assert found.histogram.sum() == values.size
        exact = float(np.percentile(np.abs(values), 90, method="inverted_cdf"))
        assert 0.999 * exact <= found.percentile(90) <= 1.126 * exact
    for name in (name for name in statistics.linears if name.startswith(LANGUAGE_LAYERS)):
        values = np.concatenate([part for (seen, _), parts in reference.seen.items() if seen == name for part in parts])
        found = statistics.moments(name)
        blocks = values.astype(np.float64).reshape(len(values), len(found), -1).transpose(1, 0, 2)
        expected = blocks.transpose(0, 2, 1) @ blocks
        np.testing.assert_allclose(found, expected, atol=1e-3 * expected.max(), err_msg=name)


def test_ranges_do_not_depend_on_the_precision(
    tiny_checkpoint: Path, done: Calibrated, pictures: Path, prompts: Path, tmp_path: Path
) -> None:
    """The headroom of float16 and its casts are no part of what a linear layer multiplies."""
    half = export(tiny_checkpoint, tmp_path / "half", ExportConfig(dtype="fp16", verify=False)).path
    found = calibrate(half, tmp_path / "half.npz", images=pictures, prompts=prompts, config=SHORT)
    found.check(Bundle.open(half).manifest)
    for name in done[1].linears:
        np.testing.assert_allclose(found.of(name).percentile(99), done[1].of(name).percentile(99), rtol=0.15)


def test_every_condition_is_met_by_default(tiny_bundle: Path, prompts: Path, tmp_path: Path) -> None:
    config = CalibrationConfig(gen_length=16, limit=1)
    statistics = calibrate(tiny_bundle, tmp_path / "s.npz", prompts=prompts, config=config)
    record = statistics.header.graphs["denoiser"]
    seen = {c for c, rows in zip(record.conditions, statistics.rows("denoiser"), strict=True) if rows}
    assert seen == {condition for condition in record.conditions if condition.where != "image"}


def test_questions_about_no_picture_leave_the_vision_encoder_alone(
    tiny_bundle: Path, prompts: Path, tmp_path: Path
) -> None:
    statistics = calibrate(tiny_bundle, tmp_path / "s.npz", prompts=prompts, config=SHORT)
    assert list(statistics.header.graphs) == ["denoiser"]
    assert statistics.header.run.sources == ()


def test_equal_calibrations_give_equal_bytes(
    done: Calibrated, tiny_bundle: Path, pictures: Path, prompts: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again.npz"
    calibrate(tiny_bundle, again, images=pictures, prompts=prompts, config=SHORT)
    assert again.read_bytes() == done[0].read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again.npz"]


def interrupted(after: int) -> Progress:
    """Ctrl-C after that many passes."""
    left = after

    def advance(amount: int) -> None:
        nonlocal left
        left -= amount
        if left < 0:
            raise KeyboardInterrupt

    return Progress(advance=advance)


def test_an_interrupted_calibration_goes_on(
    done: Calibrated, tiny_bundle: Path, pictures: Path, prompts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "s.npz"
    with pytest.raises(KeyboardInterrupt):
        calibrate(tiny_bundle, output, images=pictures, prompts=prompts, config=SHORT, progress=interrupted(5))
    assert [path.name for path in tmp_path.iterdir()] == [".s.npz.partial"]
    amounts: list[int] = []
    progress = Progress(advance=amounts.append)
    calibrate(tiny_bundle, output, images=pictures, prompts=prompts, config=SHORT, progress=progress)
    assert amounts == [4, 1, 1, 1, 1]  # of two questions with four passes, one was done
    assert output.read_bytes() == done[0].read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["s.npz"]


def test_a_full_disk_costs_no_question_that_was_counted(
    done: Calibrated,
    tiny_bundle: Path,
    pictures: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output, saved = tmp_path / "s.npz", tmp_path / "saved"
    both: dict[str, Any] = {"images": pictures, "prompts": prompts, "config": SHORT, "save_inputs": saved}

    def full(file: Path) -> AbstractContextManager[Path]:
        if file.name == "00001.npz":
            raise OSError(errno.ENOSPC, "No space left on device")
        return staged_file(file)

    with monkeypatch.context() as patch, pytest.raises(CalibrationError, match="No space left"):
        patch.setattr("lladav.calib.graph_inputs.staged_file", full)
        calibrate(tiny_bundle, output, **both)
    assert Statistics.read(tmp_path / ".s.npz.partial").header.done == 1
    calibrate(tiny_bundle, output, **both)
    assert output.read_bytes() == done[0].read_bytes()


def test_an_unfinished_calibration_of_something_else(tiny_bundle: Path, prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "s.npz"
    with pytest.raises(KeyboardInterrupt):
        calibrate(tiny_bundle, output, prompts=prompts, config=SHORT, progress=interrupted(5))
    other = SHORT.model_copy(update={"steps": 2})
    with pytest.raises(CalibrationError, match="unfinished calibration"):
        calibrate(tiny_bundle, output, prompts=prompts, config=other)
    found = calibrate(tiny_bundle, output, prompts=prompts, config=other, force=True)
    assert found.header.run.asked is not None
    assert found.header.run.asked.steps == 2


def test_an_unfinished_calibration_that_cannot_be_read(tiny_bundle: Path, prompts: Path, tmp_path: Path) -> None:
    state = tmp_path / ".s.npz.partial"
    state.write_text("of another version")
    with pytest.raises(CalibrationError, match="unfinished calibration"):
        calibrate(tiny_bundle, tmp_path / "s.npz", prompts=prompts, config=SHORT)
    assert state.exists()
    calibrate(tiny_bundle, tmp_path / "s.npz", prompts=prompts, config=SHORT, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["s.npz"]


def test_no_activation_outlives_its_layer(tiny_bundle: Path) -> None:
    graph = ObservedGraph(Bundle.open(tiny_bundle), "vision_encoder")
    seen: list[tuple[str, weakref.ref[np.ndarray]]] = []
    alive: list[str] = []

    def observe(tensor: str, values: np.ndarray) -> None:
        layer = tensor.partition("layers.")[2].partition(".")[0]
        alive.extend(name for name, ref in seen if f"layers.{layer}." not in name and ref() is not None)
        seen.append((tensor, weakref.ref(values)))

    graph.run({"pixel_values": np.zeros((1, 3, 56, 56), np.float32)}, observe)
    assert len({tensor for tensor, _ in seen}) == len(set(graph.linears.values()))
    assert alive == []


def test_statistics_do_not_grow_with_questions(
    done: Calibrated, tiny_bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    more = calibrate(tiny_bundle, tmp_path / "more.npz", images=pictures, config=SHORT.model_copy(update={"limit": 4}))
    assert sum(a.nbytes for a in more.arrays.values()) == sum(a.nbytes for a in done[1].arrays.values())


def test_a_full_disk_keeps_what_was_counted(
    done: Calibrated,
    tiny_bundle: Path,
    pictures: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[Path] = []
    write = Statistics.write

    def full_at_the_second(self: Statistics, path: Path) -> None:
        if written:
            raise CalibrationError("no space left", cure="free some")
        written.append(path)
        write(self, path)

    output = tmp_path / "s.npz"
    with monkeypatch.context() as patch:
        patch.setattr(Statistics, "write", full_at_the_second)
        with pytest.raises(CalibrationError, match="no space left"):
            calibrate(tiny_bundle, output, images=pictures, prompts=prompts, config=SHORT)
    assert Statistics.read(written[0]).header.done == 1
    calibrate(tiny_bundle, output, images=pictures, prompts=prompts, config=SHORT)
    assert output.read_bytes() == done[0].read_bytes()


def test_parts_of_a_head_are_one_layer(done: Calibrated, tiny_checkpoint: Path, prompts: Path, tmp_path: Path) -> None:
    config = ExportConfig(dtype="fp32", head_parts=3, verify=False)
    bundle = export(tiny_checkpoint, tmp_path / "bundle", config).path
    found = calibrate(bundle, tmp_path / "s.npz", prompts=prompts, config=SHORT)
    assert set(found.linears) == set(done[1].header.graphs["denoiser"].linears)
    assert found.of("lm_head").rows == 2 * (8 + 6 + 4 + 2)
