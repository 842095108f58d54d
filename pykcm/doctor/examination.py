"""The order in which things are tried, and what of a failure keeps the rest from being tried."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pykcm import _binding
from pykcm.doctor import _holes, _limits, _programs, _sockets, _traffic
from pykcm.doctor._errors import want
from pykcm.doctor.finding import Finding, problem, unknown
from pykcm.doctor.situation import Situation
from pykcm.doctor.system import System
from pykcm.errors import KCMError, UnavailableError
from pykcm.framing import Framing

Look = Callable[[Situation], Iterable[Finding]]

# Each may use what those before it have put into the Situation.
_LOOKS: tuple[tuple[str, Look], ...] = (
    ("socket", _sockets.socket),
    ("bpf call", _programs.call),
    ("program", _programs.program),
    ("token", _programs.token),
    ("capabilities", _programs.capabilities),
    ("loopback", _traffic.loopback),
    ("offset", _programs.offset),
    ("lockdown", _programs.lockdown),
    ("jit", _programs.jit),
    ("bpf file system", _programs.file_system),
    ("messages", _traffic.messages),
    ("framing", _traffic.framing),
    ("clone", _traffic.clone),
    ("kernel tls", _traffic.kernel_tls),
    ("longest message", _limits.longest_message),
    ("locked memory", _limits.locked_memory),
    ("descriptors", _limits.descriptors),
    ("taint", _holes.taint),
    ("known holes", _holes.holes),
)


def examine(framing: Framing | None = None, system: System | None = None) -> list[Finding]:
    """Find out whether KCM can be used here, by this process.

    It takes well under a second on a machine of today.  It changes nothing that stays: a pin in
    the BPF file system is removed again.  Opening a KCM socket loads the module.

    Args:
        framing: whose program is to be loaded and attached too.
        system: where files are read; this system's by default.
    """
    situation = Situation(system or System(), framing)
    try:
        _binding.lib.AF_KCM  # noqa: B018 - raises where the compiled module is missing
    except UnavailableError as error:
        return [problem("pykcm", str(error), "pip install --force-reinstall pykcm")]
    findings: list[Finding] = []
    for name, look in _LOOKS:
        try:
            findings += look(situation)
        except (KCMError, OSError) as error:
            number = error.errno if isinstance(error, OSError) else None
            findings.append(want(name, number) or unknown(name, f"looking at it failed: {error}"))
    return findings
