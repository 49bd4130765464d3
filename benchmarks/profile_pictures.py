"""Pictures of a profile for pages that are no report.

    python -m benchmarks.profile_pictures PROFILE.json FOLDER

Writes `profile-NAME.png` for every picture that the profile has the data for, on white.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lladav.runtime.profiling import Profile
from lladav.runtime.profiling.figures import drawing, figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("profile", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", help="names of pictures")
    options = parser.parse_args()
    with drawing():
        for name, (figure, _) in figures(Profile.read(options.profile)).items():
            if not options.only or name in options.only:
                figure.savefig(options.folder / f"profile-{name}.png", dpi=120, transparent=False, facecolor="white")


if __name__ == "__main__":
    main()
