"""Batched augmentation: drawings with alpha in, opaque training crops out, all in torch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_LUMA = torch.tensor([0.299, 0.587, 0.114])


def premultiply(pixels: Tensor, size: int) -> Tensor:
    """`[N, H, W, 4]` uint8 straight alpha -> `[N, 4, size, size]` uint8 premultiplied, antialiased."""
    out = []
    for part in pixels.split(256):
        x = part.permute(0, 3, 1, 2).float() / 255
        x[:, :3] *= x[:, 3:]
        if x.shape[-1] != size:
            x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        out.append((x * 255).round().clamp(0, 255).byte())
    return torch.cat(out)


def _uniform(n: int, low: float, high: float) -> Tensor:
    return torch.rand(n) * (high - low) + low


def _chance(n: int, p: float) -> Tensor:
    return torch.rand(n) < p


def _hue_matrices(angle: Tensor, saturation: Tensor) -> Tensor:
    """`[B, 3, 3]` rotation about the grey axis by `angle`, and scaling of the distance to it."""
    axis = torch.full((3,), 1 / math.sqrt(3))
    cross = torch.tensor(
        [[0.0, -axis[2], axis[1]], [axis[2], 0.0, -axis[0]], [-axis[1], axis[0], 0.0]], dtype=torch.float32
    )
    outer = torch.outer(axis, axis)
    c, s = angle.cos()[:, None, None], angle.sin()[:, None, None]
    rotation = c * torch.eye(3) + s * cross + (1 - c) * outer
    grey = _LUMA.expand(3, 3)
    k = saturation[:, None, None]
    return (k * torch.eye(3) + (1 - k) * grey) @ rotation


def warp_grid(n: int, size: int, scale: tuple[float, float], strength: float) -> Tensor:
    """Random sampling grids: similarity, shear, aspect, mirror image and a smooth wobble.

    Args:
        n: number of grids.
        size: side of the output crop.
        scale: range of the drawing's side relative to the crop's.
        strength: 0 keeps the drawing upright and centred, 1 is the full augmentation.

    Returns:
        `[n, size, size, 2]` for `grid_sample`.
    """
    angle = torch.randn(n).clamp(-2.5, 2.5) * math.radians(12) * strength
    zoom = _uniform(n, *scale)
    aspect = (torch.randn(n).clamp(-2, 2) * 0.10 * strength).exp()
    shear = torch.randn(n).clamp(-2, 2) * 0.10 * strength
    mirror = torch.where(_chance(n, 0.4), -1.0, 1.0)
    c, s = angle.cos(), angle.sin()
    linear = torch.stack((torch.stack((c, -s + shear), -1), torch.stack((s, c), -1)), 1)
    linear = linear * torch.stack((aspect, 1 / aspect), -1)[:, None] / zoom[:, None, None]
    linear[:, 0] *= mirror[:, None]
    # A drawing smaller than the crop may lie anywhere in it; a larger one may lose its rim.
    slack = ((1 - zoom).abs() + 0.06 * strength) / zoom
    shift = (torch.rand(n, 2) * 2 - 1) * slack[:, None]
    grid = F.affine_grid(torch.cat((linear, shift[..., None]), -1), [n, 1, size, size], align_corners=False)
    wobble = torch.randn(n, 2, 4, 4) * 0.045 * strength
    wobble = F.interpolate(wobble, size=(size, size), mode="bicubic", align_corners=True)
    return grid + wobble.permute(0, 2, 3, 1)


def grounds(n: int, p_white: float = 0.5) -> Tensor:
    """`[n, 3, 1, 1]` ground colours: white, a light tint, or any colour."""
    tint = 1 - torch.rand(n, 3) * 0.35
    anything = torch.rand(n, 3)
    pick = torch.rand(n, 1)
    colour = torch.where(pick < p_white, torch.ones(n, 3), torch.where(pick < (1 + p_white) / 2, tint, anything))
    return colour[:, :, None, None]


def recolour(drawing: Tensor, strength: float) -> Tensor:
    """Colour changes of premultiplied `[B, 4, S, S]` drawings (all linear, so alpha stays exact)."""
    n = drawing.shape[0]
    rgb, alpha = drawing[:, :3], drawing[:, 3:]
    angle = torch.randn(n) * 0.12 * strength
    angle = torch.where(_chance(n, 0.10 * strength), _uniform(n, -math.pi, math.pi), angle)
    saturation = _uniform(n, 1 - 0.4 * strength, 1 + 0.3 * strength)
    saturation = torch.where(_chance(n, 0.12 * strength), torch.zeros(n), saturation)
    rgb = (_hue_matrices(angle, saturation) @ rgb.flatten(2)).view_as(rgb)
    contrast = _uniform(n, 1 - 0.35 * strength, 1 + 0.35 * strength)[:, None, None, None]
    bright = _uniform(n, -0.2 * strength, 0.2 * strength)[:, None, None, None] + 0.5 * (1 - contrast)
    rgb = rgb * contrast + bright * alpha
    return torch.cat((rgb.clamp(min=0).minimum(alpha), alpha), 1)


def outline(image: Tensor) -> Tensor:
    """`[B, 3, S, S]` -> dark lines along the edges of a pale version: a cheap line-art style."""
    luma = torch.einsum("bchw,c->bhw", image, _LUMA)
    dx = F.pad(luma[:, :, 1:] - luma[:, :, :-1], (0, 1))
    dy = F.pad(luma[:, 1:] - luma[:, :-1], (0, 0, 0, 1))
    edge = F.max_pool2d((dx.abs() + dy.abs())[:, None], 3, 1, 1)
    pale = 1 - (1 - image) * torch.rand(image.shape[0], 1, 1, 1)
    return pale * (1 - (edge * 4).clamp(0, 1))


def degrade(image: Tensor, strength: float) -> Tensor:
    """Style-like damage of opaque `[B, 3, S, S]` crops: line art, posterisation, blur, erased boxes, noise."""
    n, _, size, _ = image.shape
    lined = _chance(n, 0.10 * strength)
    if lined.any():
        image[lined] = outline(image[lined])
    flat = _chance(n, 0.12 * strength)
    if flat.any():
        levels = torch.randint(3, 7, (int(flat.sum()), 1, 1, 1)).float()
        image[flat] = (image[flat] * levels).round() / levels
    soft = _chance(n, 0.15 * strength)
    if soft.any():
        image[soft] = F.avg_pool2d(image[soft], 3, 1, 1, count_include_pad=False)
    rows = torch.arange(size)
    for i in _chance(n, 0.3 * strength).nonzero().flatten().tolist():
        h, w = torch.randint(size // 8, size // 2, (2,)).tolist()
        y, x = torch.randint(-h // 2, size - h // 2, (2,)).tolist()
        box = ((rows >= y) & (rows < y + h))[:, None] & ((rows >= x) & (rows < x + w))[None]
        image[i, :, box] = torch.rand(3, 1)
    grainy = n // 4
    image[:grainy] += torch.randn(grainy, 3, size, size) * (0.04 * strength * torch.rand(grainy, 1, 1, 1))
    return image


def crops(drawings: Tensor, size: int, scale: tuple[float, float], strength: float) -> tuple[Tensor, Tensor]:
    """Training crops of premultiplied drawings.

    Args:
        drawings: `[B, 4, H, H]` uint8 premultiplied.
        size: side of the crop.
        scale: range of the drawing's side relative to the crop's.
        strength: amount of augmentation, 0 to 1.

    Returns:
        The damaged and the clean crop, each `[B, 3, size, size]` in 0..1.
    """
    n = drawings.shape[0]
    grid = warp_grid(n, size, scale, strength)
    moved = F.grid_sample(drawings.float() / 255, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    moved = recolour(moved, strength)
    clean = moved[:, :3] + (1 - moved[:, 3:]) * grounds(n)
    return degrade(clean.clone(), strength), clean


def edges_and_colour(image: Tensor, patch: int) -> Tensor:
    """What every patch looks like, in few numbers: targets of the auxiliary loss (as in MaskFeat).

    Args:
        image: `[B, 3, S, S]` in 0..1.
        patch: side of a patch.

    Returns:
        `[B, (S/patch)^2, 7]`: strength of edges in four directions, normalised, and mean colour.
    """
    luma = torch.einsum("bchw,c->bhw", image, _LUMA)
    dx = (luma[:, 1:, 1:] - luma[:, 1:, :-1]).abs_()
    dy = (luma[:, 1:, 1:] - luma[:, :-1, 1:]).abs_()
    falling = (luma[:, 1:, 1:] - luma[:, :-1, :-1]).abs_()
    rising = (luma[:, 1:, :-1] - luma[:, :-1, 1:]).abs_()
    pooled = F.avg_pool2d(F.pad(torch.stack((dx, dy, falling, rising), 1), (1, 0, 1, 0)), patch)
    pooled = pooled / (pooled.norm(dim=1, keepdim=True) + 0.02)
    colour = F.avg_pool2d(image, patch) * 2 - 1
    return torch.cat((pooled, colour), 1).flatten(2).transpose(1, 2)
