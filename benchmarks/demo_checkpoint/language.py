"""The language model's input and output: prompt and canvas in, logits of the canvas out."""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from benchmarks.demo_checkpoint.questions import Question
from benchmarks.demo_checkpoint.sizes import VISION
from benchmarks.demo_checkpoint.tokenizer import EOT, MASK, prompt_ids
from export.reference import LladaV, rotary_tables, rotate

# How much of a picture and of the text before it a thinned-out prompt keeps.
KEPT_BASE, KEPT_LINES, KEPT_TEXT = 24, 2, 10
# Attention bias of a row that is kept for its neighbours' sake alone.
_ASIDE = -1.0


@dataclasses.dataclass(frozen=True)
class Rows:
    """Which image rows of the merged picture a prompt holds, M of them.

    Attributes:
        crop: `[M]` crop of each row, base crop 0, or -1 for a newline.
        token: `[M]` row within the crop.
        position: `[M]` place in the merged picture.
        weight: `[M]` logarithm of how many rows it stands for; an attention bias.
        total: rows of the whole picture.
    """

    crop: Tensor
    token: Tensor
    position: Tensor
    weight: Tensor
    total: int


def merged_rows(grid: tuple[int, int], thin: bool) -> Rows:
    """The anyres merge of a picture whose size is the grid's, so that nothing is padded or shrunk.

    Training a small model on all rows wastes most of its time: the rows of a crop say much the same.
    A thinned-out picture keeps random rows of the base crop and random whole lines of the tiles,
    each with a bias that gives it the attention of the rows it stands for, and what precedes a line.

    Args:
        grid: columns and rows of tiles.
        thin: keep some rows only.
    """
    columns, rows = grid
    side, base, width = VISION.side, VISION.tokens, columns * VISION.side + 1
    line, x = torch.meshgrid(torch.arange(rows * side), torch.arange(width), indexing="ij")
    crop = 1 + line // side * columns + x // side
    crop[:, -1] = -1
    token = line % side * side + x % side
    token[:, -1] = 0
    crop = torch.cat((torch.zeros(base, dtype=torch.long), crop.flatten()))
    token = torch.cat((torch.arange(base), token.flatten()))
    total = len(crop)
    weight = torch.zeros(total)
    if thin:
        weight[:] = -math.inf
        weight[torch.randperm(base)[:KEPT_BASE]] = math.log(base / KEPT_BASE)
        kept = torch.cat([r * side + torch.randperm(side)[:KEPT_LINES] for r in range(rows)])
        weight[base:].view(rows * side, width)[kept] = math.log(side / KEPT_LINES)
        ahead = base + kept * width - 1
        weight[ahead] = weight[ahead].clamp(min=_ASIDE)
    position = weight.isfinite().nonzero().flatten()
    return Rows(crop[position], token[position], position, weight[position], total)


def answer_logits(model: LladaV, embeds: Tensor, positions: Tensor, bias: Tensor | None, canvas: int) -> Tensor:
    """Logits of the last `canvas` rows, `[B, canvas, V]`.

    Equal to `model(...)[:, -canvas:]`, but the last layer computes its other rows only as far as
    attention needs them.
    """
    g = model.geometry.language
    cos, sin = rotary_tables(positions, g.head_size, g.rope_theta)
    x = embeds
    for layer in model.model.layers[:-1]:  # type: ignore[index]
        x = layer(x, cos, sin, bias)
    last = model.model.layers[-1]  # type: ignore[index]
    normed, attention, rows = last.input_layernorm(x), last.self_attn, slice(-canvas, None)

    def heads(projection: nn.Module, y: Tensor) -> Tensor:
        out: Tensor = projection(y).unflatten(-1, (-1, g.head_size)).transpose(1, 2)
        return out

    query = rotate(heads(attention.q_proj, normed[:, rows]), cos[:, :, rows], sin[:, :, rows])
    key = rotate(heads(attention.k_proj, normed), cos, sin)
    mixed = F.scaled_dot_product_attention(query, key, heads(attention.v_proj, normed), attn_mask=bias)
    x = x[:, rows] + attention.o_proj(mixed.transpose(1, 2).flatten(2))
    x = x + last.mlp(last.post_attention_layernorm(x))
    logits: Tensor = model.lm_head(model.model.norm(x))
    return logits


class Answerer:
    """Builds the language model's input from pictures and questions."""

    def __init__(self, model: LladaV, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.eot, self.mask = tokenizer.token_to_id(EOT), tokenizer.token_to_id(MASK)

    def target(self, asked: list[Question], canvas: int) -> Tensor:
        """Answers as ids `[B, canvas]`, filled with the end of turn."""
        out = torch.full((len(asked), canvas), self.eot)
        for row, question in zip(out, asked, strict=True):
            ids = self.tokenizer.encode(question.answer).ids
            row[: len(ids)] = torch.tensor(ids)
        return out

    def prompt(
        self, image: Tensor, asked: list[Question], canvas: int, rows: Rows | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What stands before the canvas.

        Questions of a batch differ in length. The padding goes between question and canvas,
        which changes nothing: attention has no direction, every token keeps its own position,
        and padding is masked.

        Args:
            image: `[B, M, D]` merged image rows.
            asked: B questions.
            canvas: number of answer positions G.
            rows: which rows `image` has; all when absent. If some are missing, so are some of the
                text before the picture.

        Returns:
            Rows `[B, P, D]`, positions `[B, P + G]`, and attention bias `[B, 1, 1, P + G]`.
        """
        encoded = [prompt_ids(self.tokenizer, q.text) for q in asked]
        before, after = torch.tensor(encoded[0][0]), [ids for _, ids in encoded]
        size, longest = len(asked), max(map(len, after))
        total = rows.total if rows else image.shape[1]
        place, weight = torch.arange(len(before)), torch.zeros(len(before))
        if rows and len(rows.position) < total:
            chosen = 1 + torch.randperm(len(before) - 1)[:KEPT_TEXT].sort().values
            place = torch.cat((torch.zeros(1, dtype=torch.long), chosen))
            weight = torch.full((len(place),), math.log((len(before) - 1) / KEPT_TEXT))
            weight[0] = 0
        padded = torch.tensor([ids + [self.eot] * (longest - len(ids)) for ids in after])
        lengths = torch.tensor([len(ids) for ids in after])[:, None]
        table = self.model.model.embed_tokens
        first = len(before) + total
        seen = rows.position if rows else torch.arange(total)
        head = torch.cat((place, len(before) + seen))
        positions = torch.cat(
            (
                head.expand(size, -1),
                first + torch.arange(longest).expand(size, -1),
                first + lengths + torch.arange(canvas),
            ),
            1,
        )
        bias = torch.zeros(size, positions.shape[1])
        bias[:, : len(head)] = torch.cat((weight, rows.weight if rows else torch.zeros(total)))
        bias[:, len(head) : len(head) + longest].masked_fill_(torch.arange(longest) >= lengths, -1e4)
        text = table(before[place]).expand(size, -1, -1)
        return torch.cat((text, image, table(padded)), 1), positions, bias[:, None, None]
