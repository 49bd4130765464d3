"""Every kernel against numpy on the GPU: the tests of `tests/runtime/gpu` that ask for one."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.gpu.finding import CannotRunError, Finding, Table
from benchmarks.gpu.rig import Rig

ROOT = Path(__file__).resolve().parents[2]
TESTS = "tests/runtime/gpu"
ON_A_GPU = (TESTS, "-m", "gpu")


def kernels(rig: Rig, select: tuple[str, ...] = ON_A_GPU) -> Finding:
    """Runs the tests in a process of their own.

    Args:
        rig: whose device has to be there.
        select: what pytest is given to choose them.

    Raises:
        CannotRunError: pytest did not run any.
    """
    title = f"Tests of {TESTS} on {rig.device.name}"
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = (sys.executable, "-m", "pytest", "-q", *select, f"--junitxml={report}")
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if not report.is_file():
            raise CannotRunError(f"the tests did not run: {(done.stderr or done.stdout).strip()[-500:]}")
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    if not cases:
        raise CannotRunError(f"no test was chosen by {' '.join(select)}")
    outcomes = {f"{case.get('classname')}::{case.get('name')}": _outcome(case) for case in cases}
    modules = sorted({name.partition("::")[0] for name in outcomes})
    rows = []
    for module in modules:
        counts = Counter(outcome for name, outcome in outcomes.items() if name.startswith(f"{module}::"))
        rows.append((module.rpartition(".")[2], *(str(counts[kind]) for kind in ("passed", "failed", "skipped"))))
    return Finding(
        {"outcomes": outcomes, "output": done.stdout[-20_000:]},
        (Table(title, ("tests", "passed", "failed", "skipped"), tuple(rows)),),
    )


def _outcome(case: ElementTree.Element) -> str:
    kinds = {child.tag for child in case}
    if kinds & {"failure", "error"}:
        return "failed"
    return "skipped" if "skipped" in kinds else "passed"
