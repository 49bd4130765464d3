"""Files that appear whole or not at all, in a folder that one process writes at a time."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from lladav.errors import EngineError
from lladav.staging import disk_cure, staged_file


class HashedStream:
    """A file being written, with its size and sha256."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes | memoryview) -> int:
        """Writes all of `data` and returns its bytes."""
        self._file.write(data)
        self._digest.update(data)
        count = memoryview(data).nbytes
        self.bytes += count
        return count

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Makes `folder` and locks it; folders that stay empty are removed again.

    Raises:
        EngineError: another process writes there, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise EngineError(f"{folder} cannot be written: {error}", cure="copy the bundle to where you may") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise EngineError(f"another process is building engines in {folder}", cure="wait until it is done") from error
    finally:
        os.close(lock)
        with suppress(OSError):
            folder.rmdir()
            folder.parent.rmdir()


@contextmanager
def staged_stream(target: Path) -> Iterator[HashedStream]:
    """Yields a stream whose contents become `target` when the block succeeds, and vanish when not.

    Raises:
        EngineError: the disk is or runs full, or cannot be written.
    """
    try:
        with staged_file(target) as fresh, fresh.open("wb") as file:
            yield HashedStream(file)
    except OSError as error:
        raise EngineError(f"{target} could not be written: {error}", cure=disk_cure(error)) from error
