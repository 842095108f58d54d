"""Types of the compiled module; see native.c for what each call does."""

from typing import Any

class _CompiledFFI:
    NULL: Any
    error: type[Exception]
    def new(self, cdecl: str, init: object = ..., /) -> Any: ...
    def cast(self, cdecl: str, source: object, /) -> Any: ...
    def from_buffer(
        self, cdecl: str, python_buffer: object, /, require_writable: bool = ...
    ) -> Any: ...
    def buffer(self, cdata: Any, size: int = ..., /) -> Any: ...
    def unpack(self, cdata: Any, length: int, /) -> Any: ...
    def string(self, cdata: Any, maxlen: int = ..., /) -> bytes: ...
    def sizeof(self, cdecl: object, /) -> int: ...
    def release(self, cdata: Any, /) -> None: ...

class _Library:
    AF_KCM: int
    SOL_KCM: int
    KCMPROTO_CONNECTED: int
    KCM_RECV_DISABLE: int
    SIOCKCMATTACH: int
    SIOCKCMUNATTACH: int
    SIOCKCMCLONE: int
    MSG_BATCH: int
    MSG_WAITFORONE: int
    PYKCM_BATCH: int
    BPF_PROG_TYPE_SOCKET_FILTER: int

    def pykcm_attach(self, kcm_fd: int, tcp_fd: int, program_fd: int, /) -> int: ...
    def pykcm_unattach(self, kcm_fd: int, tcp_fd: int, /) -> int: ...
    def pykcm_clone(self, kcm_fd: int, /) -> int: ...
    def pykcm_sendmsg(
        self, fd: int, buffers: Any, lengths: Any, count: int, flags: int, /
    ) -> int: ...
    def pykcm_recvmsg(
        self, fd: int, buffers: Any, lengths: Any, count: int, flags: int, message_flags: Any, /
    ) -> int: ...
    def pykcm_sendmmsg(
        self, fd: int, messages: Any, lengths: Any, count: int, flags: int, /
    ) -> int: ...
    def pykcm_recvmmsg(
        self,
        fd: int,
        buffer: Any,
        size: int,
        room: int,
        count: int,
        flags: int,
        lengths: Any,
        message_flags: Any,
        /,
    ) -> int: ...
    def pykcm_bpf_load(
        self,
        type: int,
        instructions: Any,
        count: int,
        license: bytes,
        name: bytes,
        log: Any,
        log_size: int,
        log_level: int,
        /,
    ) -> int: ...
    def pykcm_bpf_load_functions(
        self,
        type: int,
        instructions: Any,
        count: int,
        license: bytes,
        name: bytes,
        log: Any,
        log_size: int,
        log_level: int,
        btf: bytes,
        btf_size: int,
        functions: bytes,
        function_count: int,
        /,
    ) -> int: ...
    def pykcm_bpf_run(
        self, fd: int, data: Any, size: int, repeat: int, result: Any, duration: Any, /
    ) -> int: ...
    def pykcm_delineate_check(self, program: Any, count: int, /) -> int: ...
    def pykcm_delineate(self, program: Any, data: Any, size: int, /) -> int: ...
    def pykcm_divide(
        self, program: Any, data: Any, size: int, lengths: Any, room: int, used: Any, /
    ) -> int: ...
    def pykcm_bpf_info(self, fd: int, info: Any, /) -> int: ...
    def pykcm_bpf_pin(self, fd: int, path: bytes, /) -> int: ...
    def pykcm_bpf_get(self, path: bytes, /) -> int: ...
    def pykcm_bpf_helper_name(self, number: int, /) -> Any: ...

ffi: _CompiledFFI
lib: _Library
