"""Between the stages: what the tower knows is written into the connector and the language model.

From random weights a small language model forgets most of what its tower sees: it would have to
learn, from five thousand drawings, which of 861 names a feature means. The tower's classifier
knows that already, and a transformer can hold it exactly, so it is written in:

* The connector gives every image row z, the 128 directions of the tower's feature that the
  classifier uses, and the colour of its patch. A GELU far from 0 is linear, gelu(x + c) = x + c.
* Layer 0 finds out where an image row is in the picture: is it base crop, how far down is its
  tile (both from the distance to the first token), is its tile the leftmost or the rightmost (is
  there a newline among the eight tokens before or after). Canvas rows collect the name that a
  question contains, and the first of them notices that it is the first.
* In layer 1 canvas rows look for the image rows that show the collected name.
* In layer 2 two heads of a canvas row read z, at first from the base crop.
* The head's rows of names are the classifier.

`train_answers` then learns the rest: which question asks for what, what a name is like, and from
which tile to read.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from benchmarks.demo_checkpoint.drawings import Thing
from benchmarks.demo_checkpoint.sizes import VISION, geometry
from benchmarks.demo_checkpoint.template import EMBEDDING
from benchmarks.demo_checkpoint.tokenizer import BOS, MASK, prompt_ids
from export.reference import LanguageLayer, LladaV

SIDE = VISION.side
# Channels of the language model. z of an image row, or what a canvas row has read.
DIRECTIONS = 128
Z = slice(0, DIRECTIONS)
COLOUR = DIRECTIONS  # red, green, blue and coverage of a patch
IMAGE_CHANNELS = COLOUR + 4
"""Channels that differ between image rows."""
CONSTANT, IMAGE, NEWLINE, FIRST, NAME, HIDDEN, HEADER, SPACED = range(IMAGE_CHANNELS, IMAGE_CHANNELS + 8)
LEFT, RIGHT, BASE, HEIGHT, OPENING = range(SPACED + 1, SPACED + 6)
READING_LAYER = 2
MATCHED = 32
ASKED = slice(OPENING + 1, OPENING + 1 + MATCHED)  # the name in the question: its first directions of z
FOUND = ASKED.stop  # where it was found: LEFT, RIGHT, BASE, HEIGHT, IMAGE
FREE = FOUND + 5
# Of a name: does it start with a vowel, and what kind of thing is it?
VOWEL = FREE
KIND = slice(VOWEL + 1, VOWEL + 25)

# Of the constant channel, which keeps RMSNorm from mixing the others up; of marks of single tokens.
_CONSTANT, _MARK, _IMAGE, _CODE = 16.0, 8.0, 4.0, 2.0
# Root mean square of image rows and of text rows, roughly.
_IMAGE_RMS, _TEXT_RMS = 1.3, 1.1
# The connector's units: slope, and the constant that keeps them where a GELU is linear.
_SLOPE, _OFFSET = 0.4, 4.0
_ASKED_NORM = 6.0
# Spread of z in canvas rows once it has been read.
_READ = 2.5


class Attention:
    """Writes heads of one layer, as sums of looks: query from one channel, key from another."""

    def __init__(self, layer: LanguageLayer, layer_heads: int, theta: float) -> None:
        attention = layer.self_attn
        self.size = attention.q_proj.weight.shape[0] // layer_heads
        self.half = self.size // 2
        self.q, self.k, self.v, self.o = (
            part.weight for part in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        )
        self.theta = theta

    def start(self, noise: float) -> None:
        """Random weights."""
        for weight in (self.q, self.k, self.v, self.o):
            nn.init.normal_(weight, std=noise)

    def clear(self, head: int) -> None:
        """Makes the random start of a head's attention small."""
        rows = slice(head * self.size, (head + 1) * self.size)
        self.q[rows] *= 0.25
        self.k[rows] *= 0.25

    def query(self, head: int, pair: int, channel: int, strength: float, distance: float = 0.0) -> None:
        """Rotary pair `pair` of the query: keys `distance` tokens further on score highest."""
        angle = self.theta ** (-pair / self.half) * distance
        self.turned_query(head, pair, channel, strength, angle)

    def turned_query(self, head: int, pair: int, channel: int, strength: float, angle: float) -> None:
        """As `query`, with the angle of the pair in radians."""
        self.q[head * self.size + pair, channel] += strength * math.cos(angle)
        self.q[head * self.size + self.half + pair, channel] += strength * math.sin(angle)

    def key(self, head: int, pair: int, channel: int, strength: float) -> None:
        self.k[head * self.size + pair, channel] += strength

    def copy(self, head: int, unit: int, source: int, target: int, strength: float) -> None:
        """Unit `unit` of the head carries a channel of the rows attended to into another channel."""
        self.v[head * self.size + unit] = 0
        self.v[head * self.size + unit, source] = 1
        self.o[:, head * self.size + unit] = 0
        self.o[target, head * self.size + unit] = strength


@torch.no_grad()
def directions(means: Tensor, norm: nn.LayerNorm, name: nn.Linear) -> tuple[Tensor, Tensor, Tensor]:
    """The directions of the tower's mean feature that its classifier uses, best first.

    Args:
        means: `[N, EMBEDDING]` mean features of training drawings.
        norm: the classifier's LayerNorm; its division becomes the mean one.
        name: the classifier.

    Returns:
        `[DIRECTIONS, EMBEDDING]`, which give z unit variance, the mean feature, and the
        classifier of z, `[C, DIRECTIONS + 1]` with the bias last.
    """
    centre = means.mean(0)
    flat = torch.eye(EMBEDDING) - 1 / EMBEDDING
    deviation = (means @ flat).std(1, unbiased=False).mean()
    weight = name.weight * norm.weight @ flat / deviation
    bias = name.bias + name.weight @ norm.bias + weight @ centre
    covariance = torch.cov((means @ flat).T) + 1e-6 * (means @ flat).var(0).mean() * torch.eye(EMBEDDING)
    lower = torch.linalg.cholesky(covariance.double())
    left, size, right = torch.linalg.svd(weight.double() @ lower, full_matrices=False)
    into = torch.linalg.solve_triangular(lower.T, right[:DIRECTIONS].T, upper=True).T.float() @ flat
    read = (left * size)[:, :DIRECTIONS].float()
    return into, centre, torch.cat((read, bias[:, None]), 1)


@torch.no_grad()
def probes(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Ridge regression `[K, D]` and bias `[K]` from token features `[N, D]` to `[N, K]`."""
    mean, deviation = features.mean(0), features.std(0) + 1e-4
    x = ((features - mean) / deviation).double()
    gram = x.T @ x / len(x) + 1e-3 * torch.eye(x.shape[1], dtype=torch.double)
    weight = torch.linalg.solve(gram, x.T @ (targets - targets.mean(0)).double() / len(x)).T.float() / deviation
    return weight, targets.mean(0) - weight @ mean


@torch.no_grad()
def write_connector(model: LladaV, into: Tensor, centre: Tensor, probe: Tensor, offset: Tensor) -> None:
    """The image rows.

    Args:
        model: changed in place.
        into: `[DIRECTIONS, EMBEDDING]` of `directions`.
        centre: `[EMBEDDING]`.
        probe: `[4, D_vision]` of `probes`, for the colour.
        offset: `[4]`.
    """
    first, last = model.model.mm_projector[0], model.model.mm_projector[2]  # type: ignore[index]
    for part in (first, last):
        part.weight.zero_()
        part.bias.zero_()
    first.weight[Z, -EMBEDDING:] = _SLOPE * into
    first.weight[COLOUR:IMAGE_CHANNELS] = _SLOPE * probe
    # Of the rounded weight, since the tower's constant channels are large.
    first.weight.copy_(first.weight.half().float())
    first.bias[Z] = _OFFSET - first.weight[Z, -EMBEDDING:] @ centre
    first.bias[COLOUR:IMAGE_CHANNELS] = _OFFSET + _SLOPE * offset
    index = torch.arange(IMAGE_CHANNELS)
    scale = torch.ones(IMAGE_CHANNELS)
    scale[COLOUR:] = _CODE
    last.weight[index, index] = scale / _SLOPE
    last.bias[index] = -_OFFSET * scale / _SLOPE
    last.bias[CONSTANT], last.bias[IMAGE] = _CONSTANT, _IMAGE
    newline = model.model.image_newline
    newline.zero_()
    newline[CONSTANT], newline[NEWLINE] = _CONSTANT, _MARK


def name_ids(tokenizer: Tokenizer, things: list[Thing]) -> Tensor:
    """Token ids `[2, C]` of every name, plain and behind a space."""
    return torch.tensor([[tokenizer.encode(lead + t.name).ids[0] for t in things] for lead in ("", " ")])


def final_size(width: int) -> float:
    """Root mean square of a canvas row that has read z, which the last norm divides by."""
    return math.sqrt((_CONSTANT**2 + DIRECTIONS * _READ**2 + 100) / width)


def canvas_row(width: int) -> tuple[float, float]:
    """What such a row has of z, and of the constant, behind a norm."""
    return _READ / final_size(width), _CONSTANT / final_size(width)


@torch.no_grad()
def write_language(model: LladaV, tokenizer: Tokenizer, things: list[Thing], read: Tensor) -> None:
    """Embeddings, attention and head; see the module's text."""
    g, body = model.geometry.language, model.model
    table, head = body.embed_tokens.weight, model.lm_head.weight
    table.zero_()
    nn.init.normal_(table[:, FREE:])
    table[:, CONSTANT] = _CONSTANT
    before, after = prompt_ids(tokenizer, "What is this?")
    for text, channel in ((BOS, FIRST), (MASK, HIDDEN)):
        table[tokenizer.token_to_id(text), channel] = _MARK
    table[after[-1], HEADER] = _MARK
    weight, bias, final = read[:, :DIRECTIONS], read[:, DIRECTIONS], final_size(g.hidden_size)
    nn.init.normal_(head, std=0.02)
    head[:, Z] = 0
    for spaced, ids in enumerate(name_ids(tokenizer, things)):
        table[ids, FREE:] = 0
        table[ids, NAME], table[ids, SPACED] = _MARK, _MARK * spaced
        table[ids, ASKED] = _ASKED_NORM * F.normalize(weight[:, :MATCHED], dim=1)
        head[ids] = 0
        head[ids, Z] = weight / _READ * final
        head[ids, CONSTANT] = (bias - bias.mean()) * final / _CONSTANT

    layers = [Attention(layer, g.heads, g.rope_theta) for layer in body.layers]  # type: ignore[arg-type]
    for attention in layers:
        attention.start(0.05)
    for layer in body.layers:
        layer.self_attn.o_proj.weight[Z] = 0  # type: ignore[union-attr,operator]
        layer.mlp.down_proj.weight *= 0.5  # type: ignore[union-attr,operator]
        layer.mlp.down_proj.weight[Z] = 0  # type: ignore[union-attr,operator]
    still = g.head_size // 2 - 1  # the rotary pair that hardly turns
    zero, one, reading = layers[0], layers[1], layers[READING_LAYER]
    for number in range(4):
        zero.clear(number)
    scale = math.sqrt(g.head_size)
    mark, image = _MARK / _TEXT_RMS, _IMAGE / _IMAGE_RMS
    # Heads 0 and 1: is there a newline within the width of a crop? If not, the first token takes the attention.
    bump = math.sqrt(7 * scale / (mark * image))
    for head_number, middle, target in ((0, (1 + SIDE) / 2, RIGHT), (1, -(1 + SIDE) / 2, LEFT)):
        for pair in range(1, 10):
            zero.query(head_number, pair, IMAGE, bump, middle)
            zero.key(head_number, pair, NEWLINE, bump)
        zero.query(head_number, still, IMAGE, 35 * scale / (mark * image) / 12)
        zero.key(head_number, still, FIRST, 12.0)
        zero.copy(head_number, 0, NEWLINE, target, 4 / mark)
    # Canvas rows in head 0: is the end of the prompt right before it? If not, the first token takes the attention.
    near = math.sqrt(8 * scale) / mark
    for pair in range(6):
        zero.query(0, pair, HIDDEN, near, -1)
        zero.key(0, pair, HEADER, near)
    zero.query(0, still, HIDDEN, 45 * scale / mark**2 / 12)
    zero.copy(0, 1, HEADER, OPENING, 1.0)
    # Canvas rows in head 1: the name in the question, or nothing from the first token.
    zero.query(1, still - 1, HIDDEN, scale / mark**2)
    zero.key(1, still - 1, NAME, 20.0)
    zero.key(1, still - 1, FIRST, 12.0)
    for i in range(MATCHED):
        zero.copy(1, 1 + i, ASKED.start + i, ASKED.start + i, 1.0)
    # Heads 2 and 3: the distance to the first token, as a step at the end of the base crop and as a slope.
    begin = len(before) + VISION.tokens
    pair = 12
    turn = g.rope_theta ** (-pair / (g.head_size // 2))
    for head_number, strength, angle, middle, target in (
        (2, 56.0, 1.47, begin - 0.5, BASE),
        (3, 8.0, 0.8, begin + 96, HEIGHT),
    ):
        factor = math.sqrt(strength * scale / (image * mark))
        zero.turned_query(head_number, pair, IMAGE, factor, angle - turn * middle)
        zero.key(head_number, pair, FIRST, factor)
        zero.copy(head_number, 0, FIRST, target, 4 / mark)
    # Layer 1, head 0: which rows show the name? Only the slow rotary pairs keep a product of contents.
    one.clear(0)
    slow = g.head_size // 2 - MATCHED // 2
    for i in range(MATCHED):
        unit = slow + i % (MATCHED // 2) + (i >= MATCHED // 2) * g.head_size // 2
        one.q[unit, ASKED.start + i] += 2.2
        one.k[unit, Z.start + i] += 2.2
    for unit, channel in enumerate((LEFT, RIGHT, BASE, HEIGHT, IMAGE)):
        one.copy(0, unit, channel, FOUND + unit, 1.5)
    # Layer 2, heads 0 and 1: z of the base crop.
    for head_number in (0, 1):
        reading.clear(head_number)
        reading.query(head_number, still, HIDDEN, math.sqrt(3 * scale / mark))
        reading.key(head_number, still, BASE, math.sqrt(3 * scale / mark) / 3)
        for i in range(g.head_size):
            channel = head_number * g.head_size + i
            reading.copy(head_number, i, channel, channel, 1.25 * _READ * _IMAGE_RMS)


def new_model(tokenizer: Tokenizer) -> LladaV:
    """The model with random weights."""
    return LladaV(geometry(tokenizer.get_vocab_size()))
