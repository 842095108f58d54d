"""The selftest as one file that needs nothing but Python: for a root file system with no more.

The file is a zip archive of pykcm's own modules, with the standard library's ctypes in the place of
the compiled part.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pykcm
from pykcm._files import put

_PACKAGE = Path(pykcm.__file__).parent

# What is in the file as it is here.
_MODULES = (
    "_explain.py",
    "_faults.py",
    "_files.py",
    "_loopback.py",
    "_module.py",
    "_offset.py",
    "_tcp.py",
    "_trials.py",
    "bpf/*.py",
    "errors.py",
    "selftest/*.py",
    "selftest/checks/*.py",
    "selftest/stress/*.py",
    "statistics.py",
)
# What the others are for, which need more.
_WITHOUT = {"bpf/elf.py", "selftest/export.py", "selftest/traffic.py"}

# What is in the place of another module.
_REPLACED = {
    "_binding.py": "selftest/portable/binding.py",
    "_kernel.py": "selftest/portable/kernel.py",
    "bpf/_helpers.py": "selftest/portable/helpers.py",
}
_PACKAGE_TEXT = f'__version__ = "{pykcm.__version__}"\n'
_MAIN = """\
import sys

from pykcm.selftest.command import main

sys.exit(main(sys.argv[1:], ("python3", sys.argv[0])))
"""

# So that the same modules make the same file.
_TIME = (1980, 1, 1, 0, 0, 0)


def write(path: str) -> None:
    """Write the file, executable; it is whole or not there, unless something else has that name.

    Raises:
        OSError: it can't be written.
    """
    content = io.BytesIO(b"#!/usr/bin/env python3\n")
    content.seek(0, io.SEEK_END)
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in sorted([("__main__.py", _MAIN), *modules()]):
            archive.writestr(zipfile.ZipInfo(name, _TIME), text, zipfile.ZIP_DEFLATED)
    put(content.getvalue(), path, 0o755)


def modules() -> Iterator[tuple[str, str]]:
    """The modules of a pykcm that is no more than the selftest, by ctypes: paths and texts."""
    yield "pykcm/__init__.py", _PACKAGE_TEXT
    for name, portable in _REPLACED.items():
        yield f"pykcm/{name}", (_PACKAGE / portable).read_text(encoding="utf-8")
    for pattern in _MODULES:
        for path in _PACKAGE.glob(pattern):
            name = str(path.relative_to(_PACKAGE))
            if name not in _WITHOUT and name not in _REPLACED:
                yield f"pykcm/{name}", path.read_text(encoding="utf-8")
