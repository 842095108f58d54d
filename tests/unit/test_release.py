"""What `make dist` and the release workflow refuse."""

import tarfile
from pathlib import Path

import pytest

from ci import dist, release

TRACKED = ["README.md", "pykcm/__init__.py"]
ADDED = ["PKG-INFO", "setup.cfg", "pykcm.egg-info/SOURCES.txt"]


def sdist(directory: Path, names: list[str]) -> Path:
    path = directory / "pykcm-1.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(f"pykcm-1/{name}"))
    return path


def test_an_sdist_of_all_that_is_tracked_is_accepted(tmp_path: Path) -> None:
    dist.check_contents(sdist(tmp_path, TRACKED + ADDED), TRACKED)


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["README.md", *ADDED], "lacks pykcm/__init__.py$"),
        ([*TRACKED, *ADDED, "pykcm/_native.c"], "has pykcm/_native.c too$"),
    ],
)
def test_another_sdist_is_refused(tmp_path: Path, names: list[str], complaint: str) -> None:
    with pytest.raises(dist.DistError, match=complaint):
        dist.check_contents(sdist(tmp_path, names), TRACKED)


def test_builds_that_differ_are_named() -> None:
    dist.check_equal({"a": "1", "b": "2"}, {"b": "2", "a": "1"})
    with pytest.raises(dist.DistError, match=r"different bytes: b, c$"):
        dist.check_equal({"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"})


def test_a_command_that_fails_says_what_it_printed() -> None:
    with pytest.raises(dist.DistError, match=r"(?s)^sh -c .*:\nreason$"):
        dist.run("sh", "-c", "echo reason >&2; exit 3")


def project(directory: Path, changes: str, home: str) -> Path:
    (directory / "pykcm").mkdir()
    (directory / "pykcm" / "__init__.py").write_text('__version__ = "1.2.0"\n')
    (directory / "CHANGELOG.md").write_text(f"# Changelog\n\n## {changes}\n")
    (directory / "pyproject.toml").write_text(f'[project.urls]\nHomepage = "{home}"\n')
    return directory


def test_a_tag_for_which_all_is_done_may_be_released(tmp_path: Path) -> None:
    ready = project(tmp_path, "[1.2.0] - 2030-01-31", "https://kcm.example/")
    assert release.faults("v1.2.0", ready) == []


def test_what_is_left_to_do_is_named(tmp_path: Path) -> None:
    unready = project(tmp_path, "[1.2.0] - Unreleased", "https://example.org/pykcm")
    tag, changes, home = release.faults("v1.2", unready)
    assert tag == "the tag is v1.2, but pykcm.__version__ is 1.2.0"
    assert "[1.2.0] - YYYY-MM-DD" in changes
    assert "[project.urls]" in home
