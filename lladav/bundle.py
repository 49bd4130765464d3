"""A bundle on disk: the only thing that stages hand to one another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lladav.errors import BundleError
from lladav.manifest import MANIFEST_NAME, Manifest

_CURE = "copy the bundle again from where it was exported, or export it again"


@dataclass(frozen=True)
class Bundle:
    """A folder whose manifest is valid and whose files are all there at their full size."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Opens a bundle and checks what is cheap: manifest, presence and size of every file.

        Raises:
            BundleError: naming every missing or wrongly sized file.
        """
        folder = Path(path)
        manifest = Manifest.read(folder)
        faults = []
        for entry in manifest.files:
            file = folder / entry.path
            if not file.resolve().is_relative_to(folder.resolve()):
                faults.append(f"{entry.path} points outside the bundle")
            elif not file.is_file():
                faults.append(f"{entry.path} is missing")
            elif (size := file.stat().st_size) != entry.bytes:
                faults.append(f"{entry.path} has {size:,} bytes instead of {entry.bytes:,}")
        listed = {entry.path for entry in manifest.files}
        named = {g.file for g in manifest.graphs.values()} | {g.weights for g in manifest.graphs.values()}
        named |= {t.file for t in manifest.tables.values()}
        faults += [f"{name} is used by the manifest but not among its files" for name in sorted(named - listed)]
        if faults:
            raise BundleError(f"{folder} is damaged: " + "; ".join(faults), cure=_CURE)
        return cls(folder, manifest)

    def file(self, name: str) -> Path:
        return self.path / name

    def check_contents(self, progress: Callable[[int], None] = lambda _: None) -> None:
        """Compares the sha256 of every file with the manifest's.

        Args:
            progress: called with the bytes read since the last call.

        Raises:
            BundleError: naming every file whose contents differ.
        """
        altered = [entry.path for entry in self.manifest.files if not entry.is_unaltered(self.path, progress)]
        if altered:
            raise BundleError(
                f"{self.path}: contents of {', '.join(altered)} differ from the {MANIFEST_NAME}'s sha256", cure=_CURE
            )
