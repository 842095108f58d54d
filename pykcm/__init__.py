"""Linux's Kernel Connection Multiplexor (AF_KCM) for Python."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pykcm import bpf, protocols, statistics
    from pykcm._disconnection import Disconnection, Reason
    from pykcm._offset import Strategy, find_strategy
    from pykcm._requests import Stray, StrayReason
    from pykcm.errors import (
        ArgumentError,
        AssemblyError,
        AttachError,
        BPFError,
        CapabilityError,
        ConnectFailed,
        Disconnected,
        FramingDefinitionError,
        FramingError,
        KCMError,
        KCMOSError,
        MessageCut,
        MessageTruncated,
        OutcomeUnknown,
        UnavailableError,
        UnreadWarning,
        UnsentWarning,
        VerifierError,
    )
    from pykcm.exchange import Exchange
    from pykcm.framing import (
        CustomFraming,
        Delimiter,
        FixedLength,
        Framing,
        Layout,
        LengthField,
        Varint,
    )
    from pykcm.multiplexor import Multiplexor
    from pykcm.pool import Pool
    from pykcm.socket import KCMSocket

__version__ = "0.1.0"

#: Hold a message back until the next send without it (include/linux/socket.h).
MSG_BATCH = 0x40000

# Where each public name comes from; loaded when it is first used.
_SOURCES = {
    "pykcm": ("bpf", "protocols", "statistics"),
    "pykcm._offset": ("Strategy", "find_strategy"),
    "pykcm._disconnection": ("Disconnection", "Reason"),
    "pykcm._requests": ("Stray", "StrayReason"),
    "pykcm.errors": (
        "ArgumentError",
        "AssemblyError",
        "AttachError",
        "BPFError",
        "CapabilityError",
        "ConnectFailed",
        "Disconnected",
        "FramingDefinitionError",
        "FramingError",
        "KCMError",
        "KCMOSError",
        "MessageCut",
        "MessageTruncated",
        "OutcomeUnknown",
        "UnavailableError",
        "UnreadWarning",
        "UnsentWarning",
        "VerifierError",
    ),
    "pykcm.exchange": ("Exchange",),
    "pykcm.framing": (
        "CustomFraming",
        "Delimiter",
        "FixedLength",
        "Framing",
        "Layout",
        "LengthField",
        "Varint",
    ),
    "pykcm.multiplexor": ("Multiplexor",),
    "pykcm.pool": ("Pool",),
    "pykcm.socket": ("KCMSocket",),
}
_MODULES = {name: module for module, names in _SOURCES.items() for name in names}

__all__ = [
    "MSG_BATCH",
    "ArgumentError",
    "AssemblyError",
    "AttachError",
    "BPFError",
    "CapabilityError",
    "ConnectFailed",
    "CustomFraming",
    "Delimiter",
    "Disconnected",
    "Disconnection",
    "Exchange",
    "FixedLength",
    "Framing",
    "FramingDefinitionError",
    "FramingError",
    "KCMError",
    "KCMOSError",
    "KCMSocket",
    "Layout",
    "LengthField",
    "MessageCut",
    "MessageTruncated",
    "Multiplexor",
    "OutcomeUnknown",
    "Pool",
    "Reason",
    "Strategy",
    "Stray",
    "StrayReason",
    "UnavailableError",
    "UnreadWarning",
    "UnsentWarning",
    "Varint",
    "VerifierError",
    "bpf",
    "find_strategy",
    "protocols",
    "statistics",
]


def __getattr__(name: str) -> object:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module 'pykcm' has no attribute {name!r}")
    from importlib import import_module

    value: object
    if module == "pykcm":
        value = import_module(f"pykcm.{name}")
    else:
        value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
