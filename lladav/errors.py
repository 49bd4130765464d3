"""Everything that can go wrong, as types.

Every message says what happened, with the measured values, and ``cure`` says what to do
about it. The command line prints both and exits with ``exit_code``, without a traceback.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class LladavError(Exception):
    """Base of all errors a user can meet.

    Args:
        what: what happened, with the values that decide it.
        cure: the step that mends it.
    """

    exit_code = 1

    def __init__(self, what: str, *, cure: str) -> None:
        super().__init__(what)
        self.what = what
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.what}\n  -> {self.cure}"


class OptionError(LladavError):
    """An option, or a combination of options, that means nothing."""

    exit_code = 2


class CheckpointError(LladavError):
    """A checkpoint folder that cannot be read as a LLaDA-V model."""


class ExportError(LladavError):
    """An export that could not be finished; nothing was left behind."""


class BundleError(LladavError):
    """A bundle that is incomplete, altered, or made for another version."""


class ImageError(LladavError):
    """A picture or video that cannot be used."""


class PromptError(LladavError):
    """A prompt that cannot be encoded, or that fits no bucket of the bundle."""


class BackendError(LladavError):
    """A runtime library that is missing or refused the work."""


class EngineError(LladavError):
    """An engine that cannot be built for its target, or does not fit the machine that it is on."""


class CalibrationError(LladavError):
    """Pictures, prompts or inputs that give no statistics, or statistics that do not belong to a model."""


class ProfileError(LladavError):
    """A profile that cannot be read or written, or profiles that cannot be compared."""


class VerificationError(LladavError):
    """Graphs whose outputs are further from PyTorch than their tolerance."""


def faults_of(error: ValidationError, whole: str) -> str:
    """What a validation found: `files.0.bytes: Field required; ...`, eight faults at most.

    Args:
        error: of the values.
        whole: what they are called where they are wrong as a whole.
    """
    return "; ".join(
        f"{'.'.join(map(str, fault['loc'])) or whole}: {fault['msg'].removeprefix('Value error, ')}"
        for fault in error.errors()[:8]
    )
