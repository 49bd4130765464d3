"""The kernels of the denoising loop: their compiled code, and one function to launch each.

The sources are in `runtime/kernels/`; each function's arguments are those of the kernel that it names.
"""

from __future__ import annotations

from ctypes import c_int32, c_size_t, c_void_p
from pathlib import Path

from lladav.errors import BackendError
from lladav.runtime.gpu.device import Address, Device
from lladav.runtime.gpu.loop_state import LoopMemory

FAT_BINARY = Path(__file__).resolve().parent.parent / "kernels" / "lladav_kernels.fatbin"
BUILD_COMMAND = "make kernels"

_STORED = {"float32": 0, "float16": 1, "bfloat16": 2}
# Of one row of logits; with half as many, a core of the largest GPUs has too few loads under way.
_ROW_THREADS = 1024
_THREADS = 256
_MOST_ROWS = 1024
# Enough blocks for every core, each of which then strides.
_BLOCKS = 2048
# Of embeddings that a step writes at a time; most steps decide fewer.
_ROWS_AT_A_TIME = 16


def load_kernels() -> bytes:
    """The fat binary, for every compute capability that it was built for.

    Raises:
        BackendError: it was not built.
    """
    try:
        return FAT_BINARY.read_bytes()
    except OSError as error:
        raise BackendError(
            f"the GPU kernels were not built: {FAT_BINARY} cannot be read ({error.strerror})",
            cure=f"install the CUDA toolkit, run `{BUILD_COMMAND}` in the source tree and install lladav from there",
        ) from error


def evaluate(
    device: Device, loop: LoopMemory, logits: Address, rows: Address, count: int, vocabulary: int, *, first: int
) -> None:
    """Token, confidence and entropy of rows of logits, written to the canvases by the row's number.

    The meaning is that of `lladav.runtime.sampling.Sampler`, with noise of its own: Philox4x32-10 keyed by the
    seed, with step, position and token as counter. Only rows that may be committed are
    read, unless the rules say `every_row`.

    Args:
        logits: `[sequences, count, vocabulary]` float32; suppressed and forbidden entries are overwritten.
        rows: `[count]` int64, the position that each row of logits is of.
        count: rows of each sequence, at most the loop's capacity.
        first: what `rows` has for the first position of the canvas.
    """
    _launch(
        device,
        "lladav_evaluate",
        (count, loop.sequences, 1),
        _ROW_THREADS,
        c_void_p(loop.rules),
        c_void_p(loop.canvases),
        c_int32(loop.capacity),
        c_void_p(loop.whole),
        c_void_p(logits),
        c_int32(vocabulary),
        c_void_p(rows),
        c_int32(first),
    )


def guide(device: Device, loop: LoopMemory, conditional: Address, unconditional: Address, count: int) -> None:
    """Classifier-free guidance by the rules' scale, written into `conditional`.

    Args:
        conditional: `[count]` float32 logits.
        unconditional: `[count]` float32 logits.
    """
    _launch(
        device,
        "lladav_guide",
        (min(-(-count // _THREADS), _BLOCKS), 1, 1),
        _THREADS,
        c_void_p(loop.rules),
        c_void_p(conditional),
        c_void_p(unconditional),
        c_size_t(count),
    )


def commit(device: Device, loop: LoopMemory) -> None:
    """One step of every canvas that is not done, once its rows are evaluated; writes a record of it to the log.

    Picks have to lie in the order of the canvas: row r of `evaluate` was of position r. Templates and masks inside
    the prompt are left to the host's loop.

    Raises:
        BackendError: the canvas has more rows than a block has threads.
    """
    if loop.capacity > _MOST_ROWS:
        raise BackendError(
            f"a canvas of {loop.capacity:,} positions is more than the GPU's loop takes: {_MOST_ROWS:,}",
            cure=f"export with --canvas-buckets of at most {_MOST_ROWS}, or use --backend cpu",
        )
    _launch(
        device,
        "lladav_commit",
        (loop.sequences, 1, 1),
        -(-loop.capacity // 32) * 32,
        c_void_p(loop.rules),
        c_void_p(loop.canvases),
        c_int32(loop.capacity),
        c_void_p(loop.whole),
        c_void_p(loop.log),
        c_int32(loop.slots),
    )


def write_rows(
    device: Device,
    loop: LoopMemory,
    table: Address,
    dtype: str,
    width: int,
    target: Address,
    stride: int,
    *,
    guided: bool = False,
) -> None:
    """Embeddings of what the last step decided, as float32 into the input rows of the canvases.

    Args:
        table: `[vocabulary, width]` of `dtype`.
        dtype: float32, float16 or bfloat16.
        width: D.
        target: row of the first canvas position of the first sequence.
        stride: floats from a sequence's canvas to that of the next.
        guided: every canvas has a second sequence, behind all the first ones.
    """
    _launch(
        device,
        "lladav_write_rows",
        (min(_ROWS_AT_A_TIME, loop.capacity), loop.sequences, 2 if guided else 1),
        _THREADS,
        c_void_p(loop.canvases),
        c_int32(loop.capacity),
        c_void_p(table),
        c_int32(_STORED[dtype]),
        c_int32(width),
        c_void_p(target),
        c_size_t(stride),
    )


def continue_while(device: Device, loop: LoopMemory, handle: int, interval: int) -> None:
    """Lets the body of a conditional WHILE node run again, as long as an unfinished canvas has steps to make.

    It ends where the next step is a refresh, and where the log begins anew.

    Args:
        handle: `CUgraphConditionalHandle` of the node. Needs kernels built with CUDA 12.4 or newer.
        interval: steps from refresh to refresh; 0 is one refresh only.
    """
    _launch(
        device,
        "lladav_continue",
        (1, 1, 1),
        1,
        c_void_p(loop.canvases),
        c_int32(loop.capacity),
        c_int32(loop.sequences),
        c_int32(interval),
        c_int32(loop.slots),
        c_size_t(handle),
    )


def _launch(
    device: Device, kernel: str, grid: tuple[int, int, int], threads: int, *arguments: c_void_p | c_int32 | c_size_t
) -> None:
    device.launch(kernel, grid, (threads, 1, 1), arguments)
