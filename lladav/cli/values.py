"""Numbers on the command line."""

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


def grid(option: str, text: str) -> tuple[int, int]:
    """Reads `2x3`: columns and rows.

    Raises:
        OptionError: anything else.
    """
    columns, _, rows = text.lower().partition("x")
    if not (columns.isdecimal() and rows.isdecimal() and int(columns) and int(rows)):
        raise OptionError(f"{option} {text[:60]!r} is no grid", cure=f"write columns x rows, like {option} 2x2")
    return int(columns), int(rows)
