"""Measures an export at the real size: seconds, peak memory beyond the file cache, bundle size.

    python benchmarks/make_full_size.py full-size
    python benchmarks/export_full_size.py full-size full-size.bundle

The export runs in a process of its own, whose anonymous resident memory (`RssAnon`: what the
kernel cannot drop, so without mapped files) is sampled every 20 ms.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path


def anonymous_bytes(pid: int) -> int:
    """Resident memory of a process that is not file cache."""
    try:
        text = Path(f"/proc/{pid}/status").read_text("ascii")
    except OSError:
        return 0
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return int(fields.get("RssAnon", "0 kB").split()[0]) * 1024


def size_of(folder: Path, pattern: str = "*") -> int:
    return sum(file.stat().st_size for file in folder.rglob(pattern) if file.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("options", nargs="*", default=[], help="options of `lladav export`, after --")
    options = parser.parse_args()
    command = [sys.executable, "-m", "lladav", "export", str(options.checkpoint), str(options.bundle)]
    began = time.perf_counter()
    process = subprocess.Popen([*command, *options.options])
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(process.pid))
        time.sleep(0.02)
    weights = size_of(options.checkpoint, "*.safetensors")
    result = {
        "exit_code": process.returncode,
        "seconds": round(time.perf_counter() - began, 1),
        "peak_anonymous_gb": round(peak / 1e9, 2),
        "weights_gb": round(weights / 1e9, 2),
        "bundle_gb": round(size_of(options.bundle) / 1e9, 2),
        "bundle_to_weights": round(size_of(options.bundle) / weights, 4),
    }
    print(json.dumps(result, indent=2))
    sys.exit(process.returncode)


if __name__ == "__main__":
    main()
