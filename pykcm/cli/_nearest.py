"""What somebody who mistyped a name may have meant."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of an error's line: "; did you mean 'x'?", or nothing if no name is near."""
    import difflib

    by_folded = {known.casefold(): known for known in names}
    found = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.5)
    return f"; did you mean {by_folded[found[0]]!r}?" if found else ""
