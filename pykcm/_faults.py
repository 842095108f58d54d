"""How the kernel tells of a fault of its own: in its log, and by the taint that stays until reboot.

Neither alone is enough. A taint is never lost, but many reports leave none (UBSAN, lockdep, KCSAN,
kmemleak, hung tasks, RCU stalls), and a second fault of a kind adds none. A line can be pushed out
of the log.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

_TAINTED = Path("/proc/sys/kernel/tainted")
_KMSG = Path("/dev/kmsg")

# What note() writes before a check's name, and in its place when no check runs any more.
NOTE = "pykcm: the check that runs: "
NONE = "none"

# What a line of the log begins with: the level, as in /dev/kmsg or from `dmesg --raw` or --decode;
# the time, as of any `dmesg --time-format`, in the journal with the machine; the caller.
_PREFIX = re.compile(
    r"""
    (?: \d+,\d+,\d+,[^;]*; | <\d+>
      | (?:kern|user|daemon|syslog)[ ]*:(?:emerg|alert|crit|err|warn|notice|info|debug)[ ]*:[ ] )?
    (?: \[[ ]*\+?[\d.]+\][ ]?
      | \[\w{3}[ ]\w{3}[ ][\d ]\d[ ][\d:]{8}[ ]\d{4}\][ ]
      | (?: \d{4}-\d\d-\d\dT[\d:]{8}(?:[.,]\d+)?[+-][\d:]{4,5}
          | \w{3}[ ][\d ]\d[ ][\d:]{8}(?:\.\d+)? )
        [ ](?: \S+[ ]kernel:[ ] )? )?
    (?: \[[ ]*[TC]\d+\][ ]? )?
    """,
    re.VERBOSE,
)

# Of a message without its prefix. It may begin with the name of a part, such as "watchdog: ".
_FAULT = re.compile(
    r"""
    ^-+\[\ cut\ here\ \]-+              # before each WARN and BUG, whatever their wording
  | ^WARNING:\ | \bWARNING:\ (?:CPU|possible)\b
  | \bBUG:\                             # also KASAN, KCSAN, KFENCE, soft lockup, Bad page state
  | \bBUG\ \S+\ \((?:Not\ t|T)ainted    # SLUB
  | \b[kK]ernel\ BUG\ at\b
  | \[\#\d+\]                           # the count of oopses, at the end of an oops' first line
  | \bOops\b
  | ^general\ protection\ fault         # a process's is "traps: python3[17] general..."
  | \bUnable\ to\ handle\ kernel\       # arm64, s390x
  | \bKernel\ panic\b | ^PANIC:\ | \bKernel\ stack\ (?:overflow|is\ corrupted)
  | ^KASAN:\ | \bkernel\ tried\ to\ execute\b
  | ^refcount_t:\ | \blist_(?:add|del)\ (?:double\ add|corruption)
  | ^UBSAN:\ | ^ODEBUG:\ | ^DEBUG_LOCKS_WARN_ON
  | \bkmemleak:\ \d+\ new\ suspected\ memory\ leak
  | \bblocked\ (?:for\ more\ than|in\ I/O\ wait\ for\ more\ than)\ \d+\ seconds
  | \b(?:self-)?detected\ (?:expedited\ )?stalls?\b | \brcu.*\ kthread\ (?:starved|timer\ wakeup)
  | \bhard\ LOCKUP\b
  | ^INFO:\ (?:trying\ to\ register\ non-static\ key|suspicious\ RCU)
  | \bunregister_netdevice:\ waiting\ for\b | \bref_tracker:\ .*\ has\ \d+/\d+\ users
  | \bAttempt\ to\ release\ (?:alive\ inet|TCP)\ socket
  | ^huh,\ entered\ softirq\ | \bfasync\ list\ not\ empty
  | \busercopy:\ Kernel\ memory\ (?:exposure|overwrite)
    """,
    re.VERBOSE,
)

# Taints that a running kernel gets by a fault: Documentation/admin-guide/tainted-kernels.rst. The
# others are told of what was loaded or asked for, such as a module built out of the tree.
_TAINTS = {
    4: "machine check (M)",
    5: "bad page, or memory used wrongly (B)",
    7: "oops or BUG (D)",
    9: "warning (W)",
    14: "soft lockup (L)",
}


def message(line: str) -> str:
    """A line of the kernel's log without level, time and caller."""
    return line[_PREFIX.match(line).end() :].rstrip("\n")  # type: ignore[union-attr]


def faults(lines: Iterable[str]) -> list[str]:
    """Those lines of the kernel's log that tell of a fault of the kernel, as they are.

    Args:
        lines: as /dev/kmsg, `dmesg`, `dmesg --raw` or the console have them.
    """
    return [line for line in lines if _FAULT.search(message(line))]


def tainted() -> int:
    """The kernel's taint, a bit for each kind: proc_sys_kernel(5).

    Raises:
        OSError: /proc is not mounted.
    """
    return int(_TAINTED.read_text(encoding="ascii"))


def new_taints(before: int, now: int) -> list[str]:
    """The faults by which a taint has become another one, by name."""
    return [name for bit, name in _TAINTS.items() if (now & ~before) >> bit & 1]


def note(check: str) -> None:
    """Say in the kernel's log which check runs, for those who read what a dead kernel said last.

    Where that may not be written, nothing happens.
    """
    with contextlib.suppress(OSError):
        # Opened for each: what is written by one descriptor is limited to 10 lines in 5 s. The
        # level is one that a guest's console shows.
        log = os.open(_KMSG, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(log, f"<4>{NOTE}{check}\n".encode())
        finally:
            os.close(log)


class Watch:
    """The kernel's faults from now on.

    Attributes:
        blind: why the log can't be read, so that only taints are seen; empty if it can.
    """

    def __init__(self) -> None:
        """Begin to watch.

        Raises:
            OSError: /proc is not mounted.
        """
        self.blind = ""
        self._taint = tainted()
        self._log = -1
        try:
            self._log = os.open(_KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._log, 0, os.SEEK_END)
        except OSError as error:
            self.blind = f"the kernel's log can't be read: {error}"

    def faults(self) -> list[str]:
        """What the kernel has told since it was asked last: lines of its log, then taints."""
        before, self._taint = self._taint, tainted()
        return faults(self._lines()) + [
            f"the kernel became tainted: {name}" for name in new_taints(before, self._taint)
        ]

    def close(self) -> None:
        """Stop watching."""
        if self._log >= 0:
            os.close(self._log)
            self._log = -1

    def _lines(self) -> list[str]:
        lines: list[str] = []
        while self._log >= 0:
            try:
                record = os.read(self._log, 8192)
            except BlockingIOError:
                break
            except BrokenPipeError:  # lines were overwritten before they were read
                continue
            if not record:
                break
            # What follows the first line are the device's properties.  The first number has the
            # level in its lowest three bits; where others are set, user space wrote this.
            if int(record.partition(b",")[0]) < 8:
                lines.append(record.decode("utf-8", "replace").partition("\n")[0])
        return lines
