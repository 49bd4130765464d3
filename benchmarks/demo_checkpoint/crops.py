"""What the frozen tower sees of many augmented pictures, kept, so that the language model can train on it."""

from __future__ import annotations

import argparse
import dataclasses
import random

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.demo_checkpoint import augment, questions
from benchmarks.demo_checkpoint.drawings import TRAIN_STYLES, Thing
from benchmarks.demo_checkpoint.language import Rows, merged_rows
from benchmarks.demo_checkpoint.sizes import VISION
from benchmarks.demo_checkpoint.start import DIRECTIONS, IMAGE_CHANNELS
from benchmarks.demo_checkpoint.train_tower import STYLE_SHARE, load_bank
from export.reference import LladaV

SIZE = VISION.image_size
GRIDS = ((2, 1), (1, 2), (3, 1), (1, 3), (2, 2))
COLOURS = list(questions.COLOURS)
_STRENGTH, _DAMAGE = 0.7, 0.5


@dataclasses.dataclass(frozen=True)
class Seen:
    """Connector output of N pictures of C crops each.

    Attributes:
        rows: `[N, C, tokens, IMAGE_CHANNELS]` float16.
        labels: `[N, things]` what the picture shows, row by row.
        colours: `[N]` main colour of the first thing, index into `COLOURS`.
    """

    rows: Tensor
    labels: Tensor
    colours: Tensor


class Pictures:
    """Draws random pictures from the training styles."""

    def __init__(self, args: argparse.Namespace, things: list[Thing]) -> None:
        bank = load_bank(args.data, args.cache, TRAIN_STYLES, things, 128)
        self.drawings = torch.cat([d for d, _ in bank.values()])
        self.labels = torch.cat([y for _, y in bank.values()])
        self.share = torch.cat([torch.full((len(y),), STYLE_SHARE.get(s, 1.0)) for s, (_, y) in bank.items()])
        self.waiting = torch.zeros(0, dtype=torch.long)

    def _next(self, count: int) -> Tensor:
        """The next drawings of a random order, begun anew when it ends, so that none is left out for long."""
        while len(self.waiting) < count:
            shown = (torch.rand(len(self.share)) < self.share).nonzero().flatten()
            self.waiting = torch.cat((self.waiting, shown[torch.randperm(len(shown))]))
        picked, self.waiting = self.waiting[:count], self.waiting[count:]
        return picked

    def draw(self, size: int, cells: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
        """`size` pictures of `cells` drawings on one ground.

        Returns:
            Opaque cells `[size, cells, 3, side, side]` in 0..1, the clean drawings with alpha of the
            first cells `[size, 4, side, side]`, premultiplied, and labels `[size, cells]`.
        """
        picked = self._next(size * cells)
        grid = augment.warp_grid(len(picked), side, (0.8, 1.08), _STRENGTH)
        moved = F.grid_sample(self.drawings[picked].float() / 255, grid, mode="bilinear", align_corners=False)
        moved = augment.recolour(moved, _STRENGTH)
        ground = augment.grounds(size).repeat_interleave(cells, 0)
        opaque = augment.degrade(moved[:, :3] + (1 - moved[:, 3:]) * ground, _DAMAGE).clamp(0, 1)
        labels = self.labels[picked].view(size, cells)
        return opaque.view(size, cells, 3, side, side), moved[::cells], labels


def anyres(cells: Tensor, grid: tuple[int, int]) -> Tensor:
    """Base crop and tiles of pictures whose size is the grid's, as the preprocessing cuts them.

    Args:
        cells: `[B, n, 3, s, s]` in 0..1; either one picture of the whole grid (n = 1) or its cells.
        grid: columns and rows.

    Returns:
        `[B, 1 + columns * rows, 3, S, S]` in -1..1.
    """
    columns, rows = grid
    count = cells.shape[1]
    if count == 1 and columns * rows > 1:
        whole = cells[:, 0]
        tiles = whole.unflatten(-1, (columns, SIZE)).unflatten(2, (rows, SIZE)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    else:
        tiles = cells
        whole = cells.unflatten(1, (rows, columns)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    base = F.interpolate(whole, (SIZE, SIZE), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    return torch.cat((base[:, None], tiles), 1) * 2 - 1


@torch.no_grad()
def look(model: LladaV, crops: Tensor) -> Tensor:
    """`[..., 3, S, S]` in -1..1 -> `[..., tokens, IMAGE_CHANNELS]` float16."""
    flat = crops.flatten(0, -4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = model.vision_features(flat)
    rows = model.model.mm_projector(features.float())[..., :IMAGE_CHANNELS].half()
    return rows.unflatten(0, crops.shape[:-3])


def main_colours(drawings: Tensor) -> Tensor:
    """Indices `[N]` of the main colours of premultiplied drawings `[N, 4, H, W]` in 0..1."""
    straight = torch.cat((drawings[:, :3] / drawings[:, 3:].clamp(min=1e-3), drawings[:, 3:]), 1) * 255
    arrays = straight.clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return torch.tensor([COLOURS.index(questions.main_colour(array)) for array in arrays])


class Bank:
    """Everything seen: small single drawings, large ones of four tiles, and base crops of several drawings."""

    def __init__(self, model: LladaV, pictures: Pictures, sizes: tuple[int, int, int]) -> None:
        single, large, composed = sizes
        self.small = self._see(model, pictures, single, (1, 1), SIZE, tiles=False)
        self.large = self._see(model, pictures, large, (2, 2), 2 * SIZE, tiles=True)
        self.composed = {grid: self._see(model, pictures, composed, grid, SIZE, tiles=False) for grid in GRIDS}
        label = self.small.labels[:, 0]
        self.by_label = label.argsort()
        self.count = torch.bincount(label, minlength=int(pictures.labels.max()) + 1)
        self.start = self.count.cumsum(0) - self.count
        if not self.count.all():
            raise ValueError(f"{int((self.count == 0).sum())} things are in none of {single} pictures; take more")

    def _see(self, model: LladaV, pictures: Pictures, size: int, grid: tuple[int, int], side: int, tiles: bool) -> Seen:
        cells = grid[0] * grid[1] if side == SIZE else 1
        parts = []
        while size > 0:
            opaque, first, labels = pictures.draw(min(size, 128), cells, side)
            size -= 128
            crops = anyres(opaque, grid)[:, : (None if tiles else 1)]
            parts.append((look(model, crops), labels, main_colours(first) if cells == 1 else labels[:, 0]))
        return Seen(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def tiles(self, labels: Tensor) -> Tensor:
        """`[B, n]` labels -> rows `[B, n, tokens, IMAGE_CHANNELS]` of any small drawings of them."""
        chosen = self.start[labels] + (torch.rand(labels.shape) * self.count[labels]).long()
        return self.small.rows[self.by_label[chosen], 0]


def embed(model: LladaV, crops: Tensor, grid: tuple[int, int], thin: bool, noise: float) -> tuple[Tensor, Rows]:
    """Merged image rows of pictures.

    Args:
        model: for the newline and the constant channels.
        crops: `[B, 1 + tiles, tokens, IMAGE_CHANNELS]`, base crop first.
        grid: columns and rows of tiles.
        thin: see `merged_rows`.
        noise: spread of a random error of each crop's z, so that unseen drawings surprise less.

    Returns:
        `[B, M, D]`, and which rows these are.
    """
    rows = merged_rows(grid, thin)
    out = model.model.mm_projector[2].bias.detach().expand(len(crops), len(rows.crop), -1).clone()  # type: ignore[index]
    error = noise * torch.randn(*crops.shape[:2], DIRECTIONS)
    if grid == (1, 1):
        error[:, 1] = error[:, 0]
    out[..., :IMAGE_CHANNELS] = crops[:, rows.crop, rows.token].float()
    out[..., :DIRECTIONS] += error[:, rows.crop]
    newline = (rows.crop < 0)[None, :, None]
    return torch.where(newline, model.model.image_newline, out), rows


@dataclasses.dataclass(frozen=True)
class Batch:
    """Pictures of one layout with a question each: crops as in `embed`."""

    crops: Tensor
    grid: tuple[int, int]
    asked: list[questions.Question]


def batch(bank: Bank, things: list[Thing], size: int, rng: random.Random, layouts: random.Random) -> Batch:
    """`size` random pictures of one layout, a third of the time small single ones, a fifth large ones."""
    kind = layouts.random()
    if kind < 0.55:
        seen, grid = (bank.small, (1, 1)) if kind < 0.35 else (bank.large, (2, 2))
        picked = torch.randint(len(seen.labels), (size,))
        crops = seen.rows[picked]
        if grid == (1, 1):
            crops = crops.expand(-1, 2, -1, -1)
        labels, colours = seen.labels[picked, 0].tolist(), seen.colours[picked].tolist()
        asked = [questions.ask_single(things[i], COLOURS[c], things, rng) for i, c in zip(labels, colours, strict=True)]
        return Batch(crops, grid, asked)
    grid = layouts.choice(GRIDS)
    base = bank.composed[grid]
    picked = torch.randint(len(base.labels), (size,))
    labels = base.labels[picked]
    crops = torch.cat((base.rows[picked], bank.tiles(labels)), 1)
    asked = []
    for row in labels.tolist():
        shown = [things[i] for i in row]
        # Two equal things have no unique neighbour; counting works for them too.
        type_ = "count" if len(set(row)) < len(row) else None
        asked.append(questions.ask_composed(shown, *grid, rng, things, type_))
    return Batch(crops, grid, asked)
