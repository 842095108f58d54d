"""Build pykcm; everything but the compiled part is declared in pyproject.toml."""

import sys
import sysconfig
from typing import Any

from setuptools import Extension, setup

# One build serves every Python from 3.10 on.  A free-threaded one has no such stable ABI: there
# the build is for that Python alone.
STABLE_ABI: dict[str, Any] = {
    "py_limited_api": True,
    "define_macros": [("Py_LIMITED_API", "0x030A0000")],
}
if sysconfig.get_config_var("Py_GIL_DISABLED"):
    STABLE_ABI = {}

# AF_KCM exists on Linux only. Elsewhere the package still installs, so that importing it gives
# pykcm's own error instead of a compiler's.
LINUX = sys.platform == "linux"
EXTENSIONS: list[Extension] = []

setup(
    cffi_modules=["build_ffi.py:ffibuilder"] if LINUX else [],
    ext_modules=EXTENSIONS if LINUX else [],
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if STABLE_ABI else {},
)
