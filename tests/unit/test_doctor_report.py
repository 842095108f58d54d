"""The report of `kcm doctor`: what is in it, and what must not be."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pykcm.doctor import Finding, Status, report

from .test_doctor import kcm, write


def test_the_report_has_what_counts_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    system = write(
        tmp_path,
        proc__cmdline="root=UUID=77 ip=192.0.2.1 token=hunter2 lockdown=integrity",
        proc__net__kcm="*** KCM statistics",
    )
    text = report.make([Finding("x", Status.OK, "to 192.0.2.7")], system=system)
    assert "lockdown=integrity" in text
    assert "*** KCM statistics" in text
    assert "hunter2" not in text
    assert "UUID" not in text
    assert os.uname().nodename not in text
    assert "192.0.2.7" in text
    assert "192.0.2.7" not in report.make(
        [Finding("x", Status.OK, "to 192.0.2.7")], mask=True, system=system
    )


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("to 10.1.2.3:80.", "to <address>:80."),
        ("from 2001:db8::1 on", "from <address> on"),
        ("[fe80::1%eth0]", "[<address>%eth0]"),
        ("to ::1", "to <address>"),
        ("by 52:54:00:12:34:56", "by <address>"),
        ("at 12:34:56 on 6.1.192", "at 12:34:56 on 6.1.192"),
        ("version 6.12.117", "version 6.12.117"),
    ],
)
def test_masking(text: str, masked: str) -> None:
    assert report.masked(text) == masked


def test_the_report_is_for_its_owner_and_follows_no_link(tmp_path: Path) -> None:
    path = tmp_path / "report"
    assert kcm("--report", str(path)).returncode in (0, 1, 2)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "# findings" in path.read_text(encoding="utf-8")
    link = tmp_path / "link"
    link.symlink_to(path)
    result = kcm("--report", str(link))
    assert result.returncode == 1
    assert str(link) in result.stderr
