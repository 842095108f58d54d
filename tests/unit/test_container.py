"""ci/container: which container it chooses, and that none is left. The engine is replaced."""

from __future__ import annotations

import io
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ci import contained, container
from ci.kernels import ROOT


class Engine:
    """The part of a docker client that a run uses, and of the container that it makes."""

    def __init__(self, reports: dict[str, bytes], status: int = 0) -> None:
        self.containers = self
        self.asked: dict[str, Any] = {}
        self.removed = False
        self.interrupted = False
        self.status = status
        self.reports = reports

    def create(self, _image: str, **asked: Any) -> Engine:
        self.asked = asked
        return self

    def start(self) -> None:
        pass

    def logs(self, **_: Any) -> Iterator[bytes]:
        yield b"== kernel tests\n"
        if self.interrupted:
            raise KeyboardInterrupt

    def wait(self) -> dict[str, int]:
        return {"StatusCode": self.status}

    def get_archive(self, _path: str) -> tuple[list[bytes], None]:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, content in self.reports.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return [buffer.getvalue()], None

    def remove(self, *, force: bool) -> None:
        assert force
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        self.removed = True


REPORT = {"reports/kernel.xml": b'<testsuites><testsuite tests="5" skipped="2"/></testsuites>'}


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(container, "ROOT", tmp_path)
    monkeypatch.setattr(container, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(container, "host_has_kcm", lambda: False)
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def run(engine: Any) -> int:
    return container.run(engine, None, [])


def test_reports_come_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = Engine(REPORT)
    assert run(engine) == 0
    assert engine.removed
    assert (tmp_path / "results" / "kernel.xml").read_bytes() == REPORT["reports/kernel.xml"]
    assert "3 tests were run" in capsys.readouterr().err


def test_the_tests_exit_status_is_kept() -> None:
    assert run(Engine(REPORT, 3)) == 3


def test_no_test_is_a_failure() -> None:
    assert run(Engine({})) == 1


def test_a_report_stays_in_the_results(tmp_path: Path) -> None:
    assert run(Engine({"../../kernel.xml": REPORT["reports/kernel.xml"]})) == 0
    assert [path.name for path in tmp_path.rglob("*.xml")] == ["kernel.xml"]
    assert (tmp_path / "results" / "kernel.xml").exists()


def test_an_interrupted_container_is_removed() -> None:
    engine = Engine(REPORT)
    engine.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        run(engine)
    assert engine.removed


def test_without_kcm_the_container_has_no_privilege(capsys: pytest.CaptureFixture[str]) -> None:
    engine = Engine(REPORT)
    run(engine)
    assert "privileged" not in engine.asked
    assert "volumes" not in engine.asked
    assert "has no KCM" in capsys.readouterr().err


def test_with_kcm_the_container_has_the_hosts_modules_read_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(container, "host_has_kcm", lambda: True)
    engine = Engine(REPORT)
    run(engine)
    assert engine.asked["privileged"] is True
    assert engine.asked["volumes"] == {"/lib/modules": {"bind": "/lib/modules", "mode": "ro"}}
    assert "has KCM: privileged" in capsys.readouterr().err


def test_a_contained_command_has_the_guest_s_files_and_no_say_over_them() -> None:
    volumes = contained.lent()
    assert not {f"/{name}" for name in contained.OWN} & volumes.keys()
    writable = [path for path, volume in volumes.items() if volume["mode"] != "ro"]
    assert writable == [str(ROOT)]
    assert volumes["/usr"]["bind"] == "/usr"
    with tarfile.open(fileobj=io.BytesIO(contained.empty())) as archive:
        assert {member.name for member in archive} == {*contained.OWN}
        assert all(member.isdir() for member in archive)
