"""Typed access to the loosely written JSON configurations of checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lladav.errors import CheckpointError

MATCHING = "take the configuration files that belong to the weights, unchanged"

_REQUIRED: Any = object()


class Fields:
    """Fields of one JSON object, each under any of several spellings.

    A field that is null counts as absent. Spellings that are both present must agree.

    Args:
        values: the object.
        file: where it was read, for messages.
    """

    def __init__(self, values: Mapping[str, Any], file: Path) -> None:
        self._values = values
        self._file = file

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def integer(self, *names: str, default: int = _REQUIRED) -> int:
        """A positive whole number."""
        value = self._first(names, default)
        if type(value) is not int or value < 1:
            raise self._wrong(names, value, "a positive whole number")
        return value

    def number(self, *names: str, default: float = _REQUIRED) -> float:
        """A positive finite number."""
        value = self._first(names, default)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise self._wrong(names, value, "a positive number")
        return float(value)

    def text(self, *names: str, default: str = _REQUIRED) -> str:
        value = self._first(names, default)
        if not isinstance(value, str):
            raise self._wrong(names, value, "text")
        return value

    def only(self, rules: Mapping[str, tuple[Any, ...]]) -> None:
        """Refuses values that would change the computation; absent fields pass.

        Args:
            rules: the values that are supported, by field.

        Raises:
            CheckpointError: naming every field with another value.
        """
        faults = [
            f"{name} is {self._values[name]!r} (supported: {' or '.join(map(repr, allowed)) or None})"
            for name, allowed in rules.items()
            if name in self and self._values[name] not in allowed
        ]
        if faults:
            raise CheckpointError(
                f"{self._file} asks for what lladav cannot compute: {'; '.join(faults)}",
                cure="export a checkpoint of LLaDA-V or LLaDA as their authors publish them",
            )

    def _first(self, names: tuple[str, ...], default: Any) -> Any:
        found = {name: self._values[name] for name in names if name in self}
        if not found:
            if default is _REQUIRED:
                raise CheckpointError(f"{self._file} has no {' or '.join(names)}", cure=MATCHING)
            return default
        value, *others = found.values()
        if any(other != value for other in others):
            listed = ", ".join(f"{name} {value!r}" for name, value in found.items())
            raise CheckpointError(f"{self._file} contradicts itself: {listed}", cure="remove the wrong ones")
        return value

    def _wrong(self, names: tuple[str, ...], value: Any, wanted: str) -> CheckpointError:
        name = next((name for name in names if name in self), names[0])
        return CheckpointError(
            f"{name} in {self._file} is {value!r}, but must be {wanted}",
            cure=MATCHING,
        )
