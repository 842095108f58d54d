"""Build pykcm; everything but the compiled part is declared in pyproject.toml."""

import sys

from setuptools import setup

# AF_KCM exists on Linux only. Elsewhere the package still installs, so that importing it gives
# pykcm's own error instead of a compiler's.
setup(
    cffi_modules=["build_ffi.py:ffibuilder"] if sys.platform == "linux" else [],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
