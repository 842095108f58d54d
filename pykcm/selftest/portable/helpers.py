"""The kernel's helper functions that the selftest's programs call: include/uapi/linux/bpf.h."""

from __future__ import annotations

_NUMBERS = {"bpf_skb_load_bytes": 26, "bpf_probe_read_kernel": 113}


def by_name() -> dict[str, int]:
    return _NUMBERS


def by_number() -> dict[int, str]:
    return {number: name for name, number in _NUMBERS.items()}
