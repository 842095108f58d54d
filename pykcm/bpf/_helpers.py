"""The kernel's helper functions: their names and numbers, from <linux/bpf.h>'s own list."""

from __future__ import annotations

import functools

from pykcm._binding import ffi, lib


@functools.cache
def by_name() -> dict[str, int]:
    """Every helper that the headers knew when pykcm was built: "bpf_probe_read_kernel" -> 113.

    Raises:
        UnavailableError: pykcm has no compiled part on this platform.
    """
    names: dict[str, int] = {}
    number = 0
    while (name := lib.pykcm_bpf_helper_name(number)) != ffi.NULL:
        names["bpf_" + ffi.string(name).decode()] = number
        number += 1
    return names


@functools.cache
def by_number() -> dict[int, str]:
    """The same by number; empty where pykcm has no compiled part."""
    try:
        return {number: name for name, number in by_name().items()}
    except OSError:
        return {}
