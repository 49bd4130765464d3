"""Bundles whose linear layers are integers: their form, what they compute, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper
from tiny import Tensors, write_tiny_checkpoint
from typer.testing import CliRunner

from lladav.bundle import Bundle
from lladav.cli.app import app
from lladav.errors import CalibrationError, CheckpointError, ExportError, OptionError, VerificationError
from lladav.export import ExportConfig, export
from lladav.export.coverage import linear_layers
from lladav.export.migration import Migration
from lladav.export.quantize import dequantized
from lladav.export.stored_integers import StoredIntegers
from lladav.manifest import Precision, Quantization, QuantizedForm
from lladav.runtime import GenerationConfig, Pipeline
from lladav.runtime.sessions import session_options
from lladav.statistics import Statistics

FORMS: tuple[QuantizedForm, ...] = ("w8", "w4", "w8a8")
LANGUAGE = "model.layers."


class Exports:
    """Bundles of the tiny model, each made once; not to be changed."""

    def __init__(self, checkpoint: Path, folder: Path, statistics: Path) -> None:
        self._checkpoint, self._folder, self._statistics = checkpoint, folder, statistics

    def config(self, form: str | None, precision: Precision = "fp32") -> ExportConfig:
        """Of a form, or of `w4 widened`."""
        seen = self._statistics if form == "w8a8" else None
        asked = {"quantize": form and form.partition(" ")[0], "widen_on_cpu": form == "w4 widened"}
        return ExportConfig(dtype=precision, statistics=seen, verify=False, **asked)

    def __call__(self, form: str | None, precision: Precision = "fp32") -> Bundle:
        path = self._folder / f"{form}-{precision}"
        if path.exists():
            return Bundle.open(path)
        return export(self._checkpoint, path, self.config(form, precision))


@pytest.fixture(scope="module")
def exports(tiny_checkpoint: Path, seen: Path, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return Exports(tiny_checkpoint, tmp_path_factory.mktemp("exports"), seen)


def load(bundle: Bundle, graph: str) -> onnx.ModelProto:
    onnx.checker.check_model(str(bundle.file(f"{graph}.onnx")), full_check=True)
    return onnx.load(str(bundle.file(f"{graph}.onnx")), load_external_data=False)


def weight_bytes(bundle: Bundle, graph: str) -> int:
    lengths = [e.value for t in load(bundle, graph).graph.initializer for e in t.external_data if e.key == "length"]
    return sum(map(int, lengths))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("graph", ["denoiser", "denoiser_cpu", "vision_encoder", "connector"])
def test_linear_layers_are_integers_and_nothing_else_is(exports: Exports, form: QuantizedForm, graph: str) -> None:
    bundle = exports(form)
    model = load(bundle, graph)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    integers = {
        name.removesuffix(".weight") for name, kind in types.items() if kind in (TensorProto.INT8, TensorProto.INT4)
    }
    integers -= {name for name in integers if name.startswith("const.")}
    layers = linear_layers(bundle.manifest.geometry)
    assert integers == {name for name in layers if f"{name}.weight" in types}
    for name in integers:
        # Heads of width 32 have one block of it; 48 has no block that divides it, and gets 8 bits.
        four_bits = form == "w4" and name.startswith(LANGUAGE) and layers[name][1] == 32
        assert types[f"{name}.weight"] == (TensorProto.INT4 if four_bits else TensorProto.INT8), name
    kinds = [node.op_type for node in model.graph.node]
    assert ("QuantizeLinear" in kinds) == (graph == "denoiser_cpu" or (form, graph) == ("w8a8", "denoiser"))
    (opset,) = (o.version for o in model.opset_import)
    assert opset == (21 if form == "w4" and graph.startswith("denoiser") else 20)


def test_layers_with_one_input_share_its_integers(exports: Exports) -> None:
    kinds = [node.op_type for node in load(exports("w8a8"), "denoiser").graph.node]
    # Of query, key and value; output; gate and up; down. Queries of the last layer have fewer rows.
    assert kinds.count("QuantizeLinear") == 2 * 4 + 1


@pytest.mark.parametrize("form", FORMS)
def test_manifest_says_so(exports: Exports, form: QuantizedForm) -> None:
    plain, found = exports(None).manifest, exports(form).manifest
    assert plain.quantization is None
    assert found.quantization == Quantization(form=form, block=128 if form == "w4" else None)
    assert found.checkpoint == plain.checkpoint
    layers = linear_layers(plain.geometry)
    values = sum(rows * columns for name, (rows, columns) in layers.items() if name.startswith(LANGUAGE))
    saved = [weight_bytes(exports(form_), "denoiser") for form_ in (None, form)]
    # Scales are what the rest is.
    assert 2.7 * values < saved[0] - saved[1] < (3.5 if form == "w4" else 3) * values


@pytest.mark.parametrize(
    ("form", "precision"),
    [
        *(("w8", "bf16"), ("w4", "fp16"), ("w8a8", "fp32")),
        *(
            pytest.param(form, precision, marks=pytest.mark.slow)
            for form, precision in (
                *(("w8", "fp32"), ("w8", "fp16"), ("w4", "fp32")),
                *(("w4", "bf16"), ("w8a8", "fp16"), ("w8a8", "bf16")),
            )
        ),
    ],
)
def test_graphs_compute_what_their_integers_stand_for(
    exports: Exports, tiny_checkpoint: Path, form: QuantizedForm, precision: Precision
) -> None:
    pytest.importorskip("torch")
    from lladav.export.verify import verify

    report = verify(exports(form, precision).path, tiny_checkpoint)
    assert [row.component for row in report.rows[:3]] == ["denoiser", "vision_encoder", "connector"]
    assert {row.what for row in report.rows[:3]} == {"integers, in steps"}
    assert all((row.max_abs_error or 0) > 0.4 for row in report.rows[:3])


@pytest.mark.parametrize("form", FORMS)
def test_integers_are_near_the_weights(exports: Exports, form: QuantizedForm) -> None:
    """Relative to the largest of a row, and so of what it computes."""
    integers = StoredIntegers(exports(form))
    plain = exports(None)
    migration = Migration.read(exports(form).path, plain.manifest.geometry)
    for graph in ("denoiser", "vision_encoder", "connector"):
        tensors = {t.name: t for t in load(plain, graph).graph.initializer}
        for linear in (name for name in integers if integers.graph(name) == graph):
            place = {e.key: e.value for e in tensors[f"{linear}.weight"].external_data}
            shape = tuple(tensors[f"{linear}.weight"].dims)
            file = plain.file(place["location"])
            weights = np.fromfile(file, "<f4", int(np.prod(shape)), offset=int(place["offset"])).reshape(shape).T
            weights = migration.applied(f"{linear}.weight", weights)
            rows = integers.rows(linear)
            levels = 254 if rows.scales.shape[1] == 1 and form != "w4" else 14
            error = np.abs(dequantized(rows) - weights).max(axis=1)
            assert (error <= np.abs(weights).max(axis=1) / levels * 1.01).all(), linear


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("form", [*FORMS, "w4 widened"])
def test_onnx_runtime_multiplies_integers(exports: Exports, tmp_path: Path, form: str, precision: Precision) -> None:
    """Every linear layer of the denoiser, without turning numbers into others on the way in any pass."""
    bundle = exports(form, precision)
    kinds = rewritten(bundle, "denoiser_cpu", tmp_path)
    quantization = bundle.manifest.quantization
    assert quantization is not None
    layers = {n: i for n, (_, i) in linear_layers(bundle.manifest.geometry).items() if n.startswith(LANGUAGE)}
    bits = [quantization.integers(name, inputs).bits for name, inputs in layers.items()]
    four = 0 if form == "w4 widened" else bits.count(4)
    assert kinds.count("MatMulNBits") == four
    assert kinds.count("MatMulIntegerToFloat") == len(layers) - four
    assert "DequantizeLinear" not in kinds
    assert kinds.count("Cast") == 1  # of position ids


def test_onnx_runtime_takes_the_towers_integers_as_they_are(exports: Exports, tmp_path: Path) -> None:
    bundle = exports("w8")
    layers = [name for name in linear_layers(bundle.manifest.geometry) if "vision_tower" in name]
    assert rewritten(bundle, "vision_encoder", tmp_path).count("MatMulNBits") == len(layers)


def rewritten(bundle: Bundle, graph: str, folder: Path) -> list[str]:
    """Operators of what ONNX Runtime makes of a graph."""
    options = session_options(threads=1)
    options.optimized_model_filepath = str(folder / "rewritten.onnx")
    ort.InferenceSession(str(bundle.file(f"{graph}.onnx")), options, providers=["CPUExecutionProvider"])
    model = onnx.load(options.optimized_model_filepath, load_external_data=False)
    return [node.op_type for node in model.graph.node]


def test_inputs_are_rounded_alike_for_engines_and_the_cpu(exports: Exports) -> None:
    """To unsigned integers for the CPU, whose 0 is in the middle."""
    zeros = {}
    for graph in ("denoiser", "denoiser_cpu"):
        model = load(exports("w8a8"), graph)
        inside = [tensor for tensor in model.graph.initializer if not tensor.external_data]
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in inside}
        rounded = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
        zeros[graph] = {(constants[node.input[2]].dtype.name, int(constants[node.input[2]])) for node in rounded}
    assert zeros == {"denoiser": {("int8", 0)}, "denoiser_cpu": {("uint8", 128)}}


@pytest.mark.parametrize("form", FORMS)
def test_answers_come_on_the_cpu(exports: Exports, form: QuantizedForm) -> None:
    for precision in ("fp32", "fp16"):
        answer = Pipeline.load(exports(form, precision).path).generate("What?", config=GenerationConfig(gen_length=4))
        assert answer.token_ids


def test_blocks_in_which_a_tensor_is_read_change_nothing(
    exports: Exports, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for form in FORMS:
        with monkeypatch.context() as patch:
            patch.setattr("lladav.export.weights.BLOCK_BYTES", 500)
            small = export(tiny_checkpoint, tmp_path / form, exports.config(form))
        assert small.manifest.files == exports(form).manifest.files


def test_altered_integer_is_found(exports: Exports, tiny_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from lladav.export.verification import DeviationError
    from lladav.export.verify import verify

    path = Path(shutil.copytree(exports("w8").path, tmp_path / "altered"))
    name = "model.layers.1.mlp.gate_proj.weight"
    tensor = next(t for t in load(exports("w8"), "denoiser").graph.initializer if t.name == name)
    offset = int(next(e.value for e in tensor.external_data if e.key == "offset"))
    with (path / "denoiser.weights").open("r+b") as file:
        file.seek(offset)
        code = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([code ^ 1]))
    with pytest.raises(VerificationError) as caught:
        verify(path, tiny_checkpoint)
    assert isinstance(caught.value, DeviationError)
    (row,) = (row for row in caught.value.report.rows if not row.passed)
    assert (row.component, row.what, row.note) == ("denoiser", "integers, in steps", name.removesuffix(".weight"))


def test_weight_that_is_no_number_is_named(tmp_path: Path) -> None:
    def edit(tensors: Tensors, _: dict[str, Any]) -> None:
        tensors["model.layers.0.mlp.up_proj.weight"][1, 2] = np.nan

    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.up_proj\.weight holds NaN"):
        export(
            write_tiny_checkpoint(tmp_path / "c", edit=edit), tmp_path / "b", ExportConfig(quantize="w8", verify=False)
        )
    assert not (tmp_path / "b").exists()


def test_scale_beyond_float16_is_named(tmp_path: Path) -> None:
    def edit(tensors: Tensors, _: dict[str, Any]) -> None:
        tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = 1e7

    checkpoint = write_tiny_checkpoint(tmp_path / "c", edit=edit)
    with pytest.raises(ExportError, match=r"layers\.1\.mlp\.down_proj\.weight reaches 1e\+07"):
        export(checkpoint, tmp_path / "b", ExportConfig(dtype="fp16", quantize="w8", verify=False))
    export(checkpoint, tmp_path / "wide", ExportConfig(dtype="bf16", quantize="w8", verify=False))


def test_statistics_of_another_checkpoint_are_refused(exports: Exports, tmp_path: Path) -> None:
    other = write_tiny_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(CalibrationError, match="of the checkpoint"):
        export(other, tmp_path / "bundle", exports.config("w8a8"))
    assert not (tmp_path / "bundle").exists()


def test_input_that_was_always_zero_gives_no_scale(
    exports: Exports, seen: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    found = Statistics.open(seen)
    name = "model.layers.1.self_attn.o_proj"
    arrays = {key: np.zeros_like(a) if key == f"{name}/absmax" else a for key, a in found.arrays.items()}
    Statistics(found.header, arrays).write(tmp_path / "zeros.npz")
    config = exports.config("w8a8").model_copy(update={"statistics": tmp_path / "zeros.npz"})
    with pytest.raises(CalibrationError, match=f"inputs of {name} reach 0"):
        export(tiny_checkpoint, tmp_path / "bundle", config)


def test_layers_can_be_kept(tiny_checkpoint: Path, tmp_path: Path) -> None:
    kept = ("*.mlp.down_proj", "model.layers.0.*.q_proj")
    config = ExportConfig(dtype="fp32", quantize="w8", keep_layers=kept, verify=False)
    bundle = export(tiny_checkpoint, tmp_path / "bundle", config)
    names = {"model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj"}
    assert bundle.manifest.quantization is not None
    assert set(bundle.manifest.quantization.kept) == names
    assert set(StoredIntegers(bundle)) == set(linear_layers(bundle.manifest.geometry)) - names


def test_list_that_names_nothing_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = ExportConfig(quantize="w8", keep_layers=("*.down_proj", "*.down"), verify=False)
    with pytest.raises(OptionError, match=r"no linear layer is called '\*\.down'"):
        export(tiny_checkpoint, tmp_path / "bundle", config)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--quantize", "w3"), "--quantize: Input should be 'w8', 'w4' or 'w8a8'"),
        (("--quantize", "w8a8"), "w8a8 needs statistics"),
        (("--keep-layers", "*"), "--keep-layers without quantize"),
        (("--quantize", "w8", "--keep-layers", " "), "names no layer"),
        (("--quantize-head",), "--quantize-head without quantize"),
        (("--quantize", "w8", "--widen-on-cpu"), "only w4 has weights that --widen-on-cpu"),
        (("--quantize", "w4", "--widen-on-cpu", "--dtype", "bf16"), "bf16 has no graph for the CPU"),
        (("--head-parts", "0"), "--head-parts: Input should be greater than 0"),
    ],
)
def test_options_that_mean_nothing(tiny_checkpoint: Path, tmp_path: Path, options: tuple[str, str], said: str) -> None:
    result = CliRunner().invoke(app, ("export", str(tiny_checkpoint), str(tmp_path / "b"), *options))
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("form", "given", "said"),
    [("w8a8", None, "w8a8 needs statistics"), (None, Path("seen.npz"), "statistics without quantize")],
)
def test_statistics_belong_to_integers(form: QuantizedForm | None, given: Path | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ExportConfig(quantize=form, statistics=given)
