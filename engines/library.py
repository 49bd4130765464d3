"""The two libraries that compile engines, TensorRT and TensorRT-RTX, behind what they share.

They differ in names and in what they can do: TensorRT builds for the GPU that it runs on, and
TensorRT-RTX for any it knows, without one. What TensorRT 10.3 does not have is asked for before
it is used.
"""

from __future__ import annotations

import importlib
from typing import Any

from lladav.errors import EngineError
from lladav.records import Library

INSTALL: dict[Library, str] = {
    "tensorrt": "on a Jetson, use JetPack's own with `python3 -m venv --system-site-packages`; "
    "elsewhere pip install 'lladav[tensorrt]'",
    "tensorrt_rtx": "pip install 'lladav[tensorrt-rtx]'",
}
"""How each gets onto a machine."""

_logs: dict[str, Any] = {}


def load_library(name: Library) -> Any:
    """The module `tensorrt` or `tensorrt_rtx`.

    Raises:
        EngineError: it is not installed, or does not load.
    """
    try:
        return importlib.import_module(name)
    # Besides ImportError: OSError for a missing shared library, RuntimeError for a stub.
    except Exception as error:
        raise EngineError(f"{name} cannot be imported: {error}", cure=INSTALL[name]) from error


def builds_ahead(trt: Any) -> bool:
    """Whether the library builds for GPUs that are not there."""
    return hasattr(trt, "ComputeCapability")


def known_capabilities(trt: Any) -> tuple[str, ...]:
    """Compute capabilities that a library which builds ahead of time knows, such as 8.9."""
    names = [name.removeprefix("SM") for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    return tuple(f"{name[:-1]}.{name[-1]}" for name in names)


def log_of(trt: Any) -> Any:
    """The logger of a library, which collects what it says.

    There is one: a library keeps the first that it is given for the whole process.
    """
    if trt.__name__ not in _logs:

        class Collector(trt.ILogger):  # type: ignore[misc]  # a class of a module that may be absent
            def __init__(self) -> None:
                super().__init__()
                self.messages: list[tuple[int, str]] = []

            def log(self, severity: Any, message: str) -> None:
                if int(severity) <= int(trt.ILogger.INFO):
                    self.messages.append((int(severity), message))

            def errors(self) -> str:
                """What went wrong, in the library's words."""
                return "; ".join(m for severity, m in self.messages if severity <= int(trt.ILogger.ERROR))

        _logs[trt.__name__] = Collector()
    return _logs[trt.__name__]
