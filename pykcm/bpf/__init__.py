"""BPF: an assembler, a disassembler, and programs in the kernel.  It knows nothing of KCM."""

from typing import TYPE_CHECKING, Any

from pykcm.bpf.program import Program, ProgramInfo, RunResult, program_ids

if TYPE_CHECKING:
    from pykcm.bpf.assembler import assemble
    from pykcm.bpf.disassembler import disassemble
else:

    def __getattr__(name: str) -> Any:
        """Import the assembler and the disassembler when they are used first."""
        if name == "assemble":
            from pykcm.bpf.assembler import assemble as value
        elif name == "disassemble":
            from pykcm.bpf.disassembler import disassemble as value
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__


__all__ = ["Program", "ProgramInfo", "RunResult", "assemble", "disassemble", "program_ids"]
