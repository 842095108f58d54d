"""`kcm selftest --diff`: what differs between two reports."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from pykcm.selftest import command, diff


def report(path: Path, *checks: tuple[str, str, float], **facts: str) -> str:
    described: list[dict[str, Any]] = [
        {"name": name, "kind": kind, "seconds": seconds, "lines": ["seen: 2"]}
        for name, kind, seconds in checks
    ]
    path.write_text(json.dumps({**facts, "checks": described}), encoding="utf-8")
    return str(path)


def one(**other: object) -> str:
    """A report of one check, of which something is otherwise."""
    check = {"name": "x.one", "kind": "pass", "seconds": 1.0, "lines": []}
    return json.dumps({"checks": [{**check, **other}]})


def differences(first: str, second: str) -> tuple[int, list[str]]:
    file = io.StringIO()
    status = diff.run(first, second, file)
    return status, file.getvalue().splitlines()


def test_the_same(tmp_path: Path) -> None:
    first = report(tmp_path / "a", ("x.one", "pass", 1.0), kernel="6.1")
    assert differences(first, first) == (0, ["0 of 1 checks differ"])


def test_what_differs(tmp_path: Path) -> None:
    first = report(
        tmp_path / "a",
        ("x.one", "pass", 0.1),
        ("x.two", "xfail", 0.1),
        ("x.slow", "pass", 0.5),
        ("x.gone", "pass", 0.1),
        kernel="6.1",
        command="kcm selftest a",
    )
    second = report(
        tmp_path / "b",
        ("x.one", "fail", 0.1),
        ("x.two", "xfail", 0.3),
        ("x.slow", "pass", 4.0),
        ("x.new", "pass", 0.1),
        kernel="6.2",
        command="kcm selftest b",
    )
    assert differences(first, second) == (
        1,
        [
            "kernel: 6.1 -> 6.2",
            "x.one: pass -> fail",
            "    seen: 2",
            "x.slow: 0.5 s -> 4 s",
            "x.gone: pass -> absent",
            "x.new: absent -> pass",
            "    seen: 2",
            "3 of 5 checks differ",
        ],
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"checks": [{"name": "x.one", "ki', "is not a whole report"),
        ("KTAP version 1\n", "is not a whole report"),
        ("", "is not a whole report"),
        ("[]", "is JSON, but not a report"),
        ('{"checks": [{"name": "x.one"}]}', "is JSON, but not a report"),
        ('{"checks": null}', "is JSON, but not a report"),
        ('{"checks": {"a": 1}}', "is JSON, but not a report"),
        (one(name=["x"]), "is JSON, but not a report"),
        (one(kind=None), "is JSON, but not a report"),
        (one(seconds="1"), "is JSON, but not a report"),
        (one(lines=None), "is JSON, but not a report"),
        ("[" * 100_000, "is nested too deeply for a report"),
        ('{"checks": []}', "has no checks to compare\n"),
        (
            '{"obstacles": ["socket(AF_KCM) fails"], "checks": []}',
            "has no checks to compare: socket(AF_KCM) fails\n",
        ),
        (None, "can't be read: No such file or directory"),
    ],
)
def test_a_file_that_is_not_a_report(
    text: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = report(tmp_path / "a", ("x.one", "pass", 1.0)), tmp_path / "b"
    if text is not None:
        bad.write_text(text, encoding="utf-8")
    assert command.main(["--diff", good, str(bad)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"kcm selftest: {bad} {said}")
    assert err.count("\n") == 1
