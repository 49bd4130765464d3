"""Sizes of inputs that nobody observed, beside those of drawn features."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import VISION_LAYERS, Tensors, write_tiny_checkpoint

from lladav.export.checkpoint import Checkpoint
from lladav.export.coverage import linear_layers
from lladav.export.expected_inputs import ExpectedInputs, behind_gelu
from lladav.export.model_config import read_geometry
from lladav.manifest import LANGUAGE_LAYERS, TOWER

torch = pytest.importorskip("torch")

LAYER = f"{TOWER}.encoder.layers.1"


def spread_norms(tensors: Tensors, _: object) -> None:
    draw = np.random.default_rng(0)
    for name, tensor in tensors.items():
        if "vision" in name and "layer_norm" in name:
            tensors[name] = draw.normal(0, 1, tensor.shape).astype(np.float32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(write_tiny_checkpoint(tmp_path_factory.mktemp("norms") / "c", edit=spread_norms))


def read(checkpoint: Checkpoint, tensor: str) -> torch.Tensor:
    return torch.from_numpy(checkpoint.read_rows(tensor, 0, checkpoint.tensors[tensor].shape[0]).astype(np.float32))


def test_every_layer_has_sizes(checkpoint: Checkpoint) -> None:
    layers = linear_layers(read_geometry(checkpoint, 300))
    expected = ExpectedInputs(checkpoint)
    found = {name: expected.sizes(name) for name in layers if not name.startswith(LANGUAGE_LAYERS)}
    assert len(found) == 6 * VISION_LAYERS + 2
    for name, sizes in found.items():
        assert sizes.power.shape == sizes.largest.shape == (layers[name][1],)
        assert (sizes.power > 0).all()
        assert (sizes.largest**2 > sizes.power * 0.999).all()


def test_sizes_are_those_of_a_norm_and_what_follows(checkpoint: Checkpoint) -> None:
    rows = torch.randn(20_000, 24, generator=torch.Generator().manual_seed(1))
    norm, fc1 = (
        [read(checkpoint, f"{LAYER}.{name}.{part}") for part in ("weight", "bias")]
        for name in ("layer_norm2", "mlp.fc1")
    )
    normed = torch.nn.functional.layer_norm(rows, (24,), *norm, 1e-6)
    behind = torch.nn.functional.gelu(normed @ fc1[0].T + fc1[1], approximate="tanh")
    expected = ExpectedInputs(checkpoint)
    before, after = expected.sizes(f"{LAYER}.mlp.fc1"), expected.sizes(f"{LAYER}.mlp.fc2")
    np.testing.assert_allclose(before.power, normed.square().mean(0), rtol=0.05)
    # Sums of 24 channels are not quite normal.
    np.testing.assert_allclose(after.power, behind.square().mean(0), rtol=0.3)


def test_no_output_of_a_norm_is_larger(checkpoint: Checkpoint) -> None:
    peaks = torch.eye(24) * 1e4
    norm = [read(checkpoint, f"{LAYER}.layer_norm2.{part}") for part in ("weight", "bias")]
    reached = torch.nn.functional.layer_norm(torch.cat((peaks, -peaks)), (24,), *norm, 1e-6).abs().amax(0).numpy()
    largest = ExpectedInputs(checkpoint).sizes(f"{LAYER}.mlp.fc1").largest
    assert (reached <= largest).all()
    assert (reached > 0.9 * largest).all()


def test_layers_around_a_gelu() -> None:
    assert behind_gelu(f"{LAYER}.mlp.fc1") == f"{LAYER}.mlp.fc2"
    assert behind_gelu("model.mm_projector.0") == "model.mm_projector.2"
    assert behind_gelu("model.mm_projector.2") is None
    assert behind_gelu("model.layers.0.mlp.gate_proj") is None
