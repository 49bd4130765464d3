"""The cases of the golden set, for tests that are made of them; none where it is not on this machine."""

from __future__ import annotations

from pathlib import Path

from benchmarks.golden import generation_cases

SHARED = Path(__file__).resolve().parents[2] / "shared"
CASES = generation_cases(SHARED / "parity")
