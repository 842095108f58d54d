"""Programs in the kernel: loading, running, pinning them (bpf(2), socket filters)."""

from __future__ import annotations

import errno
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pykcm._binding import ffi, lib
from pykcm.bpf import assembler, elf, functions, system, verifier
from pykcm.bpf import instructions as isa
from pykcm.bpf.disassembler import disassemble_slot
from pykcm.errors import BPFError, UnavailableError, VerifierError

_NAME = re.compile(r"[A-Za-z0-9_.]{0,15}", re.ASCII)  # kernel/bpf/syscall.c, bpf_obj_name_cpy
_LICENSE_LIMIT = 127  # the kernel cuts a longer one off without a word
_ATTEMPTS = 100  # the verifier gives up with EAGAIN when a signal is pending
_UNPRIVILEGED_INSTRUCTIONS = 4096  # BPF_MAXINSNS, include/uapi/linux/bpf_common.h

_LOG_SIZES = (1 << 20, (1 << 24) - 1)  # the second is the most that every kernel takes

# BPF_PROG_TEST_RUN takes an Ethernet header off the data (net/bpf/test_run.c).  This one's type
# is for local experiments, so that the kernel looks for no IP header behind it.
_ETHERNET_HEADER = bytes(12) + b"\x88\xb5"


@dataclass(frozen=True)
class ProgramInfo:
    """What the kernel says about a program (struct bpf_prog_info).

    Attributes:
        id: the program's number, unique while it lives.
        type: BPF_PROG_TYPE_*: 1 is a socket filter.
        tag: a hash of the instructions, 16 hexadecimal digits.
        name: the name it was loaded with, up to 15 characters.
        translated_size: bytes of the instructions as the kernel rewrote them; 0 for a process
            without CAP_BPF.
        jited_size: bytes of machine code; 0 without the just-in-time compiler or CAP_BPF.
        load_time: when it was loaded, in nanoseconds since boot.
        verified_instructions: how many the verifier looked at; 0 before Linux 5.16.
    """

    id: int
    type: int
    tag: str
    name: str
    translated_size: int
    jited_size: int
    load_time: int
    verified_instructions: int


class RunResult(int):
    """What a program returned: an int, signed, as KCM takes it (0xffffffa6 is -90).

    Attributes:
        duration_ns: the mean time of a run in nanoseconds, as the kernel measured it.
    """

    duration_ns: int

    def __new__(cls, value: int, duration_ns: int) -> RunResult:
        result = super().__new__(cls, value)
        result.duration_ns = duration_ns
        return result

    def __reduce__(self) -> tuple[type[RunResult], tuple[int, int]]:
        return type(self), (int(self), self.duration_ns)


class Program:
    """A BPF program in the kernel, held by a descriptor that is close-on-exec.

    Made by `load`, `from_elf` or `from_pin`.  It lives until the descriptor is closed and no
    socket and no pin uses it.  Use it in a `with` block, or call `close`.
    """

    def __init__(self, fd: int) -> None:
        """Take over a program's descriptor: closing it is the Program's business from now on."""
        self._fd = fd

    @classmethod
    def load(
        cls,
        code: str | bytes,
        /,
        license: str = "Dual MIT/GPL",
        name: str = "pykcm",
        *,
        functions_take: int | None = None,
        **symbols: int | str,
    ) -> Program:
        """Load a socket filter.

        Args:
            code: BPF text, or instructions of the host's byte order.
            license: what the program is licensed under, up to 127 bytes.  Some helpers,
                bpf_probe_read_kernel among them, are for GPL-compatible programs only.
            name: for people to recognise it by: up to 15 letters, digits, '_' and '.'.
            functions_take: lets the verifier look at the functions that the program calls once,
                each on its own, instead of at every call.  All take the same and return a number:
                0 for five numbers of which nothing is known, or N for a pointer to N bytes of
                the stack, which they must compare with 0.  Needs Linux 5.6, a pointer 5.12.
            symbols: constants and macros for the text, as in `assemble`.

        Raises:
            AssemblyError: the text or the length of the code is wrong.
            VerifierError: the kernel refused the program; the error has the log.
            CapabilityError: (EPERM) this process may not load programs.
            UnavailableError: (ENOSYS) this kernel or platform has no bpf(2).
            BPFError: something else, with its errno; EINVAL for a bad name or licence.
        """
        text, lines = "", []
        if isinstance(code, str):
            text = code
            assembly = assembler.translate(code, symbols)
            code, lines = assembly.code, assembly.lines
        elif symbols:
            raise TypeError("symbols are for text; the code is instructions already")
        isa.decode(code)
        licence = license.encode()
        if len(licence) > _LICENSE_LIMIT or b"\0" in licence:
            raise BPFError(
                errno.EINVAL,
                f"the licence has {len(licence)} bytes: up to {_LICENSE_LIMIT} and no NUL are "
                "possible",
            )
        if not _NAME.fullmatch(name):
            raise BPFError(
                errno.EINVAL,
                f"the program's name {name[:40]!r} is not up to 15 letters, digits, '_' and '.'",
            )
        return cls(_load(bytes(code), licence, name, text, lines, functions_take))

    @classmethod
    def from_elf(cls, path: str | os.PathLike[str], section: str | None = None) -> Program:
        """Load the program of an object that `clang -target bpf` wrote.  Needs pyelftools.

        Its licence is what the object's section "license" says, its name the function's.

        Args:
            path: the object file.
            section: the program's section; by default "socket", "socket_kcm" or "socket/…".

        Raises:
            BPFError: the file can't be read (its errno), is no BPF object for this host (ENOEXEC),
                has no such section or more than one (ENOENT, EINVAL), or has something in it that
                pykcm does not support (EOPNOTSUPP): maps, global variables, functions elsewhere.
            UnavailableError: (ENOPKG) pyelftools is missing; (ENOSYS) no bpf(2).
            VerifierError, CapabilityError: as of `load`.
        """
        found = elf.read(path, section)
        return cls.load(found.code, found.license, found.name)

    @classmethod
    def from_pin(cls, path: str | os.PathLike[str]) -> Program:
        """Open a program that was pinned.  Needs no capability but to read and write the file.

        (Before Linux 5.19 it needs what loading needs.)

        Raises:
            BPFError: nothing is there (ENOENT), or no program (EINVAL, EACCES).
            CapabilityError: (EPERM) this process may not.
            UnavailableError: (ENOSYS) this kernel or platform has no bpf(2).
        """
        where = os.fspath(path)
        result = _retried(lambda: lib.pykcm_bpf_get(_path(where)))
        if result < 0:
            raise _pin_error(-result, where, f"opening the pinned program {where}")
        program = cls(result)
        try:
            kind = str(Path(f"/proc/self/fd/{result}").readlink())
        except OSError:
            return program  # no /proc to ask; what the descriptor is shows when it is used
        if not kind.endswith("bpf-prog"):
            program.close()
            raise BPFError(errno.EINVAL, f"{where} is no program but {kind}")
        return program

    @property
    def fd(self) -> int:
        """The descriptor.

        Raises:
            ValueError: the Program is closed.
        """
        if self._fd < 0:
            raise ValueError("the program is closed")
        return self._fd

    def fileno(self) -> int:
        """The descriptor, as `fd`."""
        return self.fd

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._fd < 0

    def close(self) -> None:
        """Close the descriptor.  A second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    @property
    def info(self) -> ProgramInfo:
        """What the kernel says about the program.

        Raises:
            BPFError: the descriptor is none of a program.
        """
        raw = self._info()
        return ProgramInfo(
            id=raw.id,
            type=raw.type,
            tag=bytes(raw.tag).hex(),
            name=ffi.string(raw.name).decode("ascii", "replace"),
            translated_size=raw.xlated_prog_len,
            jited_size=raw.jited_prog_len,
            load_time=raw.load_time,
            verified_instructions=raw.verified_insns,
        )

    def translated(self) -> bytes:
        """The instructions as the kernel rewrote them: context fields are offsets in its structs.

        Empty for a process without CAP_BPF.

        Raises:
            BPFError: the descriptor is none of a program.
        """
        size = self._info().xlated_prog_len
        if not size:
            return b""
        room = ffi.new("uint8_t[]", size)
        self._info(room, size)
        return bytes(ffi.buffer(room))

    def _info(self, translated: Any = None, size: int = 0) -> Any:
        """struct bpf_prog_info; the translated instructions go to where the caller wants them."""
        raw = ffi.new("struct bpf_prog_info *")
        if translated is not None:
            raw.xlated_prog_insns = int(ffi.cast("uintptr_t", translated))
            raw.xlated_prog_len = size
        fd = self.fd
        result = _retried(lambda: lib.pykcm_bpf_info(fd, raw))
        if result == -errno.EPERM:
            raise system.denied("asking about the BPF program")
        if result < 0:
            raise BPFError(-result, f"asking about the program of descriptor {fd} failed")
        return raw

    def run(self, data: bytes | bytearray | memoryview, repeat: int = 1) -> RunResult:
        """Run the program on data (BPF_PROG_TEST_RUN).

        Args:
            data: what the program sees from offset 0, up to some 3,500 bytes.
            repeat: how often to run it.

        Returns:
            The (last) return value as a signed int, with the mean duration.

        Raises:
            BPFError: the kernel refused; EINVAL for too much data.
            CapabilityError: (EPERM, before Linux 5.19) this process may not.
        """
        if not 1 <= repeat < 1 << 32:
            raise BPFError(
                errno.EINVAL, f"a program is run 1 to {(1 << 32) - 1} times, not {repeat}"
            )
        packet = _ETHERNET_HEADER + bytes(data)
        result, duration = ffi.new("uint32_t *"), ffi.new("uint32_t *")
        fd = self.fd
        code = _retried(
            lambda: lib.pykcm_bpf_run(fd, packet, len(packet), repeat, result, duration)
        )
        if code == -errno.EPERM:
            raise system.denied("running the BPF program")
        if code < 0:
            size = len(packet) - len(_ETHERNET_HEADER)
            raise BPFError(
                -code,
                f"running the program on {size} bytes failed"
                + (
                    ": the kernel takes 1 byte to a page less its own head and tail, some 3,500 "
                    "bytes"
                    if code == -errno.EINVAL
                    else ""
                ),
            )
        value = result[0]
        return RunResult(value - (1 << 32) if value >> 31 else value, duration[0])

    def pin(self, path: str | os.PathLike[str]) -> None:
        """Keep the program under a path in a BPF file system, for other processes.

        Args:
            path: a name that does not exist yet, usually below /sys/fs/bpf, without a '.' in its
                last part.  The file is for its owner alone; chmod and chown let others use it.

        Raises:
            BPFError: the path exists (EEXIST), its directory does not (ENOENT), or is not in a
                mounted BPF file system (EPERM).
            CapabilityError: (EPERM or EACCES) this process may not.
        """
        where = os.fspath(path)
        fd = self.fd
        result = _retried(lambda: lib.pykcm_bpf_pin(fd, _path(where)))
        if result < 0:
            raise _pin_error(-result, where, f"pinning the program to {where}")

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        return f"<pykcm.bpf.Program {'closed' if self._fd < 0 else f'fd={self._fd}'}>"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a Program is a descriptor: it can be neither copied nor pickled")


def _retried(call: Callable[[], int]) -> int:
    """The result of a call that is made again for EINTR, and some times for EAGAIN."""
    result = call()
    attempts = 1
    while result == -errno.EINTR or (result == -errno.EAGAIN and attempts < _ATTEMPTS):
        attempts += 1
        result = call()
    return result


def _load(
    code: bytes,
    license: bytes,
    name: str,
    text: str,
    lines: list[int],
    functions_take: int | None,
) -> int:
    """Load, at first without a log; only a refusal is worth writing one.  Returns a descriptor."""
    kind = lib.BPF_PROG_TYPE_SOCKET_FILTER
    count = len(code) // isa.SIZE
    slots = [] if functions_take is None else functions.starts(code)
    btf, records = functions.describe(slots, functions_take or 0) if slots[1:] else (b"", b"")

    def attempt(log: Any = ffi.NULL, size: int = 0) -> int:
        program = (kind, code, count, license, name.encode(), log, size, 1 if size else 0)
        if not btf:
            return _retried(lambda: lib.pykcm_bpf_load(*program))
        described = (btf, len(btf), records, len(slots))
        return _retried(lambda: lib.pykcm_bpf_load_functions(*program, *described))

    result = attempt()
    if result >= 0:
        return result
    if result == -errno.ENOSYS:
        raise UnavailableError(errno.ENOSYS, "this kernel has no bpf(2)")
    if result == -errno.EPERM and system.may_load():
        # Before Linux 5.11 a program's memory counted against RLIMIT_MEMLOCK.
        result = _with_locked_memory(attempt)
        if result >= 0:
            return result
    log, outcome = b"", result
    for size in _LOG_SIZES:
        buffer = ffi.new("char[]", size)
        outcome = attempt(buffer, size)
        if outcome >= 0:
            return outcome
        # A second attempt may fail for another reason, a want of memory say, and leave no log.
        written = ffi.string(buffer)
        log = written if written.strip() else log
        if outcome != -errno.ENOSPC:
            break
    if log:
        whole = outcome != -errno.ENOSPC
        raise _refusal(-result, log.decode("utf-8", "replace"), whole, code, text, lines)
    if result == -errno.EPERM:
        raise system.denied("loading the BPF program")
    if result == -errno.E2BIG:
        unprivileged = not system.capabilities() & {"CAP_BPF", "CAP_SYS_ADMIN"}
        reason = (
            f"a process without CAP_BPF may load {_UNPRIVILEGED_INSTRUCTIONS} at most"
            if unprivileged and count > _UNPRIVILEGED_INSTRUCTIONS
            else "it is too complex: the verifier gives up after a million instructions"
        )
        raise BPFError(errno.E2BIG, f"the program has {count} instructions: {reason}")
    raise BPFError(-result, f"loading the program {name!r} of {count} instructions failed")


def _with_locked_memory(attempt: Callable[[], int]) -> int:
    """Try with no limit on locked memory, as far as this process may lift it; then restore it."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    infinity = resource.RLIM_INFINITY
    for limit in ((infinity, infinity), (hard, hard)):
        try:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, limit)
        except (OSError, ValueError):
            continue
        try:
            return attempt()
        finally:
            # The hard limit can go down again, too.
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))
    return -errno.EPERM


def _refusal(
    number: int, log: str, whole: bool, code: bytes, text: str, lines: list[int]
) -> VerifierError:
    """The verifier's error, in the words of the log and of the user's own text."""
    found = verifier.complaint(log)
    reason = found.reason or "see the log"
    if number == errno.E2BIG and not found.reason:  # before Linux 6.4 a log's end is cut off
        reason = "it is too complex: the verifier gives up after a million instructions"
    parts = [f"the verifier refused the program: {reason}"]
    if found.slot is not None and found.slot < len(code) // isa.SIZE:
        if text:
            line = lines[found.slot]
            parts.append(f"  at instruction {found.slot}, line {line} of the text:")
            parts.append(f"    {text.split(chr(10))[line - 1].strip()}")
        else:
            parts.append(f"  at instruction {found.slot}:")
            parts.append(f"    {disassemble_slot(code, found.slot)}")
    parts.append("  in the verifier's words:")
    parts += [f"    {line}" for line in found.excerpt]
    if "bpf_probe_read" in log and not system.capabilities() & {"CAP_PERFMON", "CAP_SYS_ADMIN"}:
        parts.append(
            "  this process lacks CAP_PERFMON, which that helper needs: a process with CAP_BPF "
            "and CAP_PERFMON must load this program; pin it and attach by path"
        )
    what = "the whole log" if whole else "16 MiB of the log, which is longer"
    parts.append(f"  (the exception's attribute `log` has {what})")
    return VerifierError(number, "\n".join(parts), log)


def _path(path: str) -> bytes:
    """A path for the kernel."""
    encoded = os.fsencode(path)
    if not encoded or b"\0" in encoded:
        raise BPFError(errno.EINVAL, f"{path!r} is no path")
    return encoded


def _pin_error(number: int, path: str, what: str) -> Exception:
    if number == errno.ENOSYS:
        return UnavailableError(number, "this kernel has no bpf(2)")
    parent = Path(path).absolute().parent
    if number == errno.EEXIST:
        return BPFError(number, f"{what} failed: the path exists; remove it first to replace it")
    if number == errno.ENOENT:
        missing = "its directory does not exist" if not parent.is_dir() else "nothing is there"
        return BPFError(number, f"{what} failed: {missing}")
    if not _is_bpf_file_system(parent):
        return BPFError(
            number,
            f"{what} failed: {parent} is not in a BPF file system; one is mounted by "
            "`mount -t bpf bpf /sys/fs/bpf`",
        )
    if number == errno.EPERM:
        if "." in Path(path).name:
            return BPFError(number, f"{what} failed: a name with '.' is reserved to the kernel")
        return system.denied(what)
    return BPFError(number, f"{what} failed")


def _is_bpf_file_system(directory: Path) -> bool:
    """Whether a directory lies in a mounted BPF file system (/proc/self/mountinfo)."""
    try:
        device = directory.stat().st_dev
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True  # can't tell: the kernel's own word has to do
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[2] == wanted:
            return rest.split()[0] == "bpf"
    return False
