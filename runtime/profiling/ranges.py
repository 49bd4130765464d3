"""Spans as NVTX ranges, for Nsight Systems; the package `nvtx` is asked for only here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lladav.errors import BackendError


class NvtxRanges:
    """A `Tracer` whose spans are NVTX ranges.

    Raises:
        BackendError: nvtx is not installed.
    """

    def __init__(self) -> None:
        try:
            import nvtx
        except ImportError as error:
            raise BackendError(f"--nvtx needs the package nvtx: {error}", cure="pip install 'lladav[nvtx]'") from error
        self._nvtx: Any = nvtx

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """See `Tracer`."""
        with self._nvtx.annotate(name, domain="lladav"):
            yield
