"""The constants of pykcm._binding: include/uapi/linux/kcm.h, linux/socket.h and linux/bpf.h."""

from __future__ import annotations


class lib:  # noqa: N801 - it is called so everywhere
    AF_KCM = 41
    SOL_KCM = 281
    KCMPROTO_CONNECTED = 0
    KCM_RECV_DISABLE = 1
    SIOCKCMATTACH, SIOCKCMUNATTACH, SIOCKCMCLONE = 0x89E0, 0x89E1, 0x89E2
    MSG_BATCH = 0x40000
    MSG_WAITFORONE = 0x10000
    PYKCM_BATCH = 64
    BPF_PROG_TYPE_SOCKET_FILTER = 1


class ffi:  # noqa: N801
    @staticmethod
    def string(text: bytes) -> bytes:
        """What stands before the first NUL."""
        return text.partition(b"\0")[0]
