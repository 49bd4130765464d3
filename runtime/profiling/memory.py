"""Memory by what it is for, each measured on its own, beside the peak that the kernel counted.

A process's resident set alone says little: it counts pages of files that the kernel may drop at any time, and
shared libraries in full. So `/proc/self/smaps` is read by mapping, `/proc/self/pagemap` says which pages of our
buffers exist, and what a library allocates is the growth of anonymous memory over the call that made it do so.
On a board with one memory, what the GPU's driver holds for the process is in none of these, and read from
NvMap where that may be read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lladav.runtime.profiling.record import Memory, MemoryPart

NVMAP = Path("/sys/kernel/debug/nvmap/iovmm/clients")

_PAGE = os.sysconf("SC_PAGE_SIZE")
_PRESENT = np.uint64(1 << 63)
# A deadline warms up with passes that belong to no answer.
_PASSES = ("refresh", "step", "vision_encoder", "connector", "warm_up")
_HOST = ("tokenize", "preprocess", "merge", "sampling", "commit", "detokenize")
_FILES = ("weights in the file", "embedding table", "host code")


@dataclass(frozen=True)
class Resident:
    """Bytes of this process that are in memory now.

    Attributes:
        anonymous: of no file.
        files: of mapped files, by path.
        proportional: of all, shared pages divided among those who share them.
    """

    anonymous: int
    files: dict[str, int]
    proportional: int

    @classmethod
    def now(cls) -> Resident:
        anonymous = proportional = 0
        files: dict[str, int] = {}
        path, rss = "", 0
        for line in Path("/proc/self/smaps").read_text("utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name == "Rss":
                rss = _kilobytes(value)
            elif name == "Pss":
                proportional += _kilobytes(value)
            elif name == "Anonymous":
                own = _kilobytes(value)
                anonymous += own
                files[path] = files.get(path, 0) + rss - own
            elif "-" in name.split(" ", 1)[0]:
                path = line.split(maxsplit=5)[5] if len(line.split(maxsplit=5)) == 6 else ""
        return cls(anonymous, files, proportional)

    def under(self, folder: Path, suffix: str) -> int:
        """Bytes of a folder's files with that ending."""
        return sum(b for path, b in self.files.items() if path.startswith(f"{folder}/") and path.endswith(suffix))


def _kilobytes(value: str) -> int:
    return int(value.split()[0]) * 1024


def present(arrays: Iterable[np.ndarray]) -> int:
    """Bytes of arrays whose pages exist; a page that was never written does not, and shared ones count once."""
    pages = [np.zeros(0, np.int64)]
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        for array in arrays:
            first, last = array.ctypes.data // _PAGE, -(-(array.ctypes.data + array.nbytes) // _PAGE)
            entries = np.frombuffer(os.pread(pagemap.fileno(), 8 * (last - first), 8 * first), np.uint64)
            pages.append(first + np.flatnonzero(entries & _PRESENT))
    return len(np.unique(np.concatenate(pages))) * _PAGE


class DeviceMemory(NamedTuple):
    """Of a GPU: parts, and bytes in all."""

    parts: tuple[MemoryPart, ...]
    total: int


class MemoryLedger:
    """A `Tracer` that accounts for what loading and the first answers take; make it before anything is loaded.

    Args:
        bundle: folder of the bundle.
    """

    def __init__(self, bundle: Path) -> None:
        import onnxruntime  # noqa: F401  what it takes by itself is no weights

        self._bundle = bundle.resolve()
        self._grown: dict[str, int] = {}
        self._inside: list[int] = []
        self._data = self._loading = 0
        self._fault: OSError | None = None
        _forget_peak()

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """See `Tracer`: what loading, passes and work on the host add is kept by name."""
        if not (name.startswith("load ") or name in _PASSES or name in _HOST):
            yield
            return
        before = self._anonymous()
        self._inside.append(0)
        yield
        grown = self._anonymous() - before
        self._grown[name] = self._grown.get(name, 0) + grown - self._inside.pop()
        if self._inside:
            self._inside[-1] += grown

    def _anonymous(self) -> int:
        """Bytes now; a system that does not tell stops no answer, and `account` says so."""
        try:
            return Resident.now().anonymous
        except OSError as error:
            self._fault = error
            return 0

    def loaded(self) -> None:
        """Marks the end of loading: peaks are an answer's from here on."""
        self._loading = peak()
        loads = (grown for name, grown in self._grown.items() if name.startswith("load "))
        self._data = self._anonymous() - sum(loads)
        _forget_peak()

    def account(self, buffers: Mapping[str, Sequence[np.ndarray]], device: DeviceMemory | None = None) -> Memory:
        """Closes the account after some answers.

        Args:
            buffers: see `Denoiser.buffers`.
            device: of the GPU, where one computes; all that passes add here is the host's work then.

        Raises:
            OSError: the system does not tell, now or while it listened.
        """
        if self._fault is not None:
            raise self._fault
        total, now = peak(), Resident.now()
        cache, logits, inputs = (present(buffers.get(name, ())) for name in ("prompt KV", "logits", "inputs"))
        weights, table = (now.under(self._bundle, name) for name in (".weights", "embed_tokens.bin"))
        loads = {name: grown for name, grown in self._grown.items() if name.startswith("load ")}
        tokenizer = loads.pop("load tokenizer", 0)
        # Keys, values and logits are written by passes, for the first time too; they are no activations.
        passes = sum(self._grown.get(name, 0) for name in _PASSES) - cache - logits
        host = sum(self._grown.get(name, 0) for name in _HOST)
        grown, existing, mapped = (
            "growth of anonymous memory",
            "existing pages of the arrays",
            "resident pages of the file",
        )
        graphs: tuple[tuple[str, int, str], ...] = (
            ("weights", sum(loads.values()), grown + " while graphs were loaded"),
            ("weights in the file", weights, mapped),
            ("activations", passes, grown + " in passes, less keys, values and logits"),
            ("prompt KV", cache, existing),
            ("canvas and logits", logits + inputs, existing),
        )
        if device is not None:
            graphs, host = (), host + passes + sum(loads.values())
        rows = (
            *graphs,
            ("embedding table", table, mapped),
            ("tokenizer", tokenizer, grown + " while it was loaded"),
            ("host work", host, grown + " outside passes: pictures, sampling"),
            ("host data", self._data, "anonymous memory of Python and libraries, behind loading"),
            ("host code", sum(now.files.values()) - weights - table, "resident pages of programs and libraries"),
        )
        parts = (
            MemoryPart(name=name, bytes=max(0, bytes_), file_backed=name in _FILES, how=how)
            for name, bytes_, how in rows
        )
        there = device or DeviceMemory((), 0)
        return Memory(
            parts=(*there.parts, *parts),
            total=total + there.total,
            loading=self._loading,
            proportional=now.proportional,
            graphics=nvmap(),
        )


def peak() -> int:
    """The largest resident set so far, or since the peak was last forgotten, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def _forget_peak() -> None:
    """Where the kernel refuses, the peak stays that of the whole process."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def nvmap(clients: Path = NVMAP, pid: int | None = None) -> int | None:
    """Bytes that NvMap holds for this process on a Jetson; None elsewhere, or where it may not be read.

    Lines are `user  python3  1234  5678K`.
    """
    try:
        text = clients.read_text()
    except OSError:
        return None
    found = re.findall(rf"^\S+\s+\S+\s+{pid or os.getpid()}\s+(\d+)K", text, re.MULTILINE)
    return sum(map(int, found)) * 1024
