"""A bound on the digits of JSON numbers: a schema does not limit those of a fraction, nor those of an integer without a
maximum, and a small model may not find the end of them.

After `MAX_DIGITS` digits in a row, outside of strings, a token that begins with a digit is forbidden where the number
may end or go on otherwise. A double has at most 17 significant digits, an integer of 64 bits at most 20.

V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
"""[V]: whether each token is allowed."""
MAX_DIGITS = 20


@dataclass(frozen=True, slots=True)
class Place:
    """The end of a JSON text: whether it lies in a string, whether a backslash comes last in it, and how many digits
    come last outside of strings."""

    in_string: bool = False
    escaped: bool = False
    digits: int = 0

    def after(self, text: bytes) -> Place:
        """The place after more text."""
        in_string, escaped, digits = self.in_string, self.escaped, self.digits
        for byte in text:
            in_string, escaped = (
                (escaped or byte != ord('"'), byte == ord("\\") and not escaped)
                if in_string
                else (byte == ord('"'), False)
            )
            digits = digits + 1 if not in_string and ord("0") <= byte <= ord("9") else 0
        return Place(in_string, escaped, digits)


class DigitBound:
    """The bound for one sequence. It follows the tokens that its constraint consumes.

    Args:
        text_of: the bytes of a token.
        digits_V: the tokens that begin with a digit.
    """

    def __init__(self, text_of: Callable[[int], bytes], digits_V: Mask) -> None:
        self._text_of, self._digits_V = text_of, digits_V
        self._places = [Place()]

    @property
    def reached(self) -> bool:
        """Whether the text ends with as many digits as are allowed."""
        return self._places[-1].digits >= MAX_DIGITS

    def apply(self, allowed_V: Mask) -> Mask:
        """The allowed tokens that the bound leaves. Where it would leave none, it does not hold."""
        if not self.reached:
            return allowed_V
        others_V = allowed_V & ~self._digits_V
        return others_V if others_V.any() else allowed_V

    def append(self, token: int) -> None:
        """One more token."""
        self._places.append(self._places[-1].after(self._text_of(token)))

    def take_back(self, count: int) -> None:
        """Drop the last tokens, which have not been kept."""
        del self._places[len(self._places) - count :]

    def keep(self) -> None:
        """Keep all tokens so far: they are not taken back."""
        del self._places[:-1]
