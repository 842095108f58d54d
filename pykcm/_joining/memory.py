"""Reading the kernel's memory, a word at a time, by a BPF program that bpf(2) runs on demand.

bpf_probe_read_kernel reads 0 where nothing is mapped: no address can do harm.
"""

from __future__ import annotations

import sys

from pykcm import bpf

# Addresses that are this small count from the running task.
_RELATIVE = 1 << 16

_PEEK = f"""
    r6 = r1
    r0 = *(u32 *)skb[0]
    r7 = r0
    r7 <<= 32
    r0 = *(u32 *)skb[4]
    r7 |= r0
    if r7 >= {_RELATIVE} goto read
    call bpf_get_current_task
    r7 += r0
read:
    *(u64 *)(r10 - 8) = 0
    r1 = r10
    r1 += -8
    r2 = 4
    r3 = r7
    call bpf_probe_read_kernel
    r0 = *(u32 *)(r10 - 8)
    exit
"""


class Memory:
    """The kernel's memory, as far as this process may read it; to be closed.

    Raises:
        BPFError, CapabilityError, VerifierError, UnavailableError: it may not, or the kernel can't.
    """

    def __init__(self) -> None:
        self._program = bpf.Program.load(_PEEK, name="kcm_stat")

    def word(self, address: int) -> int:
        """The unsigned 32 bits at an address, 0 if it can't be read."""
        return self._program.run(address.to_bytes(8, "big")) & 0xFFFFFFFF

    def long(self, address: int) -> int:
        """The unsigned 64 bits at an address; the halves are not read at the same instant."""
        low, high = (0, 4) if sys.byteorder == "little" else (4, 0)
        return self.word(address + low) | self.word(address + high) << 32

    def close(self) -> None:
        self._program.close()
