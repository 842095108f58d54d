"""BPF: an assembler, a disassembler, and programs in the kernel.  It knows nothing of KCM."""

from pykcm.bpf.assembler import assemble
from pykcm.bpf.disassembler import disassemble
from pykcm.bpf.program import Program, ProgramInfo, RunResult

__all__ = ["Program", "ProgramInfo", "RunResult", "assemble", "disassemble"]
