"""ci/apt.py where the archive is just being replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from ci import apt, kernels


class Archive:
    """An archive whose lists do not fit together the first few times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failures: int, text: str) -> None:
        self.pauses: list[float] = []
        self._failures, self._text = failures, text
        monkeypatch.setattr("time.sleep", self.pauses.append)
        monkeypatch.setattr(apt, "run", self._run)

    def _run(self, *command: object) -> str:
        if self._failures:
            self._failures -= 1
            raise apt.UnavailableError(self._text)
        return ""

    def update(self) -> None:
        fetching = apt.Apt.__new__(apt.Apt)
        fetching.options = []
        fetching.update()


MISMATCH = "`apt-get update` failed: E: Failed to fetch …/dists/sid/main/… Hash Sum mismatch"


def test_it_is_fetched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    archive = Archive(monkeypatch, 2, MISMATCH)
    archive.update()
    assert len(archive.pauses) == 2


def test_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    archive = Archive(monkeypatch, 100, MISMATCH)
    with pytest.raises(apt.UnavailableError, match="Hash Sum"):
        archive.update()
    assert sum(archive.pauses) < 120


def test_a_suite_that_moves_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lists:
        def __init__(self, suites: tuple[str, ...], arch: str) -> None:
            self.suites = suites

        def update(self) -> None:
            if "sid" in self.suites:
                raise apt.BeingReplacedError(MISMATCH)

    monkeypatch.setattr(apt, "Apt", Lists)
    found = kernels.Archive("arm64").apt(kernels.SUITES)
    assert found.suites == kernels.SUITES[:-1]  # type: ignore[attr-defined]
    with pytest.raises(apt.BeingReplacedError):
        kernels.Archive("arm64").apt(("sid",))


def test_no_network_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    archive = Archive(monkeypatch, 100, "E: Temporary failure resolving the archive")
    with pytest.raises(apt.UnavailableError, match="resolving"):
        archive.update()
    assert archive.pauses == []


def test_a_directory_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    home = tmp_path / "cache" / "made"

    def fill(word: str) -> None:
        made = apt.make_once(home, lambda new: (new / "file").write_text(word), again=word == "b")
        assert made == (word != "c")

    def fail(directory: Path) -> None:
        (directory / "file").touch()
        raise OSError

    with pytest.raises(OSError):
        apt.make_once(home, fail)
    assert not home.exists()
    fill("a")
    fill("b")
    with pytest.raises(OSError):
        apt.make_once(home, fail, again=True)
    fill("c")
    assert (home / "file").read_text() == "b"
    assert sorted(path.name for path in home.parent.iterdir()) == ["made", "made.lock"]
