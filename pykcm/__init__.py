"""Linux's Kernel Connection Multiplexor (AF_KCM) for Python."""

from pykcm import bpf
from pykcm.errors import (
    AssemblyError,
    AttachError,
    BPFError,
    CapabilityError,
    Disconnected,
    FramingError,
    KCMError,
    KCMOSError,
    MessageTruncated,
    UnavailableError,
    VerifierError,
)
from pykcm.framing import FixedLength, Framing, LengthField
from pykcm.multiplexor import Multiplexor, Reason, TransportError
from pykcm.socket import KCMSocket, UnsentWarning

__version__ = "0.1.0"

__all__ = [
    "AssemblyError",
    "AttachError",
    "BPFError",
    "CapabilityError",
    "Disconnected",
    "FixedLength",
    "Framing",
    "FramingError",
    "KCMError",
    "KCMOSError",
    "KCMSocket",
    "LengthField",
    "MessageTruncated",
    "Multiplexor",
    "Reason",
    "TransportError",
    "UnavailableError",
    "UnsentWarning",
    "VerifierError",
    "bpf",
]
