"""ONNX Runtime sessions on the CPU, and passes bound to preallocated buffers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lladav.bundle import Bundle
from lladav.errors import BackendError
from lladav.runtime.tracing import span

NUMPY_TYPES = {"float32": np.float32, "float16": np.float16, "int64": np.int64, "int8": np.int8}
# Added to the attention score of a padded key. Its exponential is 0 beside any real score, and
# float16 and bfloat16 hold it exactly.
PADDED = -30000.0

# What ONNX Runtime makes of integers when it loads a graph (docs/quantization.md).
_INTEGERS = {
    # Integer weights of inputs that the graph does not round, as in the vision tower and in 4 bits, are multiplied in
    # blocks, in which inputs are rounded to 8 bits. With a scale per 32 of them, as is the default, a product takes
    # a fifth longer.
    "session.qdq_matmulnbits_block_size": "128",
}


def open_session(bundle: Bundle, graph: str, threads: int | None, profile: Path | None = None) -> Any:
    """An ONNX Runtime session of one of the bundle's graphs.

    Args:
        bundle: an open bundle.
        graph: its name in the manifest.
        threads: of one operator; None is one per physical core.
        profile: where ONNX Runtime shall write the time of every node, as the beginning of a file name.

    Raises:
        BackendError: ONNX Runtime is missing, or cannot run the graph.
    """
    if bundle.manifest.precision == "bf16":
        raise BackendError(
            f"{bundle.path} is in bf16, which ONNX Runtime cannot multiply on the CPU; it is meant for engines",
            cure="export the checkpoint with --dtype fp32 or --dtype fp16 to run it here",
        )
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise BackendError(f"onnxruntime cannot be imported: {error}", cure="pip install onnxruntime") from error
    path = bundle.file(bundle.manifest.graphs[graph].file)
    try:
        with span(f"load {graph}"):
            return ort.InferenceSession(
                str(path), session_options(threads, profile), providers=["CPUExecutionProvider"]
            )
    except Exception as error:  # ONNX Runtime raises its own family of types
        raise BackendError(
            f"ONNX Runtime {ort.__version__} cannot load {path.name}: {error}",
            cure="run `lladav inspect BUNDLE --checksums` to see whether the bundle is whole",
        ) from error


def session_options(threads: int | None, profile: Path | None = None) -> Any:
    """How ONNX Runtime loads and runs our graphs on the CPU.

    Args:
        threads: of one operator; None is one per physical core.
        profile: see `open_session`.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    # With a pattern, the values of every shape that a session meets lie in one block as large as
    # all of them; without, the arena hands freed memory on, at the same speed (docs/decisions.md).
    options.enable_mem_pattern = False
    for key, value in _INTEGERS.items():
        options.add_session_config_entry(key, value)
    if threads is not None:
        options.intra_op_num_threads = threads
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return options


class BoundPass:
    """A session whose inputs and outputs are fixed arrays: `run()` copies and allocates nothing.

    Args:
        session: from `open_session`.
        inputs: array for every input of the graph.
        outputs: array for every output that is wanted.

    Attributes:
        arrays: what is bound, by name of input or output.
    """

    def __init__(self, session: Any, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> None:
        self._session = session
        self._binding = session.io_binding()
        self.arrays: dict[str, np.ndarray] = {}
        for name, array in inputs.items():
            self.bind_input(name, array)
        for name, array in outputs.items():
            self.bind_output(name, array)

    def bind_input(self, name: str, array: np.ndarray) -> None:
        """Reads `name` from `array` from now on; the array is kept alive."""
        self.arrays[name] = array
        self._binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def bind_output(self, name: str, array: np.ndarray) -> None:
        """Writes `name` to `array` from now on; the array is kept alive."""
        self.arrays[name] = array
        self._binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def run(self) -> None:
        self._session.run_with_iobinding(self._binding)


def smallest_fitting(buckets: tuple[int, ...], size: int) -> int | None:
    """The smallest bucket that holds `size`, or None."""
    return next((bucket for bucket in buckets if bucket >= size), None)
