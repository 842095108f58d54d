"""The constants of pykcm._binding, from include/uapi/linux/kcm.h, kcm_ioctl's and socket.h."""

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
