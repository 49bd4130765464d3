"""What is said against engines in integers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from unbuilt import engine_record

from lladav.bundle import Bundle
from lladav.engines import load_target, target_names
from lladav.engines.drawbacks import KERNELS, drawbacks, pass_times
from lladav.engines.prediction import rates_of
from lladav.manifest import FileEntry, Manifest, Precision, Quantization, QuantizedForm
from lladav.memory_plan import default_sizes
from lladav.records import Conversion, EngineRecord, IntegerUse

MakeBundle = Callable[[Precision], Path]
FINE = IntegerUse(weights=14, widened=(), conversions=())


def bundle_of(path: Path, form: QuantizedForm | None) -> Bundle:
    manifest = Manifest.read(path).model_copy(update={"quantization": Quantization(form=form) if form else None})
    return Bundle(path, manifest)


def record(integers: IntegerUse | None, graph: str = "denoiser", size: int = 1000) -> EngineRecord:
    plan = FileEntry(path=f"engines/rtx-40/{graph}.plan", bytes=size, sha256="")
    return engine_record(graph, precision="int8", integers=integers).model_copy(update={"plan": plan})


def said(bundle: Bundle, *records: EngineRecord) -> list[str]:
    return list(drawbacks(bundle, load_target("rtx-40"), records))


def conversions(count: int, values: int | None, *, per_position: bool) -> IntegerUse:
    alone = (Conversion(node=f"layers.{i}/int8", values=values, per_position=per_position) for i in range(count))
    return FINE.model_copy(update={"conversions": tuple(alone)})


@pytest.mark.parametrize("form", ["w8", "w8a8", "w4"])
@pytest.mark.parametrize("target", target_names())
def test_integers_alone_are_never_slower(bundle_in: MakeBundle, form: QuantizedForm, target: str) -> None:
    manifest = bundle_of(bundle_in("fp16"), form).manifest
    for graph, kinds in (("denoiser", ["refresh", "step"]), ("connector", ["connector"])):
        found = list(pass_times(manifest, load_target(target), record(FINE, graph)))
        assert [one.kind for one in found] == kinds
        assert all(0 < one.ms <= one.plain_ms for one in found)


def test_what_layers_of_their_own_move_is_added(bundle_in: MakeBundle) -> None:
    manifest, target = bundle_of(bundle_in("fp16"), "w8a8").manifest, load_target("rtx-40")
    sizes, rates = default_sizes(manifest), rates_of(target)

    def more(graph: str, use: IntegerUse) -> list[float]:
        """Bytes."""
        pairs = zip(
            pass_times(manifest, target, record(use, graph)),
            pass_times(manifest, target, record(FINE, graph)),
            strict=True,
        )
        return [(ours.ms - plain.ms) * rates.bandwidth / 1e3 for ours, plain in pairs]

    # Rounding reads two bytes and writes one, for every position and each of 7 layers of 1,000 values.
    window = sizes.prompt + sizes.canvas
    rounding = conversions(7, 1000, per_position=True)
    assert more("denoiser", rounding) == pytest.approx([3 * 7000 * window, 3 * 7000 * sizes.canvas])
    assert more("vision_encoder", rounding) == pytest.approx([3 * 7000 * sizes.tiles])
    # Weights that are widened are written and read in two bytes.
    assert more("denoiser", conversions(7, 1000, per_position=False)) == pytest.approx([4 * 7000] * 2)
    assert more("denoiser", conversions(7, None, per_position=True)) == [0, 0]


def test_passes_that_are_slower_than_in_fp16_are_named(bundle_in: MakeBundle) -> None:
    bundle = bundle_of(bundle_in("fp16"), "w8")
    layers, refresh, step = said(bundle, record(conversions(12, 10**6, per_position=False)))
    named = ", ".join(f"layers.{i}/int8" for i in range(10))
    assert layers.endswith(f"denoiser rounds or widens in layers of their own: {named} and 2 more")
    assert refresh.startswith("predicted for RTX 40 series; figures of the GeForce RTX 4090: refresh in ")
    assert ": step in " in step


def test_what_prompt_kv_saves_hides_no_slow_layer(bundle_in: MakeBundle) -> None:
    plain = bundle_of(bundle_in("fp16"), "w8")
    saving = Bundle(plain.path, plain.manifest.model_copy(update={"prompt_kv": "int8"}))

    def more(bundle: Bundle) -> list[float]:
        """Milliseconds that layers of their own cost beyond what integers save."""
        found = pass_times(bundle.manifest, load_target("rtx-40"), record(conversions(1, 10**4, per_position=False)))
        return [one.ms - one.plain_ms for one in found]

    assert more(saving) == pytest.approx(more(plain))


def test_weights_that_are_floats_are_named(bundle_in: MakeBundle) -> None:
    bundle = bundle_of(bundle_in("fp16"), "w4")
    (widened,) = said(bundle, record(FINE.model_copy(update={"widened": ("layers.0/mlp/up_proj.weight",)})))
    assert "floats that the bundle has in integers: layers.0/mlp/up_proj.weight" in widened


def test_size_speaks_where_the_library_does_not(bundle_in: MakeBundle) -> None:
    bundle = bundle_of(bundle_in("fp16"), "w8")
    entry = bundle.manifest.graphs["denoiser"].weights
    weights = next(file.bytes for file in bundle.manifest.files if file.path == entry)
    assert said(bundle, record(None, size=weights + int(KERNELS))) == []
    (grown,) = said(bundle, record(None, size=weights + 2 * int(KERNELS)))
    assert "64 MB larger than its weights" in grown


def test_nothing_speaks_against_what_is_as_it_should_be(bundle_in: MakeBundle) -> None:
    assert said(bundle_of(bundle_in("fp16"), "w8"), record(FINE)) == []
    assert said(bundle_of(bundle_in("fp16"), None), record(None)) == []
