"""Text that others wrote, made fit to be shown: no file or hospital can steer a terminal or a page."""

from __future__ import annotations

import unicodedata

LONGEST_TEXT, LONGEST_LINE = 300, 5000

_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


def printable(text: str, longest: int = LONGEST_TEXT) -> str:
    """``text`` on one line, without control and direction-changing characters, cut to a readable length."""
    clean = "".join("\ufffd" if unicodedata.category(char) in _UNPRINTABLE else char for char in text)
    return clean if len(clean) <= longest else clean[: longest - 1] + "…"
