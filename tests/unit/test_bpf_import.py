"""What importing pykcm.bpf and loading a program cost: no module before it is needed."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]

# pykcm itself imports more: this is about the parts that pykcm.bpf brings in.
SCRIPT = """
import contextlib, sys, types
package = sys.modules["pykcm"] = types.ModuleType("pykcm")
package.__path__ = [sys.argv[1]]

def imported():
    return {name.removeprefix("pykcm.") for name in sys.modules}

from pykcm import bpf
dear = {"dataclasses", "inspect", "pathlib", "ast"}
if "annotationlib" in imported():  # which a NamedTuple takes from Python 3.14 on, and it takes ast
    dear.remove("ast")
text = {"bpf.assembler", "bpf._lexer"}
rest = {"bpf.disassembler", "bpf._verifier", "bpf.elf", "resource"}
assert not imported() & (dear | text | rest), imported() & (dear | text | rest)
assert dir(bpf) == sorted(bpf.__all__)
code = bytes.fromhex("b7000000000000009500000000000000")
if sys.byteorder == "little":
    with contextlib.suppress(PermissionError):
        bpf.Program.load(code).close()
assert not imported() & (dear | text | rest), imported() & (dear | text | rest)
assert bpf.assemble("r0 = 0; exit")[:1] == code[:1]
assert text <= imported()
assert not imported() & (dear | rest), imported() & (dear | rest)
assert bpf.disassemble(bpf.assemble("exit")) == "    exit\\n"
try:
    bpf.nothing
except AttributeError as error:
    assert "'pykcm.bpf' has no attribute 'nothing'" in str(error)
"""


def test_a_module_is_imported_when_it_is_needed() -> None:
    # Without site, whose work for an editable installation imports half of them.
    paths = [str(ROOT), sysconfig.get_path("platlib"), sysconfig.get_path("purelib")]
    subprocess.run(
        [sys.executable, "-S", "-c", SCRIPT, str(ROOT / "pykcm")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        check=True,
        timeout=60,
    )
