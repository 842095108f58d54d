"""What the reader of a report must know about the run: pykcm, command, kernel and machine."""

from __future__ import annotations

import os
import platform
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from pykcm import __version__, _faults, _module
from pykcm.selftest import versions

_MACHINE = ("/sys/class/dmi/id/product_name", "/proc/device-tree/model")

# The options that decide what KCM does, and what is seen of its faults.
_OPTIONS = re.compile(
    r"^CONFIG_(AF_KCM|STREAM_PARSER|BPF_JIT|BPF_EVENTS|PREEMPT\w*|KASAN|KCSAN|KMSAN|UBSAN|KFENCE"
    r"|PROVE_LOCKING|DEBUG_ATOMIC_SLEEP|DEBUG_KMEMLEAK|SLUB_DEBUG_ON|DEBUG_NET|FAULT_INJECTION"
    r"|GCOV_KERNEL)=(\w+)$",
    re.MULTILINE,
)


def collect(command: Sequence[str]) -> dict[str, str]:
    """The facts by name, for the head of a report.

    Args:
        command: the command line, as its words.
    """
    name = os.uname()
    facts = {
        "pykcm": f"{__version__}, Python {platform.python_version()}",
        "command": shlex.join(command),
        "kernel": f"{name.sysname} {name.release} {name.version} {name.machine}",
        "kernel version": ".".join(map(str, versions.running())),
        "machine": _machine(),
        "kernel command line": _text("/proc/cmdline"),
        **_faults_seen(),
        "config": " ".join(f"{option}={value}" for option, value in _config()),
    }
    return {fact: text for fact, text in facts.items() if text}


def _machine() -> str:
    model = next((text for path in _MACHINE if (text := _text(path))), "")
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    parts = [model, f"{os.cpu_count()} CPU", f"{pages / (1 << 30):.1f} GiB"]
    return ", ".join(part for part in parts if part)


def _faults_seen() -> dict[str, str]:
    """The taint, and how a fault of the kernel's is seen where that is not by its log."""
    try:
        taint, watch = _faults.tainted(), _faults.Watch()
    except OSError as error:
        return {"taint": f"unknown, and no fault of the kernel is seen: {error}"}
    watch.close()
    names = _faults.new_taints(0, taint)
    said = f", by a fault of this kernel before: {', '.join(names)}" if names else ""
    return {"taint": f"{taint}{said}", "faults are seen by taint only": watch.blind}


def _config() -> list[tuple[str, str]]:
    """The options of the kernel's configuration, where it is shown."""
    return _OPTIONS.findall(_module.configuration())


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""
