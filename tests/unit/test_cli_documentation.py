"""docs/commands.md, the tutorial, manual pages and completion say what the commands do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ci import manual
from pykcm import cli
from tests import documents

ROOT = Path(__file__).parents[2]
DOCUMENT = documents.text("docs/commands.md")
# Blocks of commands that are run here, each with what it prints.
EXAMPLES = [
    example
    for page in ("docs/commands.md", "docs/tutorial.md")
    for example in re.findall(r"<!-- run -->\n\n((?:    .*\n|\n)+)", documents.text(page))
]


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """An environment in which `kcm` and `python` are these, in a directory with the tutorial's."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name, module in (("kcm", "-m pykcm "), ("python", "")):
        command = binaries / name
        command.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" {module}"$@"\n')
        command.chmod(0o755)
    for block in documents.blocks("docs/tutorial.md"):
        if block.file:
            (tmp_path / block.file).write_text(block.text, encoding="utf-8")
    return {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}"}


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples(example: str, shell: dict[str, str], tmp_path: Path) -> None:
    lines = [line.removeprefix("    ") for line in example.rstrip("\n").split("\n")]
    commands = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    shown = subprocess.run(
        ["bash", "-c", "exec 2>&1\n" + "\n".join(commands)],
        cwd=tmp_path,
        env=shell,
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.stdout.splitlines() == [line for line in lines if not line.startswith("$ ")]


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 5


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_has_a_section(name: str) -> None:
    assert f"\n## kcm {name}\n" in DOCUMENT
    assert re.search(rf"^    kcm {name} +\S", DOCUMENT, re.MULTILINE)


def test_the_manual_pages(tmp_path: Path) -> None:
    manual.main([str(tmp_path)])
    pages = {path.name: path.read_text() for path in (tmp_path / "man1").iterdir()}
    assert set(pages) == {"kcm.1", *(f"kcm-{name}.1" for name in cli.COMMANDS)}
    assert all(rf".BR kcm\-{name} (1)" in pages["kcm.1"] for name in cli.COMMANDS)
    assert r".B \-\-length\-field FIELDS" in pages["kcm-frame.1"]
    assert ".SH EXIT STATUS\n.nf\n  0  done" in pages["kcm-frame.1"]
    assert r"'\er\en'" in pages["kcm-frame.1"]  # '\r\n', as roff writes it
    assert "exit status: 0, all is as it should be" in pages["kcm-selftest.1"]


def test_roff_has_nothing_to_say_about_the_pages(tmp_path: Path) -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed, which reads manual pages")
    manual.main([str(tmp_path)])
    for path in (tmp_path / "man1").iterdir():
        command = ["groff", "-man", "-ww", "-z", "-Tutf8", str(path)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["dis"], ["disasm"]),
        (["frame", "thr"], ["thrift_framed"]),
        (["connect", "localhost", "1", "POSTGRESQL_"], ["POSTGRESQL_CLIENT"]),
        (["frame", "--framing", "d"], ["dns", "diameter"]),
        (["frame", "--form"], ["--format"]),
        (["frame", "--format", "c"], ["c-array", "c"]),
        (["selftest", "--exp"], ["--expect-known", "--export"]),
        (["selftest", "--filter", "delineation.n"], None),
    ],
)
def test_completion_in_bash(
    words: list[str], found: list[str] | None, shell: dict[str, str]
) -> None:
    """As bash calls it: the function of the script that `kcm` writes."""
    given = " ".join(f"'{word}'" for word in ["kcm", *words])
    script = (
        'eval "$(_KCM_COMPLETE=bash_source kcm)"\n'
        f"COMP_WORDS=({given}) COMP_CWORD={len(words)}\n"
        "_kcm_completion kcm\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    shown = subprocess.run(
        ["bash", "-c", script], env=shell, capture_output=True, text=True, check=True
    ).stdout.split()
    if found is None:
        from pykcm.selftest import report

        names = [check.name for group in report.select(None) for check in group.checks]
        assert shown
        assert shown == [name for name in names if name.startswith(words[-1])]
    else:
        assert sorted(shown) == sorted(found)


@pytest.mark.parametrize("name", ["zsh", "fish"])
def test_completion_in_other_shells(name: str, shell: dict[str, str]) -> None:
    script = subprocess.check_output(
        ["kcm"], env={**shell, "_KCM_COMPLETE": f"{name}_source"}, text=True
    )
    assert f"_KCM_COMPLETE={name}_complete" in script
    answer = subprocess.check_output(
        ["kcm"],
        env={
            **shell,
            "_KCM_COMPLETE": f"{name}_complete",
            "COMP_WORDS": "kcm frame D",
            "COMP_CWORD": "D" if name == "fish" else "2",
        },
        text=True,
    )
    assert "DNS" in answer
    assert "DIAMETER" in answer
