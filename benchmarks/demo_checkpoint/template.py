"""A start for the vision tower: templates of local features, cheap to train, exactly a transformer.

Five thousand drawings are too few, and two CPU cores too slow, for a vision transformer to
learn from random weights what classical features give away: that a picture is described by the
edges and colours *at each place*. So a small network with that structure is trained first,

    z_p = conv(patch p)        e_p = B gelu(A z_p + a)        y = mean over p of  W_p e_p

with its own matrix `W_p` for every place p, and is then written into the tower's weights:
layer 0 computes e, layers 1 and 2 apply all the W_p, layer 3 gives every token the mean, and the
other attention starts silent. A unit of an
MLP belongs to one place: a bias, lifted only where the row and the column of the token match,
keeps it at 0 elsewhere. The tower then continues to learn as a whole.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.demo_checkpoint.sizes import VISION
from export.reference import VisionTransformer

FILTERS, LOCAL = 80, 24
WIDTH, SIDE, PLACES, HIDDEN = VISION.hidden_size, VISION.side, VISION.tokens, VISION.intermediate_size
# Order of the residual stream's channels.
_E, _ROW, _COLUMN = FILTERS, FILTERS + LOCAL, FILTERS + LOCAL + SIDE
_CONSTANT = _COLUMN + SIDE
_OUT = _CONSTANT + 2
EMBEDDING = WIDTH - _OUT
# A channel pair of +-_LARGE makes the variance that LayerNorm divides by nearly the same for all tokens.
_LARGE = 120.0
_SIGMA = math.sqrt(2 * _LARGE**2 / WIDTH)
# How far a unit's bias is lifted at its place, and half of which it is held below 0 elsewhere.
_GATE = 14.0
_BOUND = _GATE / 2 - 3
_CLIP = 3.0
# Scales that keep the other channels small beside that pair.
_Z, _W = 0.25, 0.2
# How much of y, the mean over places, every token gets besides what it found at its own place.
_SHARED = 30.0


def edge_filters(orientations: int = 8, size: int = 5, sigma: float = 1.3) -> Tensor:
    """`[orientations * 9, 3, P, P]` derivatives of a Gaussian at 3 x 3 places of a patch, on luma."""
    r = torch.arange(size) - (size - 1) / 2
    y, x = torch.meshgrid(r, r, indexing="ij")
    bell = torch.exp(-(x * x + y * y) / (2 * sigma**2))
    out = []
    for i in range(orientations):
        turn = math.pi * i / orientations
        kernel = (x * math.cos(turn) + y * math.sin(turn)) * bell
        kernel = kernel / kernel.abs().sum()
        for top in (0, 3, 7):
            for left in (0, 3, 7):
                whole = torch.zeros(VISION.patch_size, VISION.patch_size)
                whole[top : top + size, left : left + size] = kernel
                out.append(whole * torch.tensor([0.299, 0.587, 0.114])[:, None, None])
    return torch.stack(out)


class Template(nn.Module):
    """The network above with a classifier on y."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, FILTERS, VISION.patch_size, VISION.patch_size)
        self.a = nn.Linear(FILTERS, HIDDEN)
        self.b = nn.Linear(HIDDEN, LOCAL)
        self.w = nn.Parameter(torch.randn(PLACES, LOCAL, EMBEDDING) * (_W / LOCAL**0.5))
        self.offset = nn.Parameter(torch.zeros(EMBEDDING))
        self.norm = nn.LayerNorm(EMBEDDING, eps=1e-9)
        self.name = nn.Linear(EMBEDDING, classes)
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        edges = edge_filters()
        n = len(edges)
        w = self.conv.weight
        w.normal_(std=0.02 * _Z)
        w[:n] = edges * (15 * _Z)  # x = 30 r with r in 0..1, whose pixels are half those of -1..1
        for c in range(3):
            w[n + c] = 0
            w[n + c, c] = _Z / VISION.patch_size**2
        self.conv.bias.zero_()
        self.a.weight.normal_(std=0.05 / _Z)
        self.a.bias.normal_(std=0.3)
        self.b.weight.normal_(std=0.1)
        self.b.bias.zero_()
        # |x| up to _CLIP, from four units for every edge filter; summed over places by orientation.
        self.a.weight[: 4 * n] = 0
        for i in range(n):
            for j, (sign, bias) in enumerate(((1, 0), (-1, 0), (1, -_CLIP), (-1, -_CLIP))):
                self.a.weight[4 * i + j, i] = sign / _Z
                self.a.bias[4 * i + j] = bias
                self.b.weight[: n // 9, 4 * i + j] = 0
                self.b.weight[i // 9, 4 * i + j] = (1 if j < 2 else -1) / (9 * _CLIP) * 4
        self.b.bias[: n // 9] = -1
        # gelu(x) - gelu(-x) = x: the three mean colours pass unchanged.
        for c in range(3):
            for j, sign in enumerate((1, -1)):
                unit = 4 * n + 2 * c + j
                self.a.weight[unit] = 0
                self.a.weight[unit, n + c] = sign * 2 / _Z
                self.a.bias[unit] = 0
                self.b.weight[:, unit] = 0
                self.b.weight[n // 9 + c, unit] = sign

    def local(self, pixels: Tensor) -> Tensor:
        """`[B, 3, S, S]` -> e `[B, PLACES, LOCAL]`."""
        z = self.conv(pixels).flatten(2).transpose(1, 2)
        e: Tensor = self.b(F.gelu(self.a(z), approximate="tanh"))
        return e

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Name logits, and a penalty on local features that the gates would cut off."""
        e = self.local(pixels).float()
        excess = (e.abs() - 0.8 * _BOUND).clamp(min=0).square().mean()
        y = torch.einsum("bpi,pid->bd", e.clamp(-_BOUND, _BOUND), self.w) / PLACES + self.offset
        logits: Tensor = self.name(self.norm(y))
        return logits, excess


@torch.no_grad()
def discriminant_start(template: Template, total: Tensor, scatter: Tensor, counts: Tensor, sums: Tensor) -> None:
    """Starts `W` as a linear discriminant analysis of the local features, the classifier at class means.

    Args:
        template: whose local features are described by the rest.
        total: `[F]` sum over drawings, F = PLACES * LOCAL.
        scatter: `[F, F]` sum of outer products.
        counts: `[C]` drawings per class.
        sums: `[C, F]` sum per class.
    """
    n = counts.sum()
    mean, means = total / n, sums / counts[:, None]
    covariance = scatter / n - (means.T * (counts / n)) @ means  # within classes
    spread = (covariance.diagonal() + 1e-6).sqrt()
    correlation = covariance / spread / spread[:, None] + 0.06 * torch.eye(len(mean))
    lower = torch.linalg.cholesky(correlation.double()).float()
    centred = torch.linalg.solve_triangular(lower, ((means - mean) / spread).T, upper=False).T
    directions = torch.linalg.svd(centred, full_matrices=False)[2][:EMBEDDING].T
    w = torch.linalg.solve_triangular(lower.T, directions, upper=True) / spread[:, None]
    w *= _W / LOCAL**0.5 / w.std()
    template.w.copy_(w.view(PLACES, LOCAL, EMBEDDING))
    template.offset.copy_(-(mean @ w) / PLACES)
    prototypes = template.norm((means - mean) @ w / PLACES)
    template.name.weight.copy_(1.5 * F.normalize(prototypes, dim=1))
    template.name.bias.zero_()


@torch.no_grad()
def transplant(template: Template, tower: VisionTransformer) -> None:
    """Writes the template network into a tower; see `EMBEDDING` for where y is afterwards."""
    layers = list(tower.encoder.layers)  # type: ignore[arg-type]
    gain = torch.full((WIDTH,), _SIGMA)
    gain[_CONSTANT : _CONSTANT + 2] = 1 / math.sqrt(WIDTH / 2)
    for layer in layers:
        for norm in (layer.layer_norm1, layer.layer_norm2):
            norm.weight.copy_(gain)
            norm.bias.zero_()
        attention = layer.self_attn
        for part in (attention.q_proj, attention.k_proj, attention.v_proj):
            part.weight.normal_(std=0.5 / WIDTH**0.5)
            part.bias.zero_()
        attention.out_proj.weight.zero_()
        attention.out_proj.bias.zero_()
        layer.mlp.fc1.weight.normal_(std=0.5 / WIDTH**0.5)
        layer.mlp.fc2.weight.zero_()
        layer.mlp.fc1.bias.zero_()
        layer.mlp.fc2.bias.zero_()

    patch, place = tower.embeddings.patch_embedding, tower.embeddings.position_embedding.weight
    patch.weight.zero_()
    patch.bias.zero_()
    patch.weight[:FILTERS] = template.conv.weight
    patch.bias[:FILTERS] = template.conv.bias
    place.zero_()
    index = torch.arange(PLACES)
    place[index, _ROW + index // SIDE] = 1
    place[index, _COLUMN + index % SIDE] = 1
    place[:, _CONSTANT], place[:, _CONSTANT + 1] = _LARGE, -_LARGE

    first = layers[0].mlp
    first.fc1.weight.zero_()
    first.fc1.weight[:, :FILTERS] = template.a.weight
    first.fc1.bias.copy_(template.a.bias)
    first.fc2.weight[_E : _E + LOCAL] = template.b.weight
    first.fc2.bias[_E : _E + LOCAL] = template.b.bias

    w = template.w - template.w.mean(-1, keepdim=True)  # the classifier's LayerNorm ignores the mean
    per_layer = HIDDEN // PLACES
    for number in range(LOCAL // per_layer):
        mlp = layers[1 + number].mlp
        mlp.fc1.weight.zero_()
        for p in range(PLACES):
            for i in range(per_layer):
                unit, feature = p * per_layer + i, number * per_layer + i
                mlp.fc1.weight[unit, _E + feature] = 1
                # The weights of an axis sum to 0, so that the mean LayerNorm takes away does not matter.
                mlp.fc1.weight[unit, _ROW : _COLUMN + SIDE] = -_GATE / (SIDE - 1)
                mlp.fc1.weight[unit, _ROW + p // SIDE] = _GATE
                mlp.fc1.weight[unit, _COLUMN + p % SIDE] = _GATE
                mlp.fc1.weight[unit, _CONSTANT] = -1.5 * _GATE  # scales with the rest, unlike a bias
                mlp.fc2.weight[_OUT:, unit] = w[p, feature]
    # Equal scores make attention a mean: layer 3 gives y to all tokens, for a reader of single tokens.
    attention = layers[3].self_attn
    for part in (attention.q_proj, attention.k_proj, attention.v_proj):
        part.weight.zero_()
    index = torch.arange(EMBEDDING)
    attention.v_proj.weight[index, _OUT + index] = 1
    attention.out_proj.weight[_OUT + index, index] = _SHARED
    place[:, _OUT:] += template.offset - template.offset.mean()
    # At its place a unit gives e plus half the gate; the position embedding takes that away again.
    place[:, _OUT:] -= _GATE / 2 * w.sum(1)
