"""What the selftest needs of pykcm.bpf.program, by ctypes."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from types import TracebackType

from pykcm.bpf import assembler, system
from pykcm.errors import BPFError, VerifierError
from pykcm.selftest import syscalls

# struct bpf_prog_info, up to the length of the translated instructions' room, and its end.
_INFO = struct.Struct("II8sIIQQ")
_INFO_SIZE = 256


class ProgramInfo:
    def __init__(self, number: int) -> None:
        self.id = number


class Program:
    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def load(cls, text: str, /, name: str = "pykcm") -> Program:
        code = assembler.assemble(text)
        try:
            return cls(syscalls.load(syscalls.BPF_PROG_TYPE_SOCKET_FILTER, code, name.encode()))
        except OSError as error:
            if error.errno == errno.EPERM:
                raise system.denied("loading the BPF program") from error
            refused = error
        log = ctypes.create_string_buffer(1 << 20)
        try:
            return cls(
                syscalls.load(syscalls.BPF_PROG_TYPE_SOCKET_FILTER, code, name.encode(), log)
            )
        except OSError:
            said = log.value.decode("utf-8", "replace")
        number = refused.errno or errno.EINVAL
        if said:
            raise VerifierError(number, f"the verifier refused the program: {said}", said)
        raise BPFError(number, f"loading the program {name!r} failed")

    @property
    def info(self) -> ProgramInfo:
        return ProgramInfo(self._info()[1])

    def translated(self) -> bytes:
        room = ctypes.create_string_buffer(self._info()[4])
        size = self._info(room)[4]
        return room.raw[:size]

    def _info(self, room: ctypes.Array[ctypes.c_char] | None = None) -> tuple[int, ...]:
        info = ctypes.create_string_buffer(_INFO_SIZE)
        size, address = (len(room), ctypes.addressof(room)) if room else (0, 0)
        _INFO.pack_into(info, 0, 0, 0, b"", 0, size, 0, address)
        attributes = struct.pack("IIQ", self.fd, len(info), ctypes.addressof(info))
        syscalls.bpf(syscalls.BPF_OBJ_GET_INFO_BY_FD, attributes)
        found: tuple[int, ...] = _INFO.unpack_from(info)
        return found

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
