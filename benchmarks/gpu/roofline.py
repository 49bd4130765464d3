"""The rates of a GPU, measured on it, and the least time that passes can take at these."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.gpu.finding import CannotRunError
from lladav.bundle import Bundle
from lladav.costs import Rates, pass_cost
from lladav.linear_layers import Numbers
from lladav.memory_plan import Sizes
from lladav.products import PassName
from lladav.runtime.gpu.device import Device

COPIED = 1 << 30
ROUNDS = 20
SIDE = 8192

_PASSES: tuple[PassName, ...] = ("refresh", "step")


def rooflines(bundle: Bundle, rates: Rates, prompt: int, canvas: int) -> dict[str, float]:
    """Milliseconds of refresh and step for one prompt and canvas, of all whose rows logits are computed."""
    sizes, numbers = Sizes(1, prompt, canvas, 0), Numbers.of(bundle.manifest)
    return {kind: rates.roofline(pass_cost(bundle.manifest, kind, sizes, numbers)).ms for kind in _PASSES}


def measured_rates(device: Device) -> Rates:
    """Of copies and of fp16 products; products are taken for free where there is nothing to measure them with."""
    bandwidth = measure_bandwidth(device, min(COPIED, device.memory()[0] // 4), ROUNDS)
    try:
        return Rates(bandwidth, measure_products())
    except CannotRunError:
        return Rates(bandwidth, math.inf)


def measure_bandwidth(device: Device, size: int, rounds: int) -> float:
    """Bytes per second, read and written, of copies on the device."""
    source, target = device.allocate(size), device.allocate(size)
    began, ended = device.event(), device.event()
    device.copy(target, source, size)
    began.record()
    for _ in range(rounds):
        device.copy(target, source, size)
    ended.record()
    ended.wait()
    device.free(source)
    device.free(target)
    return 2 * size * rounds / (ended.ms_since(began) / 1e3)


def measure_products(side: int = SIDE, rounds: int = ROUNDS) -> float:
    """Floating-point operations per second of square fp16 products, by PyTorch.

    Raises:
        CannotRunError: PyTorch for CUDA is missing.
    """
    torch = cuda_torch()
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.float16) for _ in range(2))
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    out = a @ b
    began.record()
    for _ in range(rounds):
        torch.matmul(a, b, out=out)
    ended.record()
    torch.cuda.synchronize()
    return float(2 * side**3 * rounds / (began.elapsed_time(ended) / 1e3))


def cuda_torch() -> Any:
    """PyTorch, if it computes on this GPU.

    Raises:
        CannotRunError: it does not.
    """
    try:
        import torch
    except ImportError as error:
        raise CannotRunError("PyTorch is not installed: pip install torch") from error
    if not torch.cuda.is_available():
        raise CannotRunError(f"PyTorch {torch.__version__} finds no GPU: install a build for CUDA")
    return torch
