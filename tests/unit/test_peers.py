"""ci/peers: what it makes of the tests' report, and that nothing but whole ones is a success."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ci import peers, servers
from ci.apt import UnavailableError


def report(path: Path, *outcomes: str) -> None:
    """A JUnit XML file of servers a, b, …, whose tests ended so; "" for a good end."""
    suite = ElementTree.Element("testsuite")
    for letter, outcome in zip("abc", outcomes, strict=False):
        case = ElementTree.SubElement(suite, "testcase", name=f"test_server[{letter}]")
        properties = ElementTree.SubElement(case, "properties")
        ElementTree.SubElement(properties, "property", name="title", value=letter)
        if outcome:
            ElementTree.SubElement(case, outcome, message="because").text = "a.py:1: E"
    ElementTree.ElementTree(suite).write(path)


@pytest.mark.parametrize(
    ("outcomes", "status", "expected"),
    [
        (["", ""], 0, 0),
        (["", "failure"], 1, 1),
        (["", "error"], 1, 1),
        (["", "skipped"], 0, 1),
        ([""], 123, 1),  # the kernel told of a fault
        ([], 0, 1),
    ],
)
def test_only_whole_runs_are_good(
    outcomes: list[str],
    status: int,
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "peers.xml"

    def command(*_: object) -> list[str]:
        if outcomes:
            report(path, *outcomes)
        return [sys.executable, "-c", f"raise SystemExit({status})"]

    monkeypatch.setattr(peers, "REPORTS", tmp_path)
    monkeypatch.setattr(peers, "command", command)
    monkeypatch.setattr(peers, "root", lambda: tmp_path)
    for arguments in (["ci/peers"], ["ci/peers", "--json"]):
        monkeypatch.setattr(sys, "argv", arguments)
        path.unlink(missing_ok=True)
        assert peers.main() == expected
    said = capsys.readouterr().out
    found = json.loads(said[said.index("{") :])
    assert found["status"] == status
    results = ["pass" if not outcome else "FAIL" for outcome in outcomes]
    assert [row["result"] for row in found["tests"]] == results
    if outcomes[1:] and outcomes[1]:
        assert "test_server[b]: " in said
        assert "because" in said


def test_servers_that_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"ID": "other"})
    monkeypatch.setattr(sys, "argv", ["ci/peers"])
    assert peers.main() == 1
    assert "could not be had: they are Debian's" in capsys.readouterr().err


def test_a_package_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unpack(suite: str, directory: Path) -> None:
        raise UnavailableError("E: Unable to locate package knot")

    monkeypatch.setattr(servers, "CACHE", tmp_path)
    monkeypatch.setattr(servers, "release", lambda: "bookworm")
    monkeypatch.setattr(servers, "unpack", unpack)
    with pytest.raises(UnavailableError, match="locate package knot"):
        servers.root()
    assert [path.suffix for path in (tmp_path / "servers").iterdir()] == [".lock"]


def test_without_the_command_the_tests_say_so() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:hypothesispytest", "tests/peers"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "run by `make peers`" in result.stdout + result.stderr
