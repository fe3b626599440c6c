"""Near misses: what somebody who misspelt a word probably meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or `; known: a, b` where nothing is near and the list is short, else an empty string."""
    names = sorted(set(known))
    near = get_close_matches(word, names, n=3, cutoff=0.6)
    if near:
        return "; did you mean " + " or ".join(repr(name) for name in near) + "?"
    return f"; known: {', '.join(names)}" if 0 < len(names) <= 16 else ""
