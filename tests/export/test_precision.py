"""float16 where a model trained in bfloat16 leaves float16's range."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import Tensors, write_tiny_checkpoint

from lladav.bundle import Bundle
from lladav.errors import ExportError
from lladav.export.checkpoint import Checkpoint
from lladav.export.config import ExportConfig
from lladav.export.exporter import export
from lladav.export.graph_pieces import GraphPieces
from lladav.manifest import Precision

torch = pytest.importorskip("torch")

FLOAT16_MAX = 65504.0


def large_activations(tensors: Tensors, _: dict[str, Any]) -> None:
    """Makes SwiGLU products and the residual stream leave float16's range, as massive activations do."""
    for name, tensor in tensors.items():
        if name.endswith(("gate_proj.weight", "up_proj.weight")):
            tensor *= 300.0


def logits(bundle: Bundle, embeds: np.ndarray) -> np.ndarray:
    """Logits `[L, V]` with every narrow value rounded, as a GPU does and ONNX Runtime's CPU does not."""
    language = bundle.manifest.geometry.language
    length = len(embeds)
    values: dict[str, Any] = {
        "inputs_embeds": embeds[None],
        "position_ids": np.arange(length)[None],
        "attention_bias": np.zeros((1, 1, 1, length), np.float32),
        "rows": np.arange(length),
        "kept": np.arange(0),
    }
    for name in (spec.name for spec in bundle.manifest.graphs["denoiser"].inputs):
        if name.startswith("past_key_values."):
            values[name] = np.zeros((1, language.kv_heads, 0, language.head_size), np.float32)
    graph = GraphPieces(bundle.file("denoiser.onnx"))
    for scope in ("rotary", *(f"layers.{i}" for i in range(language.layers)), "head"):
        values |= graph.piece(scope).run(values)
    return np.asarray(values[graph.results["logits"]][0])


def reference(checkpoint: Path, bundle: Bundle) -> Any:
    from lladav.export.reference import LladaV

    model = LladaV(bundle.manifest.geometry)
    source = Checkpoint.open(checkpoint)
    rows = model.geometry.language.vocab_rows
    model.load_state_dict(
        {
            name: torch.from_numpy(
                source.read(name)[: rows if "embed_tokens" in name or name.startswith("lm_head") else None]
            )
            for name in model.state_dict()
        }
    )
    return model.eval()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_large_activations_survive(tmp_path: Path, precision: Precision) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "checkpoint", edit=large_activations)
    bundle = export(checkpoint, tmp_path / "bundle", ExportConfig(dtype=precision, verify=False))
    embeds = np.random.default_rng(0).normal(0, 0.5, (12, 32)).astype(np.float32)
    model = reference(checkpoint, bundle)
    with torch.no_grad():
        states = model.hidden_states(torch.from_numpy(embeds)[None])
        expected = model.lm_head(states[-1])[0].numpy()
        naive = model.half()(torch.from_numpy(embeds)[None].half())

    assert max(float(s.abs().max()) for s in states[:-1]) > FLOAT16_MAX, "the residual stream must leave the range"
    assert not torch.isfinite(naive).all(), "plain float16 must fail, or this test shows nothing"
    got = logits(bundle, embeds)
    tolerance = 0.02 if precision == "fp16" else 1e-4
    assert np.abs(got - expected).max() < tolerance * np.abs(expected).max()
    assert (got.argmax(axis=1) == expected.argmax(axis=1)).all()


def test_products_without_headroom_overflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lladav.export.denoiser_graph.FLOAT16_HEADROOM", 1.0)
    checkpoint = write_tiny_checkpoint(tmp_path / "checkpoint", edit=large_activations)
    bundle = export(checkpoint, tmp_path / "bundle", ExportConfig(dtype="fp16", verify=False))
    embeds = np.random.default_rng(0).normal(0, 0.5, (12, 32)).astype(np.float32)
    assert not np.isfinite(logits(bundle, embeds)).all()


def test_weight_beyond_float16_is_named(tmp_path: Path) -> None:
    def edit(tensors: Tensors, _: dict[str, Any]) -> None:
        tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = 1e5

    checkpoint = write_tiny_checkpoint(tmp_path / "checkpoint", edit=edit, dtype="bfloat16")
    with pytest.raises(ExportError, match=r"layers\.1\.mlp\.down_proj\.weight reaches 9\.984e\+04"):
        export(checkpoint, tmp_path / "bundle", ExportConfig(dtype="fp16", verify=False))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize(("stored", "expected"), [("float32", "fp32"), ("bfloat16", "fp16"), ("float16", "fp16")])
def test_precision_follows_the_checkpoint(tmp_path: Path, stored: str, expected: str) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "checkpoint", dtype=stored)
    assert export(checkpoint, tmp_path / "bundle", ExportConfig(verify=False)).manifest.precision == expected
