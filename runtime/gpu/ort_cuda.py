"""Graphs on ONNX Runtime's CUDA provider, in device memory and on a stream of ours.

ONNX Runtime captures a pass by itself when it is first run, and replays it from then on; its
own allocations make capturing it from outside impossible.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lladav.bundle import Bundle
from lladav.errors import BackendError
from lladav.runtime.gpu.device import Address, Device
from lladav.runtime.gpu.executable import Tensor
from lladav.runtime.sessions import NUMPY_TYPES

_PROVIDER = "CUDAExecutionProvider"
_MEMORY = "cuda"
# numpy has no bfloat16; this is its number in ONNX.
_ELEMENTS: dict[str, Any] = {**NUMPY_TYPES, "bfloat16": 16}
_INSTALL = (
    "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'onnxruntime-gpu[cuda,cudnn]'; "
    "`lladav doctor` shows what loads"
)


class CudaSession:
    """One graph; an `Executable`.

    Args:
        bundle: an open bundle.
        graph: its name in the manifest.
        device: whose stream passes are enqueued on.
        captures: whether ONNX Runtime shall replay passes as graphs, if it can.

    Attributes:
        weights: bytes on the device.
        scratch: 0: ONNX Runtime allocates activations by itself.
        not_captured: why ONNX Runtime does not replay passes as graphs; empty where it does.

    Raises:
        BackendError: onnxruntime-gpu is missing or does not load, or cannot run the graph.
    """

    scratch = 0

    def __init__(self, bundle: Bundle, graph: str, device: Device, *, captures: bool = True) -> None:
        self._ort = _import_onnxruntime()
        self._graph = graph
        self._ordinal = device.ordinal
        spec = bundle.manifest.graphs[graph]
        self._inputs, self._outputs = spec.inputs, spec.outputs
        self._bound = 0
        self.weights = bundle.file(spec.weights).stat().st_size
        self.not_captured = ""
        path = str(bundle.file(spec.file))
        try:
            self._session = self._open(path, device, captures=captures)
        except Exception as error:  # ONNX Runtime raises its own family of types
            self.not_captured = str(error)
            try:
                self._session = self._open(path, device, captures=False)
            except Exception as other:
                raise BackendError(
                    f"ONNX Runtime {self._ort.__version__} cannot load {spec.file} on the GPU: {other}",
                    cure="run `lladav doctor` and `lladav inspect BUNDLE --checksums`; if both are in order, report it",
                ) from other
        if (found := self._session.get_providers()[0]) != _PROVIDER:
            raise BackendError(
                f"ONNX Runtime {self._ort.__version__} does not load its {_PROVIDER} and fell back to {found}",
                cure=_INSTALL,
            )

    def bind(self, tensors: Mapping[str, Tensor], *, profile: str, scratch: Address = 0) -> SessionPass:
        """Fixes where a pass reads and writes; `scratch` is not needed.

        Args:
            tensors: every input and output of the graph by its name in the manifest.
            profile: name of the pass, for messages.
            scratch: not used.
        """
        del scratch
        binding = self._session.io_binding()
        for specs, bind in ((self._inputs, binding.bind_input), (self._outputs, binding.bind_output)):
            for spec in specs:
                tensor = tensors[spec.name]
                bind(spec.name, _MEMORY, self._ordinal, _ELEMENTS[spec.dtype], tensor.shape, tensor.address)
        # ONNX Runtime tells graphs by this number, not by what is bound; 0 is its own.
        self._bound += 1
        options = self._ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(self._bound))
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return SessionPass(self._session, binding, options, f"{profile} of {self._graph}")

    def keep_compiled(self) -> None:
        """ONNX Runtime compiles nothing."""

    def _open(self, path: str, device: Device, *, captures: bool) -> Any:
        options = self._ort.SessionOptions()
        options.log_severity_level = 3
        provider = {
            "device_id": str(device.ordinal),
            "user_compute_stream": str(device.stream),
            "enable_cuda_graph": str(int(captures)),
            # Activations are of few sizes: doubling what is asked for would waste memory.
            "arena_extend_strategy": "kSameAsRequested",
        }
        return self._ort.InferenceSession(path, options, providers=[(_PROVIDER, provider)])


class SessionPass:
    """A `BoundPass`; made by `CudaSession.bind`. Its first runs are ONNX Runtime's warm-up and capture."""

    capturable = False

    def __init__(self, session: Any, binding: Any, options: Any, name: str) -> None:
        self._session = session
        self._binding = binding
        self._options = options
        self._name = name

    def enqueue(self) -> None:
        """Puts the pass on the device's stream.

        Raises:
            BackendError: ONNX Runtime refuses, or memory runs out.
        """
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except Exception as error:  # ONNX Runtime raises its own family of types
            raise BackendError(
                f"ONNX Runtime refuses to run {self._name}: {error}",
                cure="stop other programs on the GPU if memory ran out; otherwise report this with the message",
            ) from error

    def time_layers(self, runs: int) -> tuple[()]:
        """Nothing: ONNX Runtime profiles sessions, and none that runs already."""
        del runs
        return ()


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise BackendError(f"onnxruntime cannot be imported: {error}", cure=_INSTALL) from error
    if _PROVIDER not in ort.get_available_providers():
        raise BackendError(f"this ONNX Runtime {ort.__version__} was built without {_PROVIDER}", cure=_INSTALL)
    # CUDA's and cuDNN's libraries from their wheels, where these are installed.
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    return ort
