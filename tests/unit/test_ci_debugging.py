"""make kernel and make debug: what they make of configurations, counts and the kernel's words."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ci import building, coverage, debugging, kernels
from ci.coverage_report import document, summary
from ci.kernels import KernelUnavailableError
from ci.unreached import ASSERTION, REASONS

SOURCE = """\
int reached(int some)
{
	WARN_ON(some > 9);
	return some ? 1 : 2;
}

void never(void)
{
	call();
}
"""
NAME = "net/kcm/kcmsock.c"


def count(number: int, times: int, *ways: int) -> dict[str, Any]:
    return {"line_number": number, "count": times, "branches": [{"count": way} for way in ways]}


def counted() -> coverage.File:
    functions = [
        {"name": "reached", "start_line": 1, "end_line": 5},
        {"name": "never", "start_line": 7, "end_line": 10},
    ]
    lines = [count(1, 3), count(3, 3, 3, 0), count(4, 3, 1, 2), count(7, 0), count(9, 0)]
    header = {"file": "include/net/sock.h", "functions": [], "lines": [count(1, 0)]}
    own = {"file": f"/usr/src/linux/{NAME}", "functions": functions, "lines": lines}
    return coverage.parse(NAME, {"files": [header, own]}, SOURCE)


def test_lines_and_ways_are_counted_by_file_and_function() -> None:
    file = counted()
    assert (str(file.line_share), str(file.branch_share)) == ("60.0 %", "75.0 %")
    reached, never = file.functions()
    assert (reached.name, reached.lines.reached, reached.branches.reached) == ("reached", 3, 3)
    assert (never.name, never.lines.reached, never.lines.total) == ("never", 0, 2)
    assert [line.number for line in file.unreached()] == [3, 7, 9]


def test_line_of_two_functions_is_counted_once() -> None:
    """A macro's or an inlined function's line stands in gcov's document for each of them."""
    entry = {"file": NAME, "functions": [], "lines": [count(3, 0, 0), count(3, 2, 2)]}
    (line,) = coverage.parse(NAME, {"files": [entry]}, SOURCE).lines
    assert (line.count, sorted(line.ways)) == (2, [0, 2])


def test_page_has_each_place_with_its_reason_or_says_that_there_is_none() -> None:
    phases = [{"name": "selftest", "seconds": 7}]
    page = document("6.12.1-1", phases, {"selftest": [counted()]})
    assert "| selftest | 7 | net/kcm/kcmsock.c | 60.0 % | 75.0 % |" in page
    assert f"{ASSERTION[1:]}. `reached` 3: 1/2" in page
    assert "- **no check does yet**. `never` 7-9" in page
    assert "| `never` | 0 of 2 | none |" in page


def test_document_for_programs_has_the_same() -> None:
    (found,) = summary([counted()]).values()
    assert found["branches"] == {"reached": 3, "total": 4, "percent": 75.0}
    assert [entry["reason"] for entry in found["unreached"]] == [ASSERTION, "", ""]
    json.dumps(found)


@pytest.mark.skipif(not building.SOURCE.exists(), reason="make kernel has not fetched the source")
@pytest.mark.parametrize("rule", REASONS, ids=lambda rule: f"{rule[0]}:{rule[1]}")
def test_reason_is_of_code_that_is_there(rule: tuple[str, str, str]) -> None:
    """Else it is of another kernel's."""
    function, text, _ = rule
    source = "".join((building.SOURCE / f"{name}.c").read_text() for name in building.COVERED)
    assert any(re.fullmatch(function, name) for name in re.findall(r"\w+", source))
    assert any(re.fullmatch(text, line.strip()) for line in source.splitlines())


COUNTED = "int main(int argc, char **argv) { return argc > 1 ? 2 : 0; }"


@pytest.mark.skipif(not shutil.which("gcov-tool"), reason="there is no gcov-tool")
def test_counts_of_two_runs_are_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "some/counted"
    home = tmp_path / "build"
    (home / "some").mkdir(parents=True)
    source = home / f"{name}.c"
    source.write_text(COUNTED)
    for command in (["-c", f"{name}.c", "-o", f"{name}.o"], [f"{name}.o", "-o", "program"]):
        subprocess.run(["gcc", "--coverage", *command], cwd=home, check=True)
    runs = [tmp_path / "first", tmp_path / "second"]
    for arguments, run in enumerate(runs):
        subprocess.run(["./program", *["x"] * arguments], cwd=home, check=False)
        run.mkdir()
        next(home.rglob("*.gcda")).rename(run / "counted.gcda")
    monkeypatch.setattr(coverage, "SOURCE", home)
    monkeypatch.setattr(coverage, "COVERED", (name,))
    monkeypatch.setattr(coverage, "DEBUG", building.Flavour(home, ()))
    (before,) = coverage.read(runs[0])
    coverage.add(*runs)
    (after,) = coverage.read(runs[0])
    assert (before.branch_share.reached, after.branch_share.reached) == (1, 2)
    with pytest.raises(KernelUnavailableError, match="can't be added"):
        coverage.add(runs[0], tmp_path / "nothing")


KMEMLEAK = """\
unreferenced object 0xffff888004e5b800 (size 240):
  comm "python3", pid 71, jiffies 4294902183
  hex dump (first 32 bytes):
    00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  ................
  backtrace (crc 5a1d):
    [<ffffffff812>] kmem_cache_alloc_noprof+0x1a/0x20
    skb_clone+0x8f/0x150
    __strp_recv.isra.0+0x21/0x5d0
unreferenced object 0xffff888004e5b900 (size 64):
  backtrace (crc 0):
    kcm_attach+0x1/0x2
"""


def test_leaks_have_size_and_place() -> None:
    first, second = debugging.leaks(KMEMLEAK)
    assert (first.size, first.trace[1:]) == (240, ("skb_clone", "__strp_recv.isra.0"))
    assert (second.size, second.trace) == (64, ("kcm_attach",))
    assert debugging.leaks("") == []


def test_each_problem_is_a_line() -> None:
    phases = [
        {"name": "selftest", "status": 0, "seconds": 1, "faults": []},
        {"name": "tests", "status": 1, "seconds": 1, "faults": ["BUG: KASAN: use-after-free"]},
    ]
    result = debugging.Result("6.12", phases, debugging.leaks(KMEMLEAK), {})
    status, fault, *leaked = result.problems
    assert "status 1" in status
    assert "KASAN" in fault
    assert "skb_clone" in leaked[0]
    assert json.loads(debugging.as_json(result))["problems"] == result.problems


def test_later_fragment_wins(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("# CONFIG_NOTE is told of here\nCONFIG_AF_KCM=y\nCONFIG_KASAN=y\n")
    second.write_text("CONFIG_AF_KCM=m\n# CONFIG_KASAN is not set\n")
    options = building.asked((first, second))
    assert options == {"CONFIG_AF_KCM": "m", "CONFIG_KASAN": "n"}
    assert building.dropped("CONFIG_AF_KCM=m\n", options) == []
    lost = building.dropped("CONFIG_AF_KCM=y\nCONFIG_KASAN=y\n", options)
    assert lost == ["CONFIG_AF_KCM=m", "CONFIG_KASAN=n"]


@pytest.fixture
def flavour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> building.Flavour:
    """A kernel whose source has a Makefile of a line."""
    source = tmp_path / "linux"
    (source / "scripts").mkdir(parents=True)
    (source / building.VERSION).write_text("6.12.1-1")
    monkeypatch.setattr(building, "SOURCE", source)
    monkeypatch.setattr(building, "CACHE", tmp_path)
    monkeypatch.setattr(building, "configure", lambda flavour: None)
    fragment = tmp_path / "fragment"
    fragment.write_text("CONFIG_KASAN=y\n")
    return building.Flavour(tmp_path / "kernel", (fragment,))


needs_make = pytest.mark.skipif(not shutil.which("make"), reason="there is no make")


@needs_make
def test_kernel_is_built_once_for_a_configuration(flavour: building.Flavour) -> None:
    made = flavour.directory / "made"
    rule = f"bzImage:\n\t@echo '  CC      a.o' && echo x >>{made}\nmodules: ;\n"
    (building.SOURCE / "Makefile").write_text(rule)
    for _ in range(2):
        assert building.build(flavour) == flavour.directory
    assert made.read_text() == "x\n"
    flavour.fragments[0].write_text("CONFIG_KASAN=y\nCONFIG_UBSAN=y\n")
    building.build(flavour)
    assert made.read_text() == "x\nx\n"


@needs_make
def test_build_that_fails_says_why_and_is_no_kernel(flavour: building.Flavour) -> None:
    words = "a.c:1: error: no such thing"
    (building.SOURCE / "Makefile").write_text(f"bzImage:\n\t@echo '{words}' && false\nmodules: ;\n")
    with pytest.raises(KernelUnavailableError, match="no such thing"):
        building.build(flavour)
    assert not flavour.stamp.exists()


def test_no_archive_is_a_line(flavour: building.Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    (building.SOURCE / building.VERSION).unlink()

    def fail(*command: object, **_: object) -> None:
        raise KernelUnavailableError("`apt-get update` failed with status 100: E: no network")

    monkeypatch.setattr(kernels, "run", fail)
    monkeypatch.setattr(building, "run", fail)
    with pytest.raises(KernelUnavailableError, match="no network"):
        building.build(flavour)


def test_test_that_is_not_there_is_refused() -> None:
    command = [sys.executable, "-m", "ci.debugging", "test_nothing"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "there is no tests/kernel/test_nothing.py" in result.stderr
