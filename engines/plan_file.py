"""Files that appear whole or not at all, in a folder that one process writes at a time."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from lladav.errors import EngineError
from lladav.staging import sync


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
def staged_file(target: Path) -> Iterator[HashedStream]:
    """Yields a stream whose contents become `target` when the block succeeds, and vanish when not.

    Raises:
        EngineError: the disk is or runs full, or cannot be written.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        with partial.open("wb") as file:
            yield HashedStream(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
        sync(target.parent)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise EngineError(
                f"{target} could not be written: {error}",
                cure="free some space and run it again" if full else "check the disk and run it again",
            ) from error
        raise
