"""The compiled module, or what stands for it where it cannot be: one place that imports it."""

from __future__ import annotations

import errno
import sys
from typing import TYPE_CHECKING, Any

from pykcm.errors import UnavailableError

if TYPE_CHECKING:
    from pykcm._native import ffi, lib
else:
    try:
        from pykcm._native import ffi, lib
    except ImportError as import_error:

        class _Missing:
            """Raises at the first use, so that importing pykcm works everywhere."""

            def __init__(self, cause: ImportError) -> None:
                self._cause = cause

            def __getattr__(self, name: str) -> Any:
                if sys.platform != "linux":
                    text = (
                        f"AF_KCM is a feature of Linux, and this platform is {sys.platform}; "
                        "run on Linux 4.6 or later"
                    )
                elif "subinterpreter" in str(self._cause):  # CPython's words, Python/import.c
                    text = (
                        f"pykcm can't be used in an interpreter with its own GIL ({self._cause}); "
                        "use it in the main one, in one that shares its GIL, or in a process"
                    )
                else:
                    text = (
                        f"pykcm's compiled module cannot be imported ({self._cause}); "
                        "install the package again, with a C compiler and the headers of Linux"
                    )
                raise UnavailableError(errno.ENOSYS, text) from self._cause

        ffi = lib = _Missing(import_error)

__all__ = ["ffi", "lib"]
