"""Folders and files that appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lladav.errors import ExportError


@contextmanager
def staged_folder(target: Path, needed_bytes: int = 0) -> Iterator[Path]:
    """Yields a hidden folder beside `target` that becomes `target` when the block succeeds.

    It is locked while in use, so that what a killed process left behind is recognised and
    removed by the next one. On any exception, Ctrl-C included, it is deleted.

    Args:
        target: must not exist yet.
        needed_bytes: free space asked for before anything is written.

    Raises:
        ExportError: `target` exists, another process writes it, or the disk is or runs full.
    """
    target = target.absolute()
    check_target(target)
    staging = target.parent / f".{target.name}.partial"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(staging, target)
        free = shutil.disk_usage(target.parent).free
        if free < needed_bytes:
            raise ExportError(
                f"{target} needs {needed_bytes / 1e9:.2f} GB and {target.parent} has {free / 1e9:.2f} GB free",
                cure="free some space or choose a path on another disk",
            )
        try:
            staging.mkdir()
        except FileExistsError as error:  # made since it was looked for
            raise _other_writer(target) from error
        lock = os.open(staging, os.O_RDONLY)
    except OSError as error:
        raise ExportError(f"{target} cannot be written: {error}", cure="choose a folder you may write to") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield staging
        for file in staging.rglob("*"):
            sync(file)
        sync(staging)
        staging.rename(target)
        sync(target.parent)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, OSError):
            raise ExportError(
                f"{target} could not be written: {error}; nothing was left behind", cure=disk_cure(error)
            ) from error
        raise
    finally:
        os.close(lock)


def check_target(target: Path) -> None:
    """Looks whether a folder can be staged; for what takes long before it is.

    Raises:
        ExportError: `target` exists, or what it lies in is no folder or may not be written to.
    """
    if target.exists():
        raise ExportError(f"{target} exists already", cure="choose another name or remove it first")
    above = next(parent for parent in target.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ExportError(
            f"{target} cannot be written: {above} is no folder to write to", cure="choose a folder you may write to"
        )


def _remove_abandoned(staging: Path, target: Path) -> None:
    if not staging.exists():
        return
    lock = os.open(staging, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _other_writer(target) from error
    finally:
        os.close(lock)
    shutil.rmtree(staging)


def _other_writer(target: Path) -> ExportError:
    return ExportError(f"another process is writing {target}", cure="wait for it, or choose another name")


@contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """Yields a hidden path beside `target`; the file that is written there becomes `target` when the block succeeds.

    On any exception, Ctrl-C included, it is deleted; what a killed process left there, the next one overwrites.

    Raises:
        OSError: it cannot be written, or put in its place.
    """
    fresh = target.with_name(f".{target.name}.new")
    try:
        yield fresh
        sync(fresh)
        fresh.replace(target)
        sync(target.parent)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def disk_cure(error: OSError) -> str:
    """What helps where something could not be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "free some space and run it again" if full else "check the disk and run it again"


def sync(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
