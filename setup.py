"""Build pykcm; everything but the compiled parts is declared in pyproject.toml."""

import sys
import sysconfig

from setuptools import Extension, setup

# One build serves every Python from 3.10 on.  A free-threaded one has no such stable ABI: there
# the build is for that Python alone.
STABLE_ABI = not sysconfig.get_config_var("Py_GIL_DISABLED")

# The fast path is an addition: where its C can't be compiled, as on PyPy, Python does the same.
FAST_PATH = Extension(
    "pykcm._fastpath",
    ["pykcm/_fastpath.c", "pykcm/_delineate.c"],
    depends=["pykcm/_fastpath_docs.h", "pykcm/_delineate.h"],
    define_macros=[
        ("_GNU_SOURCE", None),
        *([("Py_LIMITED_API", "0x030A0000")] if STABLE_ABI else []),
    ],
    extra_compile_args=[
        "-O2",
        "-Wall",
        "-Wextra",
        "-Wno-unused-parameter",
        "-Wno-missing-field-initializers",
    ],
    py_limited_api=STABLE_ABI,
    optional=True,
)

# AF_KCM exists on Linux only. Elsewhere the package still installs, so that importing it gives
# pykcm's own error instead of a compiler's.
LINUX = sys.platform == "linux"

setup(
    cffi_modules=["build_ffi.py:ffibuilder"] if LINUX else [],
    ext_modules=[FAST_PATH] if LINUX else [],
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if STABLE_ABI else {},
)
