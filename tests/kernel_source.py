"""The tools that are in a kernel's source tree, read there and not copied."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest


def kernel_source() -> Path:
    """The tree of a kernel, for its tools."""
    for place in (os.environ.get("PYKCM_KERNEL_SOURCE", ""), ".cache/linux-src"):
        if place and (Path(place) / "tools/testing/kunit").is_dir():
            return Path(place).absolute()
    pytest.skip(
        "no kernel's source is here: run `make kernel`, or unpack Debian's linux-source and set "
        "PYKCM_KERNEL_SOURCE (docs/selftest.md says how)"
    )


def kernel_module(path: str) -> ModuleType:
    """A Python module of the kernel's tools."""
    file = kernel_source() / path
    sys.path.insert(0, str(file.parent))
    try:
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[file.stem] = module  # its dataclasses look there
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(file.parent))


def selftests_library(target: Path) -> None:
    """Give a tree of selftests the Python library of the network ones, without its netlink."""
    library = target / "net/lib/py"
    library.mkdir(parents=True)
    for name in ("consts.py", "ksft.py", "utils.py"):
        shutil.copy(kernel_source() / "tools/testing/selftests/net/lib/py" / name, library)
    (library / "__init__.py").write_text("from .ksft import *\n", encoding="ascii")
