"""The kernel's module kcm: whether it can be loaded, as the files of the system tell it."""

from __future__ import annotations

import enum
import gzip
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_MODPROBE = (
    "/etc/modprobe.d",
    "/run/modprobe.d",
    "/usr/local/lib/modprobe.d",
    "/usr/lib/modprobe.d",
    "/lib/modprobe.d",
)  # modprobe.d(5)


class State(enum.Enum):
    """What /lib/modules says of the module, for the running kernel."""

    BUILT_IN = "built in"
    THERE = "there"
    MISSING = "listed, but its file is missing"
    NOT_LISTED = "not among the kernel's modules"
    NO_MODULES = "there are no modules for this kernel"


class Look(NamedTuple):
    """What was found.

    Attributes:
        state: of the module's file.
        forbidden: where it is written that the module must not be loaded; empty if nowhere.
        option: CONFIG_AF_KCM as the kernel was built: "y", "m", "n"; empty if it is not shown.
    """

    state: State
    forbidden: str
    option: str


def look(root: str = "/") -> Look:
    """Look for the module and for what forbids it.

    Args:
        root: the directory in which etc, lib and proc are looked for.
    """
    base = Path(root)
    where = forbidden(
        tuple(str(base / directory[1:]) for directory in _MODPROBE), str(base / "proc/cmdline")
    )
    return Look(_state(base / "lib/modules" / os.uname().release), where or "", _option(root))


def configuration(root: str = "/") -> str:
    """The options with which the running kernel was built, a line each; empty if not shown."""
    release = os.uname().release
    base = Path(root)
    try:
        packed = (base / "proc/config.gz").read_bytes()
        return gzip.decompress(packed).decode("ascii", "replace")
    except OSError:
        pass
    for name in (f"boot/config-{release}", f"lib/modules/{release}/config"):
        try:
            return (base / name).read_text(encoding="ascii", errors="replace")
        except OSError:
            continue
    return ""


def _option(root: str) -> str:
    text = configuration(root)
    found = re.search(r"^CONFIG_AF_KCM=(\w)$", text, re.MULTILINE)
    if found:
        return found[1]
    return "n" if "# CONFIG_AF_KCM is not set" in text or "\nCONFIG_NET=y" in text else ""


def _state(modules: Path) -> State:
    if not modules.exists():
        return State.NO_MODULES
    for name in ("modules.builtin", "modules.dep"):
        try:
            text = (modules / name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        found = re.search(r"^(\S*/kcm\.ko\S*?):?(?:\s|$)", text, re.MULTILINE)
        if found and name == "modules.builtin":
            return State.BUILT_IN
        if found:
            return State.THERE if (modules / found[1]).exists() else State.MISSING
    return State.NOT_LISTED


def forbidden(
    directories: tuple[str, ...] = _MODPROBE, command_line: str = "/proc/cmdline"
) -> str | None:
    """Where it is written that the module kcm must not be loaded; None if nowhere."""
    for path in _files(directories):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split("#")[0].split()
            if words[:2] in (["blacklist", "kcm"], ["install", "kcm"]) or words[:3] == [
                *("alias", "net-pf-41", "off")
            ]:
                return f"{path}:{number}"
    try:
        options = Path(command_line).read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return None
    for option in options:
        name, _, modules = option.partition("=")
        if name in ("module_blacklist", "modprobe.blacklist") and "kcm" in modules.split(","):
            return f"the kernel's command line ({option})"
    return None


def _files(directories: tuple[str, ...]) -> Iterator[Path]:
    for directory in directories:
        yield from sorted(Path(directory).glob("*.conf"))
