"""Linux's Kernel Connection Multiplexor (AF_KCM) for Python."""

__version__ = "0.1.0"
