"""From a checkpoint to a bundle. Needs the `export` extra, and `verify` for the comparison with PyTorch.

Importing this package loads neither onnx nor torch; they are asked for when they are used.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from lladav.errors import BackendError
from lladav.export.config import ExportConfig
from lladav.export.progress import Progress

if TYPE_CHECKING:
    from lladav.export.exporter import export

__all__ = ["ExportConfig", "Progress", "export", "require"]

Extra = Literal["export", "verify"]

EXTRAS: dict[Extra, tuple[str, ...]] = {"export": ("jinja2", "ml_dtypes", "onnx"), "verify": ("psutil", "torch")}
"""What each extra of the package brings."""


def require(extra: Extra) -> None:
    """Asks for the packages of an extra.

    Raises:
        BackendError: naming those that are not installed.
    """
    missing = [name for name in EXTRAS[extra] if find_spec(name) is None]
    if missing:
        cure = f"pip install 'lladav[{extra}]'"
        if extra == "verify":
            cure += ", or pass --no-verify to `lladav export`"
        raise BackendError(f"{' and '.join(missing)} cannot be imported, which `{extra}` needs", cure=cure)


def __getattr__(name: str) -> Any:
    if name != "export":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require("export")
    from lladav.export.exporter import export

    return export
