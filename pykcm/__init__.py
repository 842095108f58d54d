"""Linux's Kernel Connection Multiplexor (AF_KCM) for Python."""

from pykcm import bpf, protocols
from pykcm.errors import (
    AssemblyError,
    AttachError,
    BPFError,
    CapabilityError,
    Disconnected,
    FramingDefinitionError,
    FramingError,
    KCMError,
    KCMOSError,
    MessageTruncated,
    UnavailableError,
    VerifierError,
)
from pykcm.framing import (
    CustomFraming,
    Delimiter,
    FixedLength,
    Framing,
    Layout,
    LengthField,
    Varint,
)
from pykcm.multiplexor import Multiplexor, Reason, TransportError, UnreadWarning
from pykcm.socket import KCMSocket, UnsentWarning

__version__ = "0.1.0"

__all__ = [
    "AssemblyError",
    "AttachError",
    "BPFError",
    "CapabilityError",
    "CustomFraming",
    "Delimiter",
    "Disconnected",
    "FixedLength",
    "Framing",
    "FramingDefinitionError",
    "FramingError",
    "KCMError",
    "KCMOSError",
    "KCMSocket",
    "Layout",
    "LengthField",
    "MessageTruncated",
    "Multiplexor",
    "Reason",
    "TransportError",
    "UnavailableError",
    "UnreadWarning",
    "UnsentWarning",
    "Varint",
    "VerifierError",
    "bpf",
    "protocols",
]
