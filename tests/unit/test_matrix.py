"""ci/matrix: what it makes of a kernel's reports, and that nothing but whole ones is a success."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from ci import built, guest, jobs, kernels, matrix, peers, servers
from ci.apt import UnavailableError
from ci.columns import PEERS, Column
from ci.kernels import Kernel, KernelUnavailableError

Outcome = dict[str, Any]


def selftest(path: Path, **checks: Outcome) -> None:
    every = [
        {"name": f"group.{name}", "ok": True, "status": "pass", "lines": [], **check}
        for name, check in checks.items()
    ]
    path.write_text(json.dumps({"checks": every}), encoding="utf-8")


def junit(path: Path, *cases: tuple[str, str, str]) -> None:
    suite = ElementTree.Element("testsuite")
    for name, outcome, reason in cases:
        case = ElementTree.SubElement(suite, "testcase", classname="tests.kernel.test_a.TestB")
        case.set("name", name)
        if outcome:
            ElementTree.SubElement(case, outcome, message=reason).text = "def\n\na.py:1: E\n"
    ElementTree.ElementTree(suite).write(path)


def met(path: Path, series: str, *servers: str) -> None:
    """The report of `make peers`; a server whose name begins with an exclamation mark failed."""
    suite = ElementTree.Element("testsuite")
    for server in servers:
        case = ElementTree.SubElement(suite, "testcase", name=f"test_server[{server}]")
        properties = ElementTree.SubElement(case, "properties")
        title = f"{server.lstrip('!')}-on-{series}"
        ElementTree.SubElement(properties, "property", name="title", value=title)
        if server.startswith("!"):
            ElementTree.SubElement(case, "failure", message="another answer").text = "a.py:1: E"
    ElementTree.SubElement(suite, "testcase", name="test_block[a]")
    ElementTree.ElementTree(suite).write(path)


@pytest.fixture
def column(tmp_path: Path) -> Column:
    column = Column("6.1")
    report = tmp_path / "selftest.json"
    known = {"happens": "it is lost"}
    selftest(
        report,
        good={},
        known={"status": "fail", "known_deviation": known},
        bad={"status": "fail", "ok": False, "lines": ["1 is", "not 2"]},
        mended={"status": "pass", "ok": False, "known_deviation": known},
        left={"status": "skip", "lines": ["not", "here"]},
    )
    column.read_selftest(report)
    report = tmp_path / "kernel.xml"
    junit(
        report,
        ("test_good", "", ""),
        ("test_bad[0]", "", ""),
        ("test_bad[1]", "failure", "E: 1 is not\n 2"),
        ("test_error", "error", "no"),
        ("test_left", "skipped", "too old"),
        ("test_half[0]", "skipped", "too old"),
        ("test_half[1]", "", ""),
    )
    column.read_junit(report)
    return column


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("good", "pass"),
        ("known", "deviates"),
        ("bad", "FAIL"),
        ("mended", "FAIL"),
        ("left", "skip"),
        ("other", "ABSENT"),
    ],
)
def test_cells_of_the_selftest(column: Column, name: str, cell: str) -> None:
    assert column.cell(("group", name)) == cell


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("test_good", "pass"),
        ("test_bad", "FAIL"),
        ("test_error", "FAIL"),
        ("test_left", "skip"),
        ("test_half", "pass/skip"),
    ],
)
def test_cells_of_the_tests(column: Column, name: str, cell: str) -> None:
    assert column.cell(("test_a", f"TestB.{name}")) == cell


def test_deviations_skips_and_failures_are_told_with_their_reason(column: Column) -> None:
    assert matrix.remarks([column]) == {
        "deviates": ["group.known: it is lost (6.1)"],
        "skip": [
            "group.left: not here (6.1)",
            "test_a.TestB.test_half: 1 of 2 skipped: too old (6.1)",
            "test_a.TestB.test_left: too old (6.1)",
        ],
        "FAIL": [
            "group.bad: 1 is not 2 (6.1)",
            "group.mended: passed, but is a known deviation (6.1)",
            "test_a.TestB.test_bad: test_bad[1]: E: 1 is not 2 (a.py:1: E) (6.1)",
            "test_a.TestB.test_error: test_error: no (a.py:1: E) (6.1)",
        ],
    }


# --- The whole, with what runs a guest replaced

Runs = Callable[..., None]


def kernel(asked: str) -> Kernel:
    release = f"{asked}.0" if asked[0].isdigit() else "6.18.0-mine"
    return Kernel(asked, release, Path("image"), Path("modules"), uml=asked == "5.10")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runs:
    """Say what a run of each kernel leaves: an exit status, and how many tests."""
    reports = tmp_path / "reports"
    monkeypatch.setattr(matrix, "ROOT", tmp_path)
    monkeypatch.setattr(matrix, "REPORTS", reports)
    monkeypatch.setattr(matrix, "DOCUMENT", tmp_path / "docs" / "kernels.md")
    monkeypatch.setattr(matrix, "MATRIX", ("6.1", "7.2"))
    monkeypatch.setattr("sys.argv", ["ci/matrix"])
    monkeypatch.setattr(built, "kernel", kernel)
    monkeypatch.setattr(peers, "ROOT", tmp_path)
    monkeypatch.setattr(peers, "REPORTS", reports)
    monkeypatch.setattr(servers, "root", lambda: tmp_path / "servers")

    def say(**left: tuple[int, list[str]]) -> None:
        def run(todo: list[jobs.Job], at_once: int) -> list[int]:
            return [leave(job.name.removeprefix("kernel ")) for job in todo]

        def leave(series: str) -> int:
            name = "k" + re.sub("[ .-]", "_", series)
            status, tests = left.get(name, (0, ["test_one"]))
            if series.endswith("peers"):
                if tests:
                    met(reports / "peers.xml", series.removesuffix(" peers"), *tests)
            elif tests:
                selftest(reports / f"selftest-{series}.json", good={})
                junit(reports / f"kernel-{series}.xml", *((name, "", "") for name in tests))
            return status

        monkeypatch.setattr(jobs, "run", run)

    return say


def test_a_whole_matrix(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs()
    assert matrix.main() == 0
    assert "every check passed" in capsys.readouterr().out
    written = (tmp_path / "reports" / "kernels.md").read_text(encoding="utf-8")
    assert not (tmp_path / "docs").exists()
    assert "| test_a.TestB.test_one | pass | pass |" in written
    assert "| `uname -r` | 6.1.0 | 7.2.0 |" in written


def test_all_series_are_those_of_the_archive_and_make_the_document(
    runs: Runs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ["5.10", "6.1", "6.1-rt", "6.12", "6.12-rt", "7.2", "7.2-rt", "7.3", "7.3-rt"]
    monkeypatch.setattr(kernels.ARCHIVES[""], "_found", dict.fromkeys(names, "linux-image"))
    monkeypatch.setattr("sys.argv", ["ci/matrix", "--all"])
    runs()
    assert matrix.main() == 0
    written = (tmp_path / "docs" / "kernels.md").read_text(encoding="utf-8")
    names += [f"6.12-{arch}" for arch in kernels.FOREIGN]
    assert f"| check | {' | '.join(names)} |" in written
    assert "and 4 checks that passed on all" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "columns"),
    [
        ([], ["6.1", "7.2"]),
        (["--kernel", "6.19", "--kernel", "6.12-rt"], ["6.19", "6.12-rt"]),
        (["--kernel", "."], ["6.1", "7.2", "6.18.0-mine"]),
        (["--kernel", ".", "--kernel", "6.1"], ["6.1", "6.18.0-mine"]),
        (
            ["--kernel", "6.1", "--kernel", ".", "--kernel", "ci", "--kernel", "docs"],
            ["6.1", "6.18.0-mine", "6.18.0-mine-2", "6.18.0-mine-3"],
        ),
        (["--kernel", "stock"], ["stock"]),
        (["--rt"], ["6.1", "7.2", "7.3-rt"]),
    ],
)
def test_columns(
    arguments: list[str],
    columns: list[str],
    runs: Runs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        kernels.ARCHIVES[""], "_found", dict.fromkeys(["6.1", "7.2-rt", "7.3-rt"], "")
    )
    monkeypatch.setattr("sys.argv", ["ci/matrix", *arguments])
    runs()
    assert matrix.main() == 0
    written = (tmp_path / "reports" / "kernels.md").read_text(encoding="utf-8")
    assert f"| check | {' | '.join(columns)} |" in written


def test_a_kernel_that_is_not_there_is_refused_at_once(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["ci/matrix", "--kernel", "6.1", "--kernel", "typo"])
    with pytest.raises(SystemExit):
        matrix.main()
    assert "--kernel typo: no series, such as 6.12 or 7.3-rt, and no such file" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("status", "tests", "said"),
    [
        (guest.GUEST_FAILED, [], "kernel 7.2 did not boot"),
        (guest.TIMED_OUT, [], "kernel 7.2 was not done after"),
        (guest.KERNEL_FAULTED, ["test_one"], "kernel 7.2 told of a fault of its own"),
        (guest.KERNEL_FAULTED, [], "kernel 7.2 died while it was tested"),
        (0, [], "kernel 7.2 left no readable selftest-7.2.json and kernel-7.2.xml"),
        (1, ["test_one"], "kernel 7.2 has checks that failed"),
        (0, ["test_two"], "kernel 7.2 did not run test_a.TestB.test_one"),
    ],
)
def test_a_kernel_without_a_whole_result_is_a_failure(
    runs: Runs, status: int, tests: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(k7_2=(status, tests))
    assert matrix.main() == 1
    assert said in capsys.readouterr().out


def test_the_reports_of_an_earlier_run_do_not_count(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    runs()
    assert matrix.main() == 0
    runs(k6_1=(0, []))
    assert matrix.main() == 1
    assert "kernel 6.1 left no readable" in capsys.readouterr().out


def test_a_kernel_that_can_not_be_had_is_a_failure(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unavailable(asked: str) -> Kernel:
        raise KernelUnavailableError("no archive answers")

    runs()
    monkeypatch.setattr(built, "kernel", unavailable)
    assert matrix.main() == 1
    out = capsys.readouterr().out
    assert "kernel 6.1 could not be had: no archive answers" in out
    assert "every check passed" not in out


@pytest.mark.parametrize("series", ["5.10", "6.1"])
@pytest.mark.parametrize(("at_once", "cpus"), [(1, None), (2, 2), (8, 1)])
def test_kernels_at_once_share_the_cpus(
    series: str,
    at_once: int,
    cpus: int | None,
    runs: Runs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    command = matrix.command(Column(series, kernel(series)), [], at_once)
    if cpus is None or series == "5.10":
        assert "--cpus" not in command
    else:
        assert command[command.index("--cpus") + 1] == str(cpus)


def test_no_kernel_at_once_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["ci/matrix", "--jobs", "0"])
    with pytest.raises(SystemExit, match="2"):
        matrix.main()


# --- A container, on one of the kernels


def test_all_of_it_in_a_container_too(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["ci/matrix", "--kernel", "6.1", "--container"])
    monkeypatch.setattr("shutil.which", lambda _: "/usr/sbin/dockerd")
    runs(k6_1_container=(1, []))
    assert matrix.main() == 1
    written = (tmp_path / "reports" / "kernels.md").read_text(encoding="utf-8")
    assert "| check | 6.1 | 6.1-container |" in written
    assert "| test_a.TestB.test_one | pass | ABSENT |" in written
    assert "6.1-container left no readable" in written


def test_what_runs_in_the_container_is_what_runs_elsewhere(runs: Runs) -> None:
    runs()
    plain, contained = (
        matrix.command(Column("6.1", kernel("6.1"), contained=contained), ["-x"], 1)
        for contained in (False, True)
    )
    start = contained.index("ci.contained") + 1
    inside = [part.replace("6.1-container", "6.1") for part in contained[start:]]
    assert inside == plain[plain.index("--") + 1 :]


# --- The peers, on one of the kernels


@pytest.mark.parametrize(
    ("arguments", "on"),
    [
        ([], "7.2"),
        (["--brief", "--jobs", "2"], "7.2"),
        (["--kernel", "6.12"], None),
        (["--", "-k", "socket"], None),
        (["--no-peers"], None),
        (["--peers", "--kernel", "6.12"], "6.12"),
        (["--peers", "--kernel", "5.10", "--kernel", "6.12", "--kernel", "6.12-arm64"], "6.12"),
        (["--peers", "--kernel", "7.2", "--kernel", "7.3-rt"], "7.2"),
    ],
)
def test_where_the_peers_are_met(
    arguments: list[str],
    on: str | None,
    runs: Runs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["ci/matrix", *arguments])
    runs()
    assert matrix.main() == 0
    written = (tmp_path / "reports" / "kernels.md").read_text(encoding="utf-8")
    rows = [line for line in written.splitlines() if line.startswith("| peers.")]
    (columns,) = (line for line in written.splitlines() if line.startswith("| check |"))
    cells = ["pass" if name.strip() == on else "-" for name in columns.split("|")[2:-1]]
    names = [f"test_one-on-{on}", "test_block"] if on else []
    assert rows == [f"| peers.{name} | {' | '.join(cells)} |" for name in names]


def test_peers_take_a_kernel_that_runs_their_programs(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["ci/matrix", "--peers", "--kernel", "6.12-arm64"])
    runs()
    with pytest.raises(SystemExit, match="2"):
        matrix.main()
    assert "the servers take a kernel of this machine's" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "servers", "said"),
    [
        (1, ["redis", "!knot"], "kernel 7.2 with the peers has checks that failed"),
        (0, ["!knot"], "FAIL: peers.knot-on-7.2: another answer"),
        (0, [], "kernel 7.2 with the peers left no readable peers.xml"),
        (guest.GUEST_FAILED, [], "kernel 7.2 with the peers did not boot"),
        (guest.KERNEL_FAULTED, ["redis"], "kernel 7.2 with the peers told of a fault of its own"),
    ],
)
def test_peers_that_fail_are_a_failure(
    status: int,
    servers: list[str],
    said: str,
    runs: Runs,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs(k7_2_peers=(status, servers))
    assert matrix.main() == 1
    out = capsys.readouterr().out
    assert said in out
    assert "every check passed" not in out


def test_servers_that_can_not_be_had_are_a_failure(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unavailable() -> Path:
        raise UnavailableError("no archive answers")

    runs()
    monkeypatch.setattr(servers, "root", unavailable)
    assert matrix.main() == 1
    assert "kernel 7.2 had no peers: no archive answers" in capsys.readouterr().out


def test_what_is_wrong_with_the_peers_hides_no_other_gap() -> None:
    column = Column("7.2", peers=True)
    assert column.lacks(("a", "b"))
    assert column.lacks((PEERS, "redis"))
    column.peers_problems.append("was not done")
    assert column.lacks(("a", "b"))
    assert not column.lacks((PEERS, "redis"))
    assert column.wrong == ["7.2 was not done"]
