"""The folder that a profile leaves: whole, or as it was before."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from lladav.errors import ExportError, ProfileError
from lladav.runtime.profiling.layers import trtexec_profile
from lladav.runtime.profiling.measure import Measured
from lladav.runtime.profiling.record import Profile
from lladav.runtime.profiling.report import can_draw, report
from lladav.runtime.profiling.trace import chrome_trace
from lladav.staging import staged_file, staged_folder

PROFILE = "profile.json"
REPORT = "report.html"
OWN = (PROFILE, "trace.json", "layers.json", REPORT)


def check_output(folder: Path, *, replace: bool) -> None:
    """Looks before anything is measured whether the result can be written.

    Raises:
        ProfileError: the folder exists and may not be replaced, holds what no profile left there, or may not be made.
    """
    if not folder.exists():
        above = next(parent for parent in folder.absolute().parents if parent.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise ProfileError(f"{folder} cannot be written", cure="pass --output a folder that you may write to")
        return
    if not folder.is_dir():
        raise ProfileError(f"{folder} is a file", cure="pass --output another name")
    if not replace:
        raise ProfileError(f"{folder} exists already", cure="pass --force to replace it, or --output another name")
    foreign = sorted(file.name for file in folder.iterdir() if file.name not in OWN)
    if foreign:
        raise ProfileError(
            f"{folder} holds {', '.join(foreign[:5])}, which no profile left there",
            cure="pass --output another name; --force replaces only profiles",
        )


def write(measured: Measured, folder: Path, *, replace: bool) -> tuple[Path, ...]:
    """Writes all files of a profile.

    Returns:
        The files; without `report.html` where matplotlib is missing.

    Raises:
        ProfileError: as `check_output`, or the disk is full.
    """
    check_output(folder, replace=replace)
    beside, before = (folder.with_name(f".{folder.name}.{state}") for state in ("new", "old"))
    for left_behind in (beside, before):
        shutil.rmtree(left_behind, ignore_errors=True)
    try:
        with staged_folder(beside) as staging:
            (staging / PROFILE).write_text(measured.profile.text(), "utf-8")
            _dump(chrome_trace(measured.recordings), staging / "trace.json")
            if measured.nodes:
                _dump(trtexec_profile(measured.nodes), staging / "layers.json")
            if can_draw():
                (staging / REPORT).write_text(report(measured.profile), "utf-8")
    except ExportError as error:
        raise ProfileError(error.what, cure=error.cure) from error
    if folder.exists():
        folder.rename(before)
    beside.rename(folder)
    shutil.rmtree(before, ignore_errors=True)
    return tuple(folder / name for name in OWN if (folder / name).exists())


def write_report(profile: Profile, folder: Path) -> Path:
    """Draws the report of a profile that was measured elsewhere.

    Raises:
        ProfileError: matplotlib is missing, or the folder cannot be written.
    """
    if not can_draw():
        raise ProfileError("the report is drawn by matplotlib, which is missing", cure="pip install 'lladav[report]'")
    file = folder / REPORT
    try:
        with staged_file(file) as fresh:
            fresh.write_text(report(profile), "utf-8")
    except OSError as error:
        raise ProfileError(f"{file} cannot be written: {error}", cure="choose a folder you may write to") from error
    return file


def _dump(value: object, file: Path) -> None:
    file.write_text(json.dumps(value), "utf-8")
