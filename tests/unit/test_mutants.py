"""ci/mutants: bugs are put where they belong or nowhere, and what a guest tells is read right."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ci import modules, mutants
from ci.bugs import BUGS, KCM, STRPARSER, Bug, PlaceMissingError
from ci.guest import KERNEL_FAULTED, TIMED_OUT
from ci.kernels import Kernel, KernelUnavailableError
from ci.mutants import Finding, Findings
from pykcm.selftest.check import every
from pykcm.selftest.checks import GROUPS

BUG = Bug("b", KCM, "f", 2018, "fix it", "it is wrong", (("good();", "bad();"),))
PARSER = """\
static struct workqueue_struct *strp_wq;
int strp_init(void) { return queue(strp_wq); }
EXPORT_SYMBOL_GPL(strp_init);
static int __init strp_dev_init(void)
{
\tstrp_wq = create();
}
device_initcall(strp_dev_init);
"""


class TestBugs:
    def test_there_are_enough_of_kcms_own(self) -> None:
        assert len(BUGS) >= 18
        assert len([bug for bug in BUGS if bug.file == KCM]) >= 12

    def test_names_are_unique(self) -> None:
        assert len({bug.name for bug in BUGS}) == len(BUGS)

    @pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
    def test_some_checks_are_near(self, bug: Bug) -> None:
        assert any(re.search(bug.near, check) for check in every(GROUPS))

    def test_put_back(self) -> None:
        assert BUG.put_back("f() { good(); }") == "f() { bad(); }"

    @pytest.mark.parametrize("text", ["f() { better(); }", "f() { good(); good(); }"])
    def test_another_source_is_told(self, text: str) -> None:
        with pytest.raises(PlaceMissingError, match=r"kcmsock.c, f\(\) has not once but \d times"):
            BUG.put_back(text)

    @pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
    def test_each_has_its_place(self, bug: Bug) -> None:
        """In the source that PYKCM_KERNEL_SOURCE or the cache has: Debian's 6.12."""
        places = [*Path(".cache/headers").glob("6.12.*-amd64/source")]
        places += [Path(name) for name in [os.environ.get("PYKCM_KERNEL_SOURCE", "")] if name]
        source = next((place for place in places if (place / KCM).exists()), None)
        if source is None:
            pytest.skip("no source of Debian's 6.12 is here: `make mutants` fetches it")
        assert bug.put_back_in(source) != (source / bug.file).read_text(encoding="utf-8")


class TestModules:
    def test_the_stream_parser_as_a_part(self) -> None:
        assert modules.without_exports(PARSER) == (
            "#define strp_wq system_wq\nint strp_init(void) { return queue(strp_wq); }\n"
        )

    def test_another_stream_parser(self) -> None:
        with pytest.raises(KernelUnavailableError, match=STRPARSER):
            modules.without_exports("int strp_init(void);\n")

    def test_a_kernel_that_has_kcm_built_in(self, tmp_path: Path) -> None:
        (tmp_path / ".config").write_text("\nCONFIG_AF_KCM=y\n")
        with pytest.raises(KernelUnavailableError, match="CONFIG_AF_KCM=m"):
            modules.of_directory(tmp_path)

    def test_a_kernel_that_was_built_elsewhere_than_its_source(self, tmp_path: Path) -> None:
        (tmp_path / ".config").write_text("\nCONFIG_AF_KCM=m\n")
        assert modules.of_directory(tmp_path) == modules.Tree(tmp_path, tmp_path)
        (tmp_path / "source").mkdir()
        assert modules.of_directory(tmp_path) == modules.Tree(tmp_path / "source", tmp_path)


def event(bug: str, kind: str, **more: object) -> dict[str, Any]:
    return {"bug": bug, "event": kind, **more}


def test_a_fault_is_told_without_what_is_of_this_run() -> None:
    line = (
        "[  1.0] WARNING: CPU: 0 PID: 303 at /home/me/mutants/b/kcmsock.c:633 kcm_write_msgs+0x31"
    )
    lines = ["[  1.0] ------------[ cut here ]------------", line, "the kernel told of a fault"]
    assert mutants.in_a_line(lines) == "WARNING: kcmsock.c:633 kcm_write_msgs+0x31"


class Booted:
    """Guests that tell what is written here, one after the other."""

    boots: list[tuple[list[dict[str, Any]], int, str]]
    given: list[list[str]]

    def __init__(self, asked: argparse.Namespace, todo: dict[str, Path], keep: Path) -> None:
        self.given.append(list(todo))
        self._events, self.status, console = self.boots.pop(0)
        (keep / "console").write_text(console)

    def events(self) -> Iterator[dict[str, Any]]:
        yield from self._events


def tried(
    monkeypatch: pytest.MonkeyPatch, *boots: tuple[list[dict[str, Any]], int, str]
) -> tuple[list[Finding], list[list[str]]]:
    monkeypatch.setattr(Booted, "boots", list(boots), raising=False)
    monkeypatch.setattr(Booted, "given", [], raising=False)
    monkeypatch.setattr(mutants, "Guest", Booted)
    found: list[Finding] = []
    mutants.try_all(argparse.Namespace(), {"a": Path("a.ko"), "b": Path("b.ko")}, found.append)
    return found, Booted.given


class TestGuests:
    def test_one_guest_for_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lines = ["x.y: it is so.", "expected: 1", "seen: 2"]
        events = [
            event("a", "began"),
            event("a", "done", by="selftest", seen={"x.y": lines}),
            event("b", "began"),
            event("b", "done", by="", seen={}),
        ]
        found, given = tried(monkeypatch, (events, 0, ""))
        assert found == [Finding("a", "selftest", {"x.y": "expected: 1, seen: 2"}), Finding("b")]
        assert given == [["a", "b"]]

    def test_a_kernel_that_dies_has_seen_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        console = (
            "[    1.0] ------------[ cut here ]------------\n"
            "[    1.0] BUG: kernel NULL pointer dereference, address: 0\n"
            "[    1.1] Kernel panic - not syncing: Fatal exception\n"
        )
        dies = [
            event("a", "began"),
            event("a", "checks", near="^options"),
            event("a", "check", name="options.set_unknown_option_is_enoprotoopt"),
        ]
        goes_on = [event("b", "began"), event("b", "done", by="", seen={})]
        found, given = tried(monkeypatch, (dies, KERNEL_FAULTED, console), (goes_on, 0, ""))
        said = "the kernel died: BUG: kernel NULL pointer dereference, address: 0"
        check = "options.set_other_level_is_enoprotoopt"
        assert found == [Finding("a", "selftest", {check: said}), Finding("b")]
        assert given == [["a", "b"], ["b"]]

    def test_a_guest_that_hangs_has_seen_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        last = [*every(GROUPS)][-1]
        hangs = [
            event("a", "began"),
            event("a", "checks", near=re.escape(last)),
            event("a", "check", name=last),
        ]
        goes_on = [event("b", "began"), event("b", "done", by="", seen={})]
        found, _ = tried(monkeypatch, (hangs, TIMED_OUT, ""), (goes_on, 0, ""))
        assert (found[0].by, [*found[0].seen]) == ("stress", ["stress"])

    @pytest.mark.parametrize("events", [[], [event("a", "began")]])
    def test_a_guest_that_was_ended_proves_nothing(
        self, monkeypatch: pytest.MonkeyPatch, events: list[dict[str, Any]]
    ) -> None:
        with pytest.raises(KernelUnavailableError, match="with status 143"):
            tried(monkeypatch, (events, 143, ""))


class TestFindings:
    @pytest.fixture
    def findings(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Findings:
        monkeypatch.setattr(mutants, "REPORTS", tmp_path)
        return Findings(Kernel("6.12", "6.12.1", tmp_path, None))

    def test_they_are_kept(self, findings: Findings) -> None:
        findings.add(Finding(BUGS[0].name, "selftest", {"x.y": "seen: 2"}))
        findings.add(Finding(BUGS[1].name))
        again = Findings(findings.kernel)
        again.load()
        assert again.found == findings.found
        assert again.count() == "1 of 2"

    def test_what_could_not_be_built_does_not_count(self, findings: Findings) -> None:
        findings.add(Finding(BUGS[0].name, problem="no such place"))
        assert findings.count() == "0 of 0"

    def test_the_document(self, findings: Findings) -> None:
        for bug in BUGS:
            findings.add(Finding(bug.name, "selftest", {"x.y": "seen: 2"}))
        findings.add(Finding(BUGS[-1].name))
        text = findings.markdown()
        assert f"{len(BUGS) - 1} of {len(BUGS)} are seen" in text
        assert f"- `{BUGS[0].name}`, x.y: seen: 2" in text
        assert text.count(f"\n- `{BUGS[-1].name}`: ") == 1
