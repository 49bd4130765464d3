"""Folders and files appear whole or not at all, whatever happens while they are made."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lladav.errors import ExportError
from lladav.staging import check_target, staged_file, staged_folder

ROOT = Path(__file__).resolve().parent.parent


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_appears_when_the_block_succeeds(tmp_path: Path) -> None:
    target = tmp_path / "new" / "bundle"
    with staged_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    assert contents(tmp_path) == ["new", "new/bundle", "new/bundle/a"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_nothing_is_left_after_an_exception(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), staged_folder(tmp_path / "bundle") as folder:
        (folder / "a").write_text("1")
        raise error
    assert contents(tmp_path) == []


def test_nothing_is_left_on_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="nothing was left behind") as caught, staged_folder(tmp_path / "b") as folder:
        (folder / "a").write_text("1")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "free some space" in caught.value.cure
    assert contents(tmp_path) == []


def test_too_little_space_is_known_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="GB free"), staged_folder(tmp_path / "bundle", needed_bytes=1 << 60):
        raise AssertionError
    assert contents(tmp_path) == []


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_exists_is_never_touched(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "bundle"
    if kind == "folder":
        target.mkdir()
        (target / "precious").write_text("1")
    else:
        target.write_text("1")
    before = contents(tmp_path)
    with pytest.raises(ExportError, match="exists already"), staged_folder(target):
        raise AssertionError
    assert contents(tmp_path) == before


def test_target_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with pytest.raises(ExportError), staged_folder(target) as folder:
        (folder / "mine").write_text("1")
        target.mkdir()
        (target / "theirs").write_text("2")
    assert contents(tmp_path) == ["bundle", "bundle/theirs"]


def test_second_writer_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with staged_folder(target) as folder:
        (folder / "a").write_text("1")
        with pytest.raises(ExportError, match="another process is writing"), staged_folder(target):
            raise AssertionError
    assert contents(tmp_path) == ["bundle", "bundle/a"]


def test_a_folder_that_another_process_makes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".bundle.partial").mkdir()
    monkeypatch.setattr("lladav.staging._remove_abandoned", lambda *_: None)  # looked before it was made
    with pytest.raises(ExportError, match="another process is writing"), staged_folder(tmp_path / "bundle"):
        raise AssertionError
    assert contents(tmp_path) == [".bundle.partial"]


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot be written"), staged_folder(tmp_path / "file" / "bundle"):
        raise AssertionError


def test_a_target_that_cannot_be_is_known_beforehand(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="exists already"):
        check_target(tmp_path / "file")
    with pytest.raises(ExportError, match="file is no folder to write to"):
        check_target(tmp_path / "file" / "more" / "bundle")
    check_target(tmp_path / "more" / "folders" / "bundle")
    assert contents(tmp_path) == ["file"]


def test_killed_writer_leaves_no_bundle_and_the_next_one_succeeds(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from lladav.staging import staged_file, staged_folder\n"
        "with staged_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').write_text('1')\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(target)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        writer.send_signal(signal.SIGKILL)
    assert not target.exists()

    with staged_folder(target) as folder:
        (folder / "whole").write_text("1")
    assert contents(tmp_path) == ["bundle", "bundle/whole"]


def test_file_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    (tmp_path / ".file.new").write_text("what a killed process left")
    with staged_file(target) as fresh:
        fresh.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert contents(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_earlier_file_stays_after_an_exception(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(type(error)), staged_file(target) as fresh:
        fresh.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert contents(tmp_path) == ["file"]
