"""Which errors of dialling and shaking hands are failures rather than mistakes."""

from __future__ import annotations

import sys

# What streams raise of a handshake that was cut or took too long, where that is no OSError.
_STREAMS = {
    "asyncio": ["TimeoutError"],  # an OSError since Python 3.11
    "trio": ["TooSlowError", "BrokenResourceError"],
    "anyio": ["EndOfStream", "BrokenResourceError"],
}


def failures() -> tuple[type[Exception], ...]:
    """The errors after which `connect` is called again."""
    # Who raises one of a library has imported it.
    streams = [
        getattr(sys.modules[library], name)
        for library, names in _STREAMS.items()
        for name in names
        if hasattr(sys.modules.get(library), name)
    ]
    return OSError, EOFError, *streams
