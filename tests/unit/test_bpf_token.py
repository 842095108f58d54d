"""Programs loaded with a BPF token: when it is asked for, and what is said when it will not do."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from typing import Any

import pytest

from pykcm import _explain, _kernel, bpf
from pykcm.bpf import _token
from pykcm.errors import CapabilityError, VerifierError
from tests import delegation as staged
from tests.strikes import descriptors, no_descriptor_left

from .test_bpf_functions import NUMBERS

PROBE = "r6=r1; r1=r10; r1+=-8; r2=4; r3=r6; r3+=68; call bpf_probe_read_kernel; r0=0; exit"

_refusal = staged.refusal()
needs_token = pytest.mark.skipif(bool(_refusal), reason=_refusal)


@pytest.mark.skipif(os.geteuid() != 0, reason="delegating requires root")
def test_where_there_can_be_no_namespaces_that_is_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, "unshare: no space")

    monkeypatch.setattr(staged, "_called", refuse)
    reason = os.strerror(errno.ENOSPC)
    assert staged.refusal().startswith(f"this kernel delegates no BPF (in the child: {reason})")


@needs_token
def test_a_token_is_used_unasked_and_none_is_left() -> None:
    def run() -> None:
        before = len(descriptors())
        for _ in range(3):
            with no_descriptor_left(), bpf.Program.load(PROBE) as program:
                assert program.info.name == "pykcm"
                assert len(descriptors()) == before + 1

    staged.delegated(staged.FULL, run)


@needs_token
def test_a_refusal_with_a_token_has_the_log_and_leaves_no_descriptor() -> None:
    def run() -> None:
        staged.drop(staged.CAP_SYS_ADMIN, staged.CAP_PERFMON)
        with no_descriptor_left():
            bpf.Program.load("r0 = 0; exit").close()
            with pytest.raises(VerifierError) as caught:
                bpf.Program.load(PROBE)
            assert "probe_read_kernel" in caught.value.log
            del caught

    staged.delegated(staged.FULL, run)


@needs_token
@pytest.mark.parametrize("lacking", staged.FULL)
def test_what_is_not_delegated_is_named(lacking: str) -> None:
    options = {name: value for name, value in staged.FULL.items() if name != lacking}

    def run() -> None:
        with pytest.raises(CapabilityError) as caught:
            bpf.Program.load("r0 = 0; exit")
        assert caught.value.errno == errno.EPERM
        assert f"does not delegate {lacking}={staged.FULL[lacking]}." in str(caught.value)

    staged.delegated(options, run)


@needs_token
def test_functions_need_another_command() -> None:
    def run() -> None:
        with pytest.raises(CapabilityError, match="does not delegate delegate_cmds=btf_load"):
            bpf.Program.load(NUMBERS, functions_take=0)

    staged.delegated(staged.FULL, run)
    staged.delegated(
        {**staged.FULL, "delegate_cmds": "prog_load:btf_load"},
        lambda: bpf.Program.load(NUMBERS, functions_take=0).close(),
    )


@needs_token
def test_the_variable_says_where_and_its_emptiness_nowhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
) -> None:
    def run() -> None:
        with pytest.raises(CapabilityError, match="no BPF token"):
            bpf.Program.load("r0 = 0; exit")
        monkeypatch.setenv(_token.VARIABLE, os.fspath(tmp_path))
        bpf.Program.load("r0 = 0; exit").close()
        monkeypatch.setenv(_token.VARIABLE, "")
        with pytest.raises(CapabilityError, match=f"no BPF token .{_token.VARIABLE} is empty"):
            bpf.Program.load("r0 = 0; exit")

    staged.delegated(staged.FULL, run, os.fspath(tmp_path))


@pytest.mark.skipif(os.geteuid() != 0, reason="requires root, to drop its capabilities")
def test_an_ordinary_user_is_told_three_ways() -> None:
    script = (
        "from pykcm import VerifierError, bpf\n"
        "try: bpf.Program.load('r1 = r10; r1 += -8; r2 = 8; r3 = 0; "
        "call bpf_probe_read_kernel; exit')\n"
        "except VerifierError: print('anybody may load')\n"
        "except PermissionError as error: print(error)"
    )
    command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", script]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "anybody may load" in told:
        pytest.skip("this kernel lets everybody load socket filters")
    for way in (_explain.RUN_WITH_CAPABILITIES, _explain.RUN_WITH_TOKEN, _explain.LOAD_AND_PIN):
        assert way in told
    assert "no BPF token" in told


def test_no_token_is_asked_for_where_a_plain_load_does(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    def load(*arguments: Any) -> int:
        asked.extend(arguments[7:8])
        if len(arguments) < 8 and refuse:
            raise PermissionError(errno.EPERM, "refused")
        return os.open(os.devnull, os.O_RDONLY)

    monkeypatch.setattr(_kernel, "bpf_load", load)
    monkeypatch.setattr(_explain, "may_load", lambda: False)
    refuse = False
    bpf.Program.load("r0 = 0; exit").close()
    assert asked == []
    refuse = True
    bpf.Program.load("r0 = 0; exit").close()
    assert asked == [b"/sys/fs/bpf"]


@pytest.mark.parametrize(
    ("options", "lacking"),
    [
        ("rw,delegate_cmds=any,delegate_progs=0x2,delegate_attachs=any", []),
        ("rw,delegate_cmds=map_create:prog_load,delegate_progs=xdp:0x4", ["progs", "attachs"]),
        ("rw", ["cmds", "progs", "attachs"]),
    ],
)
def test_what_a_mount_lacks(
    monkeypatch: pytest.MonkeyPatch, options: str, lacking: list[str]
) -> None:
    monkeypatch.setattr(_explain, "mounted", lambda path: ("bpf", options))
    found = _token.missing("/x", [0] * 5)
    assert [each.partition("=")[0] for each in found or []] == [
        f"delegate_{name}" for name in lacking
    ]


def test_the_kernel_is_believed_before_the_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: str) -> tuple[str, str]:
        raise AssertionError("read")

    monkeypatch.setattr(_explain, "mounted", read)
    assert _token.missing("/x", [0, 1, 1 << 5, 1 << 1, 1]) == []
    assert _token.missing("/x", [0, 1, 1 << 5, 1 << 1, 1], True) == ["delegate_cmds=btf_load"]
    assert _token.missing("/x", [0, 1, 1 << 18, 1 << 1, 2]) == [
        "delegate_cmds=prog_load",
        "delegate_attachs=cgroup_inet_ingress",
    ]


def test_the_options_that_are_documented_are_the_needed_ones() -> None:
    assert dict(each.split("=") for each in _token.OPTIONS.split(",")) == staged.FULL
