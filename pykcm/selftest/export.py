"""The selftest as one file that needs nothing but Python: for a root file system with no more.

The file is a zip archive of pykcm's own modules, with the standard library's ctypes in the place of
the compiled part.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pykcm

_PACKAGE = Path(pykcm.__file__).parent

# What is in the file as it is here.
_MODULES = (
    "_faults.py",
    "_features.py",
    "_loopback.py",
    "_offset.py",
    "bpf/assembler.py",
    "bpf/instructions.py",
    "bpf/system.py",
    "errors.py",
    "statistics.py",
)
_SELFTEST = ("*.py", "checks/*.py", "stress/*.py")
# What the others are for, which need more.
_WITHOUT = ("export.py", "traffic.py")

# What is in the place of another module.
_REPLACED = {
    "_binding.py": "binding.py",
    "_kernel.py": "kernel.py",
    "bpf/helpers.py": "helpers.py",
    "bpf/program.py": "program.py",
}
_MAIN = """\
import sys

from pykcm.selftest.command import main

sys.exit(main(sys.argv[1:], ("python3", sys.argv[0])))
"""
_WRITTEN = {
    "pykcm/__init__.py": f'__version__ = "{pykcm.__version__}"\n',
    "pykcm/bpf/__init__.py": "from pykcm.bpf.program import Program\n",
}

# So that the same modules make the same file.
_TIME = (1980, 1, 1, 0, 0, 0)


def write(path: str) -> None:
    """Write the file, executable; it is whole or not there.

    Raises:
        OSError: it can't be written.
    """
    content = io.BytesIO(b"#!/usr/bin/env python3\n")
    content.seek(0, io.SEEK_END)
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in sorted([("__main__.py", _MAIN), *modules()]):
            archive.writestr(zipfile.ZipInfo(name, _TIME), text, zipfile.ZIP_DEFLATED)
    target = Path(path)
    new = target.parent / f".{target.name}.{os.getpid()}"
    try:
        new.write_bytes(content.getvalue())
        new.chmod(0o755)
        new.replace(target)
    finally:
        new.unlink(missing_ok=True)


def modules() -> Iterator[tuple[str, str]]:
    """The modules of a pykcm that is no more than the selftest, by ctypes: paths and texts."""
    yield from _WRITTEN.items()
    for name in _MODULES:
        yield f"pykcm/{name}", _text(_PACKAGE / name)
    for name, portable in _REPLACED.items():
        yield f"pykcm/{name}", _text(_PACKAGE / "selftest/portable" / portable)
    for pattern in _SELFTEST:
        for path in (_PACKAGE / "selftest").glob(pattern):
            if path.name not in _WITHOUT:
                yield f"pykcm/{path.relative_to(_PACKAGE)}", _text(path)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
