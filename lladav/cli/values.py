"""Lists of numbers on the command line."""

from __future__ import annotations

from lladav.errors import OptionError


def integers(option: str, text: str) -> tuple[int, ...]:
    """Reads `1,2,-200,3`; white space separates as well.

    Raises:
        OptionError: empty, or something in it is no whole number.
    """
    try:
        numbers = tuple(int(part) for part in text.replace(",", " ").split())
    except ValueError:
        numbers = ()
    if not numbers:
        raise OptionError(
            f"{option} {text[:60]!r} is no list of whole numbers", cure=f"write it like {option} 64,128,256"
        )
    return numbers
