"""Programs in the kernel: loading, running, pinning them (bpf(2), socket filters)."""

from __future__ import annotations

import errno
import os
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

from pykcm import _explain, _kernel
from pykcm._binding import ffi
from pykcm.bpf import _instructions as isa
from pykcm.bpf._load import load, retried
from pykcm.errors import BPFError

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAME_LIMIT = 15  # characters; BPF_OBJ_NAME_LEN, include/uapi/linux/bpf.h, less the NUL
_LICENSE_LIMIT = 127  # bytes; the kernel cuts a longer one off without a word

# BPF_PROG_TEST_RUN takes an Ethernet header off the data (net/bpf/test_run.c).  This one's type
# is for local experiments, so that the kernel looks for no IP header behind it.
_ETHERNET_HEADER = bytes(12) + b"\x88\xb5"


class ProgramInfo(NamedTuple):
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

    Made by `load`, `from_elf`, `from_pin` or `from_id`.  It lives until the descriptor is closed
    and no socket and no pin uses it.  Use it in a `with` block, or call `close`.
    """

    def __init__(self, fd: int) -> None:
        """Take over a program's descriptor: closing it is the Program's business from now on."""
        # In a list, which gives it up only once, whatever exception or thread comes between.
        self._fds = [fd]

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
        text = ""
        lines: list[int] = []
        if isinstance(code, str):
            from pykcm.bpf.assembler import translate

            text = code
            code, lines = translate(code, symbols)
        elif symbols:
            raise TypeError("symbols are for text; the code is instructions already")
        isa.count(code)
        licence = license.encode()
        if len(licence) > _LICENSE_LIMIT or b"\0" in licence:
            raise BPFError(
                errno.EINVAL,
                f"the licence has {len(licence)} bytes: up to {_LICENSE_LIMIT} and no NUL are "
                "possible",
            )
        if not _is_name(name):
            raise BPFError(
                errno.EINVAL,
                f"the program's name {name[:40]!r} is not up to {_NAME_LIMIT} letters, digits, "
                "'_' and '.'",
            )
        program = cls._closed()
        program._fds.append(load(bytes(code), licence, name, text, lines, functions_take))
        return program

    @classmethod
    def from_elf(cls, path: str | os.PathLike[str], section: str | None = None) -> Program:
        """Load the program of an object that `clang -target bpf` wrote.  Needs pyelftools.

        Its licence is what the object's section "license" says, its name the function's.

        Args:
            path: the object file.
            section: the program's section; by default "socket", "socket_kcm" or "socket/…".

        Raises:
            BPFError: the file can't be read (its errno), is not a BPF object for this host
                (ENOEXEC), has no such section or more than one (ENOENT, EINVAL), or has something
                in it that pykcm does not support (EOPNOTSUPP): maps, global variables, functions
                elsewhere.
            UnavailableError: (ENOPKG) pyelftools is missing; (ENOSYS) no bpf(2).
            VerifierError, CapabilityError: as of `load`.
        """
        from pykcm.bpf import elf

        found = elf.read(path, section)
        return cls.load(found.code, found.license, found.name)

    @classmethod
    def from_pin(cls, path: str | os.PathLike[str]) -> Program:
        """Open a program that was pinned.  Needs no capability but to read and write the file.

        (Before Linux 5.19 it needs what loading needs.)

        Raises:
            BPFError: nothing is there (ENOENT), or not a program (EINVAL, EACCES).
            CapabilityError: (EPERM) this process may not.
            UnavailableError: (ENOSYS) this kernel or platform has no bpf(2).
        """
        where = os.fspath(path)
        encoded = _path(where)
        program = cls._closed()
        try:
            program._fds.append(retried(_kernel.bpf_get, encoded))
        except OSError as error:
            what = f"opening the pinned program {where}"
            raise _explain.explain(error, _explain.PIN, what=what, path=where) from error
        try:
            kind = os.readlink(f"/proc/self/fd/{program.fd}")
        except OSError:
            return program  # no /proc to ask; what the descriptor is shows when it is used
        if not kind.endswith("bpf-prog"):
            program.close()
            raise BPFError(errno.EINVAL, f"{where} is not a program but {kind}")
        return program

    @classmethod
    def from_id(cls, id: int) -> Program:
        """Open the program that has an id, as `info` says it.  Needs CAP_SYS_ADMIN.

        Raises:
            BPFError: no program has it (ENOENT).
            CapabilityError: (EPERM) this process may not.
            UnavailableError: (ENOSYS) this kernel or platform has no bpf(2).
        """
        if not 0 <= id < 1 << 32:
            raise BPFError(errno.ENOENT, f"no program has the id {id}")
        program = cls._closed()
        try:
            program._fds.append(retried(_kernel.bpf_by_id, id))
        except OSError as error:
            what = f"opening the program with id {id}"
            raise _explain.explain(error, _explain.ID, what=what) from error
        return program

    @classmethod
    def _closed(cls) -> Program:
        """The owner of a descriptor that is to come: no line may lie between the two."""
        program = cls.__new__(cls)
        program._fds = []
        return program

    @property
    def fd(self) -> int:
        """The descriptor.

        Raises:
            ValueError: the Program is closed.
        """
        if not self._fds:
            raise ValueError("the program is closed")
        return self._fds[0]

    def fileno(self) -> int:
        """The descriptor, as `fd`."""
        return self.fd

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return not self._fds

    def close(self) -> None:
        """Close the descriptor.  A second call does nothing."""
        if self._fds:
            os.close(self._fds.pop())

    @property
    def info(self) -> ProgramInfo:
        """What the kernel says about the program.

        Raises:
            BPFError: the descriptor is not a program's.
        """
        raw, _ = self._info()
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

        Empty for a process without CAP_BPF.  `disassemble` reads them, unless the kernel put in
        what no program may have, its register r11.

        Raises:
            BPFError: the descriptor is not a program's.
        """
        raw, _ = self._info()
        code = self._info(raw.xlated_prog_len)[1]
        return isa.encode([_as_loaded(each) for each in isa.decode(code)]) if code else b""

    def _info(self, translated: int = 0) -> tuple[Any, bytes]:
        """struct bpf_prog_info, and so many bytes of the translated instructions."""
        fd = self.fd
        try:
            return retried(_kernel.bpf_info, fd, translated)
        except OSError as error:
            what = f"asking about the program of descriptor {fd}"
            raise _explain.explain(error, _explain.INFO, what=what) from error

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
        fd, content = self.fd, bytes(data)
        try:
            value, duration = retried(_kernel.bpf_run, fd, _ETHERNET_HEADER + content, repeat)
        except OSError as error:
            what = f"running the program on {len(content)} bytes"
            raise _explain.explain(error, _explain.RUN, what=what) from error
        return RunResult(value - (1 << 32) if value >> 31 else value, duration)

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
        fd, encoded = self.fd, _path(where)
        try:
            retried(_kernel.bpf_pin, fd, encoded)
        except OSError as error:
            what = f"pinning the program to {where}"
            raise _explain.explain(error, _explain.PIN, what=what, path=where) from error

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fds", None):
            text = f"{self!r} was not closed"
            self.close()  # first: the warning may be made an exception
            warnings.warn(text, ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        return f"<pykcm.bpf.Program {f'fd={self.fd}' if self._fds else 'closed'}>"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a Program is a descriptor: it can be neither copied nor pickled")


def program_ids() -> Iterator[int]:
    """The ids of all programs in the kernel, in order.  Needs CAP_SYS_ADMIN.

    Raises:
        CapabilityError: (EPERM) this process may not.
        UnavailableError: (ENOSYS) this kernel or platform has no bpf(2).
    """
    id = 0
    while True:
        try:
            id = retried(_kernel.bpf_next_id, id)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return
            what = "listing the programs"
            raise _explain.explain(error, _explain.ID, what=what) from error
        yield id


def _is_name(name: str) -> bool:
    """Whether the kernel takes a program's name (bpf_obj_name_cpy in kernel/bpf/syscall.c)."""
    letters = "_" + name.replace(".", "_")  # what may follow the first letter of an identifier
    return len(name) <= _NAME_LIMIT and letters.isascii() and letters.isidentifier()


def _as_loaded(instruction: isa.Instruction) -> isa.Instruction:
    """Undo what jit_subprogs in kernel/bpf/verifier.c does to a call of the program's functions.

    It moves the distance to the offset, and puts the function's number in its place.
    """
    if instruction.opcode == isa.CALL_IMM and instruction.src == isa.CALL_LOCAL:
        return instruction._replace(imm=instruction.offset, offset=0)
    return instruction


def _path(path: str | os.PathLike[str]) -> bytes:
    """A path for the kernel."""
    encoded = os.fsencode(path)
    if not encoded or b"\0" in encoded:
        raise BPFError(errno.EINVAL, f"{path!r} is not a path")
    return encoded
