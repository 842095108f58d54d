"""setsockopt and getsockopt: their errors."""

from __future__ import annotations

import ctypes
import errno
import mmap
import socket
import struct

from pykcm._binding import lib
from pykcm.selftest.check import Group, code
from pykcm.selftest.lab import Lab

GROUP = Group("options", "setsockopt and getsockopt at level SOL_KCM")

_SET, _GET = code("kcm_setsockopt"), code("kcm_getsockopt")
_ONE = struct.pack("i", 1)


def _set(lab: Lab, wanted: int, level: int, option: int, value: bytes | int, size: int) -> None:
    arguments = lab.kcm().fileno(), level, option, value, size
    lab.refused("setsockopt", wanted, lab.calls.libc, "setsockopt", *arguments)


def _get(lab: Lab, wanted: int, level: int, option: int, value: int | None, size: int) -> None:
    """A getsockopt whose length is `size`, or lies at the address 8 if size is 0."""
    room = ctypes.create_string_buffer(16)
    length = ctypes.c_int(size)
    arguments = (
        lab.kcm().fileno(),
        level,
        option,
        ctypes.addressof(room) if value is None else value,
        ctypes.addressof(length) if size else 8,
    )
    lab.refused("getsockopt", wanted, lab.calls.libc, "getsockopt", *arguments)


@GROUP.check(_SET)
def set_unknown_option_is_enoprotoopt(lab: Lab) -> None:
    """Setting an option that KCM does not have is ENOPROTOOPT."""
    _set(lab, errno.ENOPROTOOPT, lib.SOL_KCM, 99, _ONE, 4)


@GROUP.check(_SET)
def set_other_level_is_enoprotoopt(lab: Lab) -> None:
    """Setting an option of TCP is ENOPROTOOPT."""
    _set(lab, errno.ENOPROTOOPT, socket.IPPROTO_TCP, socket.TCP_NODELAY, _ONE, 4)


@GROUP.check(_SET)
def set_short_value_is_einval(lab: Lab) -> None:
    """A value of less than four bytes is EINVAL."""
    _set(lab, errno.EINVAL, lib.SOL_KCM, lib.KCM_RECV_DISABLE, _ONE, 3)


@GROUP.check(_SET)
def set_bad_pointer_is_efault(lab: Lab) -> None:
    """A value at an address that can't be read is EFAULT."""
    _set(lab, errno.EFAULT, lib.SOL_KCM, lib.KCM_RECV_DISABLE, 8, 4)


@GROUP.check(_GET)
def get_unknown_option_is_enoprotoopt(lab: Lab) -> None:
    """Reading an option that KCM does not have is ENOPROTOOPT."""
    _get(lab, errno.ENOPROTOOPT, lib.SOL_KCM, 99, None, 4)


@GROUP.check(_GET)
def get_other_level_is_enoprotoopt(lab: Lab) -> None:
    """Reading an option of TCP is ENOPROTOOPT."""
    _get(lab, errno.ENOPROTOOPT, socket.IPPROTO_TCP, socket.TCP_NODELAY, None, 4)


@GROUP.check(_GET)
def get_negative_length_is_einval(lab: Lab) -> None:
    """A negative length is EINVAL."""
    _get(lab, errno.EINVAL, lib.SOL_KCM, lib.KCM_RECV_DISABLE, None, -1)


@GROUP.check(_GET)
def get_bad_length_pointer_is_efault(lab: Lab) -> None:
    """A length at an address that can't be read is EFAULT."""
    _get(lab, errno.EFAULT, lib.SOL_KCM, lib.KCM_RECV_DISABLE, None, 0)


@GROUP.check(_GET)
def get_bad_pointer_is_efault(lab: Lab) -> None:
    """A value at an address that can't be written is EFAULT."""
    _get(lab, errno.EFAULT, lib.SOL_KCM, lib.KCM_RECV_DISABLE, 8, 4)


@GROUP.check(code("kcm_getsockopt, put_user"))
def get_length_that_is_read_only_is_efault(lab: Lab) -> None:
    """A length that can be read but not written is EFAULT."""
    page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    length = ctypes.c_int.from_buffer(page)
    length.value = 4
    room = ctypes.create_string_buffer(4)
    address = ctypes.addressof(length)
    lab.calls.libc("mprotect", address, mmap.PAGESIZE, mmap.PROT_READ)
    arguments = lib.SOL_KCM, lib.KCM_RECV_DISABLE, ctypes.addressof(room), address
    lab.refused(
        "getsockopt", errno.EFAULT, lab.calls.libc, "getsockopt", lab.kcm().fileno(), *arguments
    )


@GROUP.check(_GET)
def get_short_length_gives_so_much(lab: Lab) -> None:
    """Room for fewer than four bytes gets so many."""
    value = lab.calls.get_option(lab.kcm(), lib.SOL_KCM, lib.KCM_RECV_DISABLE, 2)
    lab.expect("the value", value, b"\0\0")
