"""Commands and options that the documentation names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lladav.cli.app import app

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def code(document: Path) -> list[str]:
    """Lines of shell blocks, and everything in backticks."""
    text = document.read_text("utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()] + re.findall(r"`([^`\n]+)`", text)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_verbs_and_options_exist(document: Path) -> None:
    for line in code(document):
        for verb, rest in re.findall(r"\blladav ([a-z]\w*)(.*)", line):
            shown = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200"})
            assert shown.exit_code == 0, line
            for option in re.findall(r"--[a-z][a-z-]+", rest):
                assert option in shown.stdout, line


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = {name for document in DOCUMENTS for line in code(document) for name in re.findall(r"^make ([a-z]+)", line)}
    assert {"demo", "test"} <= named <= targets


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text("utf-8")):
        assert (document.parent / target).exists(), target
