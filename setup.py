# SPDX-License-Identifier: MIT
"""Build pykcm; everything but the compiled parts is declared in pyproject.toml."""

import gzip
import os
import sys
import sysconfig
import tarfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.sdist import sdist

# One build serves every Python from 3.10 on.  A free-threaded one has no such stable ABI: there
# the build is for that Python alone.
STABLE_ABI = not sysconfig.get_config_var("Py_GIL_DISABLED")

# The fast path is an addition: where its C can't be compiled Python does the same.
FAST_PATH = Extension(
    "pykcm._fastpath",
    ["pykcm/_fastpath.c", "pykcm/_delineate.c"],
    depends=["pykcm/_fastpath_docs.h", "pykcm/_delineate.h", "pykcm/_serving.h"],
    define_macros=[
        ("_GNU_SOURCE", None),
        *([("Py_LIMITED_API", "0x030A0000")] if STABLE_ABI else []),
    ],
    extra_compile_args=[
        "-O2",
        # Debug information says where the source was: that must not depend on where it is built.
        f"-ffile-prefix-map={Path.cwd()}=.",
        "-Wall",
        "-Wextra",
        "-Wno-unused-parameter",
        "-Wno-missing-field-initializers",
    ],
    py_limited_api=STABLE_ABI,
    optional=True,
)


class SourceDistribution(sdist):  # type: ignore[misc]  # setuptools has no types here
    """The archive, whose bytes depend on the files alone if SOURCE_DATE_EPOCH is given.

    setuptools makes the wheel so by itself, but not this.
    """

    def make_archive(
        self,
        base_name: str,
        format: str,
        root_dir: str | None = None,
        base_dir: str | None = None,
        owner: str | None = None,
        group: str | None = None,
    ) -> str:
        epoch = os.environ.get("SOURCE_DATE_EPOCH")
        if epoch is None or format != "gztar" or base_dir is None:
            return str(super().make_archive(base_name, format, root_dir, base_dir, owner, group))

        def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
            member.mtime = int(epoch)
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            return member

        path = Path(f"{base_name}.tar.gz")
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            path.open("wb") as file,
            gzip.GzipFile("", "wb", mtime=int(epoch), fileobj=file) as zipped,
        ):
            with tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive:
                archive.add(base_dir, filter=plain)
        return str(path)


# AF_KCM exists on Linux only. Elsewhere the package still installs, so that importing it gives
# pykcm's own error instead of a compiler's.
LINUX = sys.platform == "linux"

# PyPy's C API lacks a part of what the fast path needs: that would compile, but not be imported.
CPYTHON = sys.implementation.name == "cpython"

setup(
    cmdclass={"sdist": SourceDistribution},
    cffi_modules=["build_ffi.py:ffibuilder"] if LINUX else [],
    ext_modules=[FAST_PATH] if LINUX and CPYTHON else [],
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if STABLE_ABI else {},
)
