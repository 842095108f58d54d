"""What files of /proc, /sys and /etc say: the only place where the examination reads them."""

from __future__ import annotations

from pathlib import Path

# The kernel's prctl.h: what "Seccomp" in /proc/PID/status can be.
_SECCOMP_OFF = "0"


class System:
    """The files below a root.

    Args:
        root: another directory than / for what is only read, for tests.
    """

    def __init__(self, root: str = "/") -> None:
        self.root = root

    def read(self, path: str) -> str | None:
        """A file's text without what is blank around it; None if it can't be read."""
        try:
            text = (Path(self.root) / path.lstrip("/")).read_text(
                encoding="utf-8", errors="replace"
            )
        except OSError:
            return None
        return text.strip()

    def exists(self, path: str) -> bool:
        """Whether there is such a path."""
        return (Path(self.root) / path.lstrip("/")).exists()

    def status(self, name: str) -> str:
        """A line of /proc/self/status; empty if there is none."""
        for line in (self.read("/proc/self/status") or "").splitlines():
            key, _, value = line.partition(":")
            if key == name:
                return value.strip()
        return ""

    def distribution(self) -> dict[str, str]:
        """os-release(5)."""
        text = self.read("/etc/os-release") or self.read("/usr/lib/os-release") or ""
        pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
        return {key: value.strip("\"'") for key, _, value in pairs}

    def lockdown(self) -> str:
        """The kernel's lockdown: "none", "integrity", "confidentiality"; empty if not shown."""
        text = self.read("/sys/kernel/security/lockdown") or ""
        return text.partition("[")[2].partition("]")[0]

    def has_seccomp_filter(self) -> bool | None:
        """Whether this process has one; None if it isn't shown."""
        mode = self.status("Seccomp")
        return mode != _SECCOMP_OFF if mode else None
