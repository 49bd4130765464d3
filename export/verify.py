"""Does a bundle compute what its checkpoint computes in PyTorch?"""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

from lladav.bundle import Bundle
from lladav.errors import BackendError, CheckpointError
from lladav.export.checkpoint import Checkpoint
from lladav.export.migration import MigratedCheckpoint, Migration
from lladav.export.model_config import read_geometry
from lladav.export.progress import Progress
from lladav.export.verification import DeviationError, VerificationReport

PICTURE = Path(__file__).parent / "data" / "chelsea.jpg"


def verify(
    bundle: str | Path,
    checkpoint: str | Path,
    image: Path | None = None,
    progress: Progress = Progress(),  # noqa: B008 - immutable
) -> VerificationReport:
    """Compares every graph and table of a bundle, and the runtime's denoising loop, with PyTorch.

    Layers are compared one by one, with little more than one layer in memory; the denoising
    loop needs both models whole, and is left out where they do not fit. Where weights are integers,
    these are compared with the checkpoint's weights, and graphs with PyTorch on what they stand for.

    Args:
        bundle: folder made by `export`.
        checkpoint: folder it was made from.
        image: picture to look at; a photograph of a cat when None.
        progress: called with the stage and the bytes of weights that are done.

    Raises:
        DeviationError: something differs by more than its tolerance.
        BundleError: the bundle is damaged.
        CheckpointError: the checkpoint is damaged, or has another geometry than the bundle.
        ImageError: the picture cannot be used.
        BackendError: PyTorch or another package is missing.
    """
    try:
        from lladav.export.stored_integers import StoredIntegers
        from lladav.export.streamed_reference import StreamedReference
        from lladav.export.verify_integers import compare_integers
        from lladav.export.verify_layers import LayerByLayer
        from lladav.export.verify_steps import compare_steps
    except ImportError as error:
        raise BackendError(
            f"a bundle is verified with PyTorch, and {error.name} cannot be imported: {error}",
            cure="pip install 'lladav[verify]', or export with --no-verify",
        ) from error
    began = perf_counter()
    opened, source = Bundle.open(bundle), Checkpoint.open(checkpoint)
    geometry = read_geometry(source, opened.manifest.geometry.language.vocab_rows)
    if geometry != opened.manifest.geometry:
        raise CheckpointError(
            f"{bundle} was not made from {checkpoint}: its model has {opened.manifest.geometry} instead of {geometry}",
            cure="pass the checkpoint that was exported",
        )
    integers = StoredIntegers(opened)
    source = MigratedCheckpoint.of(source, Migration.read(opened.path, geometry))
    reference = StreamedReference(source, geometry, integers)
    files = {graph.weights for graph in opened.manifest.graphs.values()}
    progress.start("verify", sum(entry.bytes for entry in opened.manifest.files if entry.path in files))
    layers = LayerByLayer(opened, reference, progress)
    prompt = layers.compare(image or PICTURE)
    rows = [*compare_integers(integers, source), *layers.rows, *compare_steps(opened, reference, prompt)]
    report = VerificationReport(tuple(rows), perf_counter() - began)
    if not report.passed:
        raise DeviationError(opened.path, report)
    return report
