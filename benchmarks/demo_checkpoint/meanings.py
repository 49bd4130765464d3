"""What goes with a name is written into the language model: its article and the kind of thing it is.

Names share everything that training teaches (see `train_answers.Frozen`), so what differs from name
to name has to be written too. The embedding of a name holds a mark for its article and a code of its
kind, and two heads carry these to the canvas rows that need them once the name stands in the canvas.
For when it does not, the MLP behind the heads that read z gets units that guess mark and code from z.
They are fitted beforehand, on what the tower sees of training drawings.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from benchmarks.demo_checkpoint.drawings import Thing
from benchmarks.demo_checkpoint.questions import kind_of, with_article
from benchmarks.demo_checkpoint.start import (
    CONSTANT,
    DIRECTIONS,
    FIRST,
    HIDDEN,
    KIND,
    MATCHED,
    NAME,
    READING_LAYER,
    VOWEL,
    Attention,
    Z,
    canvas_row,
    final_size,
    name_ids,
)
from export.reference import LladaV

UNITS = 512
"""Units of the MLP that guess."""

_EPOCHS, _BATCH, _RATE, _NOISE = 12, 512, 3e-3, 0.3
_VOWEL = 4.0
# How much the head makes of a code and of the mark.
_KIND_GAIN, _VOWEL_GAIN = 0.5, 1.0
# Kinds start as unlikely as they were, until training has found out when to name one.
_KIND_OFFSET = 5.0


def _fit(x: Tensor, kinds: Tensor, vowels: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gate and up `[UNITS, F]` and down `[1 + code, UNITS]` that give mark and code from `x` `[N, F]`."""
    gate, up = (torch.randn(UNITS, x.shape[1]) / x.shape[1] ** 0.5 for _ in range(2))
    down = torch.randn(1 + codes.shape[1], UNITS) * 0.02
    weights = [w.requires_grad_() for w in (gate, up, down)]
    optimiser = torch.optim.AdamW(weights, weight_decay=0.02, fused=True)
    steps = _EPOCHS * len(x) // _BATCH
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = _RATE * (1 - step / steps)
        picked = torch.randint(len(x), (_BATCH,))
        seen = x[picked]
        seen = torch.cat((seen[:, :-1] + _NOISE * torch.randn(_BATCH, DIRECTIONS), seen[:, -1:]), 1)
        out = (F.silu(seen @ gate.T) * (seen @ up.T)) @ down.T
        loss = F.cross_entropy(_KIND_GAIN * out[:, 1:] @ codes.T, kinds[picked])
        loss = loss + F.binary_cross_entropy_with_logits(_VOWEL_GAIN * out[:, 0], vowels[picked])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    print(f"kinds and articles from z, loss {float(loss.detach()):.3f}", flush=True)
    return gate.detach(), up.detach(), down.detach()


def write_meanings(model: LladaV, tokenizer: Tokenizer, things: list[Thing], z: Tensor, labels: Tensor) -> None:
    """Writes all that the module's text names.

    Args:
        model: changed in place.
        tokenizer: of the model.
        things: what the classes are.
        z: `[N, DIRECTIONS]` of training drawings.
        labels: `[N]` index into `things`.
    """
    kinds = sorted({kind_of(thing) for thing in things})
    of_thing = torch.tensor([kinds.index(kind_of(thing)) for thing in things])
    vowel = torch.tensor([with_article(thing.name).startswith("an ") for thing in things])
    codes = torch.randn(len(kinds), KIND.stop - KIND.start, generator=torch.Generator().manual_seed(0))
    read, constant = canvas_row(model.geometry.language.hidden_size)
    x = torch.cat((z * read, torch.full((len(z), 1), constant)), 1)
    gate, up, down = _fit(x, of_thing[labels], vowel[labels].float(), codes)
    with torch.no_grad():
        table, head = model.model.embed_tokens.weight, model.lm_head.weight
        ids_of_names = name_ids(tokenizer, things)
        for ids in ids_of_names:
            table[ids, VOWEL], table[ids, KIND] = torch.where(vowel, _VOWEL, -_VOWEL), codes[of_thing]
        named = set(ids_of_names.flatten().tolist())
        for lead in ("", " "):
            for kind, code in zip(kinds, codes, strict=True):
                (token,) = tokenizer.encode(lead + kind).ids
                if token not in named:
                    head[token, KIND] += _KIND_GAIN * code
                    head[token, CONSTANT] -= _KIND_OFFSET / constant
            for article, sign in (("a", -0.5), ("an", 0.5)):
                (token,) = tokenizer.encode(lead + article).ids
                head[token, VOWEL] += _VOWEL_GAIN * sign
        layer = model.model.layers[READING_LAYER]  # type: ignore[index]
        gain = layer.post_attention_layernorm.weight  # type: ignore[union-attr]
        mlp = layer.mlp  # type: ignore[union-attr]
        new = slice(mlp.gate_proj.weight.shape[0] - UNITS, None)  # type: ignore[union-attr]
        for part, weight in ((mlp.gate_proj.weight, gate), (mlp.up_proj.weight, up)):  # type: ignore[union-attr]
            part[new] = 0
            part[new, Z] = weight[:, :DIRECTIONS] / gain[Z]
            part[new, CONSTANT] = weight[:, DIRECTIONS] / gain[CONSTANT]
        mlp.down_proj.weight[:, new] = 0  # type: ignore[union-attr]
        # The last norm divides by what a row measures; what reaches the head should be what was fitted.
        size = final_size(model.geometry.language.hidden_size)
        mlp.down_proj.weight[VOWEL, new] = down[0] * size  # type: ignore[union-attr]
        mlp.down_proj.weight[KIND, new] = down[1:] * size  # type: ignore[union-attr]
        _write_heads(model)


def _write_heads(model: LladaV) -> None:
    """Head 1 of layer 0, which collects names, collects their kind too; head 3 of layer 1 looks one token ahead."""
    g = model.geometry.language
    zero, one = (Attention(layer, g.heads, g.rope_theta) for layer in model.model.layers[:2])  # type: ignore[index]
    for i in range(KIND.stop - KIND.start):
        zero.copy(1, 1 + MATCHED + i, KIND.start + i, KIND.start + i, 2.0)
    rows = slice(3 * g.head_size, 4 * g.head_size)
    one.q[rows] = 0
    one.k[rows] = 0
    mark, scale = 7.0, math.sqrt(g.head_size)
    near = math.sqrt(8 * scale) / mark
    for pair in range(6):
        one.query(3, pair, HIDDEN, near, 1)
        one.key(3, pair, NAME, near)
    still = g.head_size // 2 - 1
    one.query(3, still, HIDDEN, 45 * scale / mark**2 / 12)
    one.key(3, still, FIRST, 12.0)
    one.copy(3, 0, VOWEL, VOWEL, 2.0)
