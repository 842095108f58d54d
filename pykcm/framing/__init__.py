"""Framings: a header's layout, once as a delineation program and once in Python.

A framing says where a message of a byte stream ends.  `measure` says it in Python, `load` makes the
BPF program with which the kernel says the same, `assembly` shows that program.  With a batch, the
kernel makes super messages of several, which `pykcm.framing.delineate` divides again.
"""

from pykcm.framing.base import DEFAULT_MAX_LENGTH, LARGEST_BATCH, Framing
from pykcm.framing.custom import CustomFraming
from pykcm.framing.length_field import FixedLength, LengthField
from pykcm.framing.variable import Delimiter, Layout, Varint

__all__ = [
    "DEFAULT_MAX_LENGTH",
    "LARGEST_BATCH",
    "CustomFraming",
    "Delimiter",
    "FixedLength",
    "Framing",
    "Layout",
    "LengthField",
    "Varint",
]
