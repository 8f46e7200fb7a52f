"""Numbers from files and command lines: finite, in range, and no other value that Python accepts as a number."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, Optional, Union

from opensora.errors import UserError

LARGEST = 1e9  # larger than any annotated or configured value: pixels, frames, rates, scores, steps
MOST_DIGITS = 40  # of a number written as text

Number = Union[int, float, Fraction]


def is_missing(value: Any) -> bool:
    """Whether a value of a table or a json file is missing: null, blank text, or NaN as pandas writes it."""
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    )


def finite_number(value: Any, name: str, least: float = -LARGEST, most: float = LARGEST) -> float:
    """`value` as a float from `least` to `most`; text such as "23.976" or "24000/1001" counts as a number.

    Args:
        name: of the key, column or flag, for the error.

    Raises:
        UserError: not a number (booleans are not), NaN, infinite, or out of range.
    """
    return float(_number(value, name, "a number", least, most))


def whole_number(value: Any, name: str, least: int = -int(LARGEST), most: int = int(LARGEST)) -> int:
    """As `finite_number`, without a fractional part: 48, 48.0 and "48" are whole."""
    return int(_number(value, name, "a whole number", least, most))


def _number(value: Any, name: str, kind: str, least: float, most: float) -> Number:
    number = value if type(value) is int else _parse(value)  # a fast path: annotation files hold millions of integers
    # The comparison is false for NaN, and exact for integers that are too large for a float.
    if number is None or not least <= number <= most or (kind == "a whole number" and number != int(number)):
        raise UserError(f"{name} {_shown(value)}: should be {kind} from {least:g} to {most:g}")
    return number


def _parse(value: Any) -> Optional[Number]:
    """None if `value` is not a number."""
    if isinstance(value, str):
        try:
            if len(value) > MOST_DIGITS or "_" in value:  # Python allows 1_000
                return None
            return Fraction(value.replace(" ", "")) if "/" in value else float(value)
        except (ValueError, ZeroDivisionError):
            return None
    value = value.item() if getattr(value, "ndim", None) == 0 else value  # numpy's scalars
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _shown(value: Any) -> str:
    try:
        text = ascii(value)
    except ValueError:  # Python refuses to convert integers of thousands of digits to text
        text = "(a number of thousands of digits)"
    return text if len(text) <= 60 else f"{text[:57]}..."
