"""In a guest with the debug kernel: run one thing after another, and keep what the kernel says.

What is left for the host, in a directory: phases.json, the reports, the coverage after each phase,
and kmemleak, what the kernel takes for leaked.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from ci import coverage
from pykcm._faults import Watch

DEBUGFS = Path("/sys/kernel/debug")
KMEMLEAK = DEBUGFS / "kmemleak"
# kmemleak tells of nothing younger than five seconds.
YOUNG = 6


def phase(name: str, command: list[str], target: Path, watch: Watch) -> dict[str, object]:
    """Run a command, its output into a file; what came of it."""
    print(f"== {name}", flush=True)
    start = time.monotonic()
    with (target / f"{name}.out").open("wb") as out:
        status = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=out, check=False
        ).returncode
    seconds = round(time.monotonic() - start)
    faults = watch.faults()
    print(f"== {name}: status {status}, {seconds} s", flush=True)
    return {"name": name, "status": status, "seconds": seconds, "faults": faults}


def leaks() -> str:
    """What kmemleak takes for leaked, seen twice: what is on its way is seen once."""
    for _ in range(2):
        time.sleep(YOUNG)
        KMEMLEAK.write_text("scan", encoding="ascii")
    return KMEMLEAK.read_text(encoding="ascii", errors="replace")


def main() -> int:
    target = Path(sys.argv[1])
    commands: dict[str, list[str]] = json.loads(sys.argv[2])
    if not (DEBUGFS / "kprobes").exists():
        subprocess.run(["mount", "-t", "debugfs", "debugfs", str(DEBUGFS)], check=True)
    counted = (DEBUGFS / "gcov").exists()
    if KMEMLEAK.exists():
        KMEMLEAK.write_text("scan=off", encoding="ascii")
        KMEMLEAK.write_text("clear", encoding="ascii")
    watch = Watch()
    phases = []
    for name, command in commands.items():
        phases.append(phase(name, command, target, watch))
        # Whatever comes later, what there is by now is kept.
        (target / "phases.json").write_text(json.dumps(phases), encoding="utf-8")
        if counted:
            coverage.save(target / "coverage" / name)
    if KMEMLEAK.exists():
        (target / "kmemleak").write_text(leaks(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
