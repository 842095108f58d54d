"""Loading, running, describing and pinning programs, on the kernel at hand."""

from __future__ import annotations

import contextlib
import copy
import errno
import fcntl
import gc
import os
import pickle
import resource
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from pykcm import Framing, _explain, _kernel, bpf, protocols
from pykcm._binding import lib
from pykcm._offset import PROBE
from pykcm.bpf import Program, _load, _verifier
from pykcm.errors import (
    AssemblyError,
    BPFError,
    CapabilityError,
    UnavailableError,
    VerifierError,
)
from tests.strikes import alarms, descriptors, no_descriptor_left
from tests.unit.bpf_oracle import needs_bpf

pytestmark = needs_bpf

RETURN_0 = "r0 = 0\nexit"


@pytest.fixture(autouse=True)
def _no_descriptor_left() -> Iterator[None]:
    with no_descriptor_left():
        yield
        gc.collect()


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    """A BPF file system of the test's own."""
    directory = tmp_path / "bpffs"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "bpf", "bpf", str(directory)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no BPF file system can be mounted here: {mounted.stderr.strip()}")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


# ---- ids ----


def test_a_program_is_found_by_its_id() -> None:
    with Program.load(RETURN_0, name="by_id") as loaded:
        number = loaded.info.id
        assert number in list(bpf.program_ids())
        with Program.from_id(number) as again:
            assert again.info == loaded.info
            assert again.fd != loaded.fd
    assert number not in list(bpf.program_ids())
    for gone in (number, -1, 1 << 32):
        with pytest.raises(BPFError) as info:
            Program.from_id(gone)
        assert info.value.errno == errno.ENOENT


# ---- running ----


def test_a_program_sees_the_data_from_offset_0() -> None:
    with Program.load("r6 = r1\nr0 = *(u32 *)skb[0]\nexit") as loaded:
        assert loaded.run(b"\x00\x01\x02\x03") == 0x010203
        assert loaded.run(bytearray(b"\x00\x00\x00\x05 and more")) == 5
        assert loaded.run(memoryview(b"\x00\x00\x00\x06")) == 6


def test_the_length_of_the_data_is_what_the_program_sees() -> None:
    with Program.load("r0 = *(u32 *)(r1 + 0)\nexit") as loaded:  # __sk_buff.len
        assert [loaded.run(bytes(size)) for size in (1, 13, 14, 15, 3000)] == [1, 13, 14, 15, 3000]


def test_data_that_looks_like_ip_is_data() -> None:
    with Program.load("r6 = r1\nr0 = *(u8 *)skb[0]\nexit") as loaded:
        assert loaded.run(b"\x45\x00") == 0x45


def test_a_negative_result_reads_as_such() -> None:
    with Program.load("r0 = ERROR\nexit", ERROR=-90) as loaded:
        result = loaded.run(b"x")
        assert result == -90
        assert isinstance(result, int)
        assert pickle.loads(pickle.dumps(result)) == -90


def test_the_mean_duration_is_that_of_one_run() -> None:
    with Program.load(RETURN_0) as loaded:
        started = time.monotonic_ns()
        result = loaded.run(b"x", repeat=100_000)
        passed = time.monotonic_ns() - started
        assert result.duration_ns <= passed / 100_000 + 1


def test_too_much_data_is_an_error() -> None:
    with Program.load(RETURN_0) as loaded:
        with pytest.raises(BPFError, match="on 5000000 bytes failed") as caught:
            loaded.run(bytes(5_000_000))
        assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("repeat", [0, -1, 1 << 32])
def test_a_number_of_runs_out_of_range_is_an_error(repeat: int) -> None:
    with Program.load(RETURN_0) as loaded, pytest.raises(BPFError, match="is run 1 to"):
        loaded.run(b"x", repeat=repeat)


# ---- what the kernel says of it ----


def test_info_and_translated_instructions() -> None:
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    with Program.load("r0 = *(u32 *)(r1 + 0)\nexit", name="a_name.of_15chr") as loaded:
        info = loaded.info
        assert info.type == 1
        assert info.name == "a_name.of_15chr"
        assert len(bytes.fromhex(info.tag)) == 8
        assert info.id > 0
        assert before <= info.load_time <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        code = loaded.translated()
        assert info.translated_size == len(code) >= 16
        # The context's field became a load of the skb's own, at another offset.
        assert code[0] & 7 == 1
        assert code[-8:] == bpf.assemble("exit")
        with Program.load(RETURN_0) as other:
            assert other.info.id != info.id
            assert other.info.tag != info.tag


@pytest.mark.parametrize("framing", [protocols.DNS, protocols.RESP], ids=["DNS", "RESP"])
def test_what_the_kernel_makes_of_a_framing_is_disassembled(framing: Framing) -> None:
    """Calls, packet loads, context fields: and the text assembles to the same again."""
    with framing.load(PROBE) as loaded:
        code = loaded.translated()
    text = bpf.disassemble(code)
    assert text.count("    call ") > 1
    assert bpf.assemble(text) == code


# ---- errors of loading ----

REFUSED = [
    # text, errno, the verifier's words, the line shown
    (
        "r6 = r1\nr0 = 0\nr2 = *(u32 *)(r6 + 1000)  # far\nexit",
        errno.EACCES,
        "invalid bpf_context access off=1000 size=4",
        "line 3 of the text:\n    r2 = *(u32 *)(r6 + 1000)  # far\n",
    ),
    (
        "r0 = r3; exit",
        errno.EACCES,
        "R3 !read_ok",
        "instruction 0, line 1 of the text:\n    r0 = r3; exit\n",
    ),
    ("exit", errno.EACCES, "R0 !read_ok", "line 1"),
    ("r0 = 1", errno.EINVAL, "last insn is not an exit or jmp", ""),
    ("r0 = 0\nexit\nr0 = 1\nexit", errno.EINVAL, "unreachable insn 2", "line 3 of the text"),
    ("r0 = 1\n\nr0 /= 0\nexit", errno.EINVAL, "div by zero", "line 3 of the text:\n    r0 /= 0\n"),
    ("r0 = 1 ll\nr0 <<= 64\nexit", errno.EINVAL, "invalid shift 64", "instruction 2, line 2"),
    ("r0 = 1\nr0 = picked\nexit", errno.EACCES, "!read_ok", "line 2 of the text:\n    r0 = picked"),
    ("call 9999\nexit", errno.EINVAL, "invalid func unknown#9999", "line 1"),
    ("r10 = 1\nexit", errno.EACCES, "frame pointer is read only", "line 1"),
]


@pytest.mark.parametrize(("text", "number", "words", "place"), REFUSED)
def test_the_verifier_is_quoted_with_the_line_of_the_text(
    text: str, number: int, words: str, place: str
) -> None:
    with pytest.raises(VerifierError) as caught:
        Program.load(text, picked="$dst = r5")
    error = caught.value
    assert error.errno == number
    assert words in str(error).split("\n")[0]
    assert place in str(error)
    assert words in error.log
    assert error.log.count("\n") > 1  # all of it, with the verifier's statistics
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.log) == (str(error), error.log)


def test_code_without_text_is_shown_disassembled() -> None:
    code = bpf.assemble("r0 = 0\nr2 = *(u32 *)(r1 + 1000)\nexit")
    with pytest.raises(VerifierError, match=r"instruction 1:\n    r2 = \*\(u32 \*\)\(r1 \+ 1000\)"):
        Program.load(code)
    with pytest.raises(VerifierError, match=r"\(malformed\)|unknown|opcode|last insn"):
        Program.load(bytes(8))


def test_a_log_longer_than_the_first_buffer_is_whole() -> None:
    body = "\n".join(["r6 = r1"] + ["r0 = *(u8 *)skb[0]"] * 20_000)
    with pytest.raises(VerifierError, match="R9 !read_ok") as caught:
        Program.load(body + "\nr0 = r9\nexit")
    assert len(caught.value.log) > 1 << 20
    assert "\n0: " in "\n" + caught.value.log[:2000]
    assert "has the whole log" in str(caught.value)


def test_a_program_that_takes_too_long_to_verify() -> None:
    text = "r0 = 0\nagain: r0 += 1\nif r0 < 2000000 goto again\nexit"
    with pytest.raises(VerifierError, match=r"refused the program: .*too (large|complex)") as too:
        Program.load(text)
    assert too.value.errno == errno.E2BIG
    assert "16 MiB of the log, which is longer" in str(too.value)
    assert len(too.value.log) > 1 << 23


LOGS = [
    # What kernels wrote: 6.1, 6.12, and complaints before the walk.
    (
        "0: R1=ctx(off=0,imm=0) R10=fp0\n0: (b7) r0 = 0                        ; R0_w=0\n"
        "1: (61) r2 = *(u32 *)(r1 +100)\ninvalid bpf_context access off=100 size=4\n"
        "processed 2 insns (limit 1000000) max_states_per_insn 0 total_states 0\n",
        "invalid bpf_context access off=100 size=4",
        1,
    ),
    (
        "; int x = 5; @ program.c:3\n7: (85) call bpf_foo#5\nR1 type=scalar expected=fp\n"
        "; a comment\nverification time 33 usec\nstack depth 0\n",
        "R1 type=scalar expected=fp",
        7,
    ),
    ("jump out of range from insn 4 to 90\n", "jump out of range from insn 4 to 90", 4),
    ("func#0 @0\nlast insn is not an exit or jmp\n", "last insn is not an exit or jmp", None),
    (
        "from 3 to 9: R0=inv0\n9: (95) exit\n\nfrom 2 to 5: R1=ctx\n5: (bf) r0 = r4\n"
        "R4 !read_ok\nprocessed 9 insns\n",
        "R4 !read_ok",
        5,
    ),
    ("", "", None),
]


@pytest.mark.parametrize(("log", "reason", "slot"), LOGS)
def test_logs_of_other_kernels(log: str, reason: str, slot: int | None) -> None:
    found = _verifier.complaint(log)
    assert (found.reason, found.slot) == (reason, slot)


def test_bad_arguments_of_load() -> None:
    with pytest.raises(BPFError, match="the licence has 128 bytes: up to 127"):
        Program.load(RETURN_0, license="x" * 128)
    with pytest.raises(BPFError, match="up to 127 and no NUL"):
        Program.load(RETURN_0, license="GPL\0")
    for name in ("x" * 16, "a-b", "é", "a b"):
        with pytest.raises(BPFError, match="is not up to 15 letters"):
            Program.load(RETURN_0, name=name)
    with pytest.raises(AssemblyError, match="the code is empty"):
        Program.load(b"")
    with pytest.raises(AssemblyError, match="the text has no instruction"):
        Program.load("")
    with pytest.raises(AssemblyError, match="9 bytes"):
        Program.load(bytes(9))
    with pytest.raises(AssemblyError, match="1000001 instructions"):
        Program.load(bytes(8_000_008))
    with pytest.raises(TypeError, match="symbols are for text"):
        Program.load(bpf.assemble(RETURN_0), X=1)


def test_the_licence_counts() -> None:
    text = "r1 = r10\nr1 += -8\nr2 = 8\nr3 = 0\ncall bpf_probe_read_kernel\nr0 = 0\nexit"
    with pytest.raises(VerifierError, match="GPL"):
        Program.load(text, license="Proprietary")
    Program.load(text).close()


class Kernel:
    """Stands in for the kernel: each call's result, in order; None, and no more: the kernel's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **results: Sequence[int | None]) -> None:
        self.results = {name: list(values) for name, values in results.items()}
        self.real = lib
        self.limits: list[tuple[int, int]] = []
        monkeypatch.setattr(_kernel, "lib", self)

    def __getattr__(self, name: str) -> Any:
        if name not in self.results:
            return getattr(self.real, name)

        def call(*arguments: Any) -> int:
            self.limits.append(resource.getrlimit(resource.RLIMIT_MEMLOCK))
            left = self.results[name]
            result = left.pop(0) if left else None
            return int(getattr(self.real, name)(*arguments)) if result is None else result

        return call


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN])
def test_a_load_that_fails_after_the_verifier_is_not_called_its_refusal(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    class AtTheEnd(Kernel):
        def pykcm_bpf_load(self, *arguments: Any) -> int:
            os.close(self.real.pykcm_bpf_load(*arguments))  # the log is written by then
            return -number

    AtTheEnd(monkeypatch)
    with pytest.raises(BPFError, match="loading the program 'pykcm' of 2 instructions") as failed:
        Program.load(RETURN_0)
    assert type(failed.value) is BPFError
    assert failed.value.errno == number
    assert "verifier" not in str(failed.value)


def test_want_of_a_descriptor_is_explained(bpffs: Path) -> None:
    with Program.load(RETURN_0) as loaded:
        loaded.pin(bpffs / "program")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    held: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        for call, argument in (
            (Program.load, RETURN_0),
            (Program.from_pin, str(bpffs / "program")),
        ):
            with pytest.raises(BPFError, match="no descriptor left; close some") as failed:
                call(argument)
            assert type(failed.value) is BPFError
            assert failed.value.errno == errno.EMFILE
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_what_is_known_of_a_log_survives_a_failure_to_get_all_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_load, "_LOG_SIZES", (300, 1 << 20))
    Kernel(monkeypatch, pykcm_bpf_load=[None, None, -errno.ENOMEM])
    with pytest.raises(VerifierError) as refused:
        Program.load("r0 = 0\n" * 1000 + "r0 = r5\nexit")
    assert 0 < len(refused.value.log) < 300


@pytest.mark.parametrize(
    ("held", "count", "words"),
    [
        (set(), 4098, "without CAP_BPF may load 4096"),
        (set(), 2, "too complex"),
        ({"CAP_BPF"}, 4098, "too complex"),
    ],
    ids=["long", "complex", "privileged"],
)
def test_a_program_too_big_without_a_log(
    monkeypatch: pytest.MonkeyPatch, held: set[str], count: int, words: str
) -> None:
    monkeypatch.setattr(_explain, "capabilities", lambda: frozenset(held))
    Kernel(monkeypatch, pykcm_bpf_load=[-errno.E2BIG] * 3)
    with pytest.raises(BPFError, match=words) as refused:
        Program.load("r0 = 0\n" * (count - 1) + "exit")
    assert refused.value.errno == errno.E2BIG


def test_loading_is_tried_again_when_the_kernel_asks_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = [-errno.EAGAIN, -errno.EINTR, -errno.EAGAIN, -errno.EAGAIN, -errno.EAGAIN]
    kernel = Kernel(monkeypatch, pykcm_bpf_load=results)
    Program.load(RETURN_0).close()
    assert len(kernel.limits) == 6


def test_a_kernel_that_asks_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    results = [-errno.EINTR] * 200 + [-errno.EAGAIN] * 1000
    Kernel(monkeypatch, pykcm_bpf_load=results)
    with pytest.raises(BPFError) as caught:
        Program.load(RETURN_0)
    assert caught.value.errno == errno.EAGAIN


def test_locked_memory_is_raised_for_a_kernel_that_counts_it_and_only_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    before = (1 << 16, original[1])
    resource.setrlimit(resource.RLIMIT_MEMLOCK, before)
    modern = Kernel(monkeypatch, pykcm_bpf_load=[])
    Program.load(RETURN_0).close()
    assert modern.limits == [before]
    monkeypatch.undo()
    monkeypatch.setattr(_explain, "may_load", lambda: True)
    old = Kernel(monkeypatch, pykcm_bpf_load=[-errno.EPERM])
    Program.load(RETURN_0).close()
    assert old.limits[0] == before
    assert old.limits[1][0] == before[1] or old.limits[1][0] == resource.RLIM_INFINITY
    assert resource.getrlimit(resource.RLIMIT_MEMLOCK) == before
    resource.setrlimit(resource.RLIMIT_MEMLOCK, original)


def test_a_refusal_has_its_log_though_locked_memory_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_explain, "may_load", lambda: True)
    Kernel(monkeypatch, pykcm_bpf_load=[-errno.EPERM, -errno.EACCES, -errno.EPERM])
    with pytest.raises(VerifierError) as refused:
        Program.load("r0 = r5\nexit")
    assert "R5 !read_ok" in refused.value.log


def test_a_kernel_without_bpf_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    Kernel(monkeypatch, pykcm_bpf_load=[-errno.ENOSYS], pykcm_bpf_get=[-errno.ENOSYS])
    with pytest.raises(UnavailableError, match="no bpf"):
        Program.load(RETURN_0)
    with pytest.raises(UnavailableError, match="no bpf"):
        Program.from_pin("/x")


@pytest.mark.parametrize(
    ("held", "setting", "words"),
    [
        (
            set(),
            "2",
            "neither CAP_BPF nor CAP_SYS_ADMIN, and kernel.unprivileged_bpf_disabled is 2",
        ),
        ({"CAP_PERFMON"}, "1", "attach it by path"),
        ({"CAP_BPF"}, "2", "has CAP_BPF, so a seccomp filter"),
    ],
)
def test_a_refusal_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, held: set[str], setting: str, words: str
) -> None:
    monkeypatch.setattr(_explain, "capabilities", lambda: frozenset(held))
    monkeypatch.setattr(_explain, "_unprivileged_disabled", lambda: setting)
    monkeypatch.setattr(_explain, "_read", lambda path: "")
    Kernel(monkeypatch, pykcm_bpf_load=[-errno.EPERM] * 100)
    with pytest.raises(CapabilityError) as caught:
        Program.load(RETURN_0)
    assert words in str(caught.value)
    assert caught.value.errno == errno.EPERM
    assert isinstance(caught.value, PermissionError)


def without_capabilities(script: str) -> str:
    """What a Python script prints in a process that has no capability."""
    result = subprocess.run(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="requires root, to drop its capabilities")


@needs_root
def test_a_process_without_capabilities_is_refused_with_the_reason() -> None:
    output = without_capabilities(
        """
from pykcm import bpf
from pykcm import _explain
from pykcm.errors import CapabilityError, VerifierError
assert not _explain.capabilities()
try:
    bpf.Program.load("r1 = r10; r1 += -8; r2 = 8; r3 = 0; call bpf_probe_read_kernel; exit")
except (CapabilityError, VerifierError) as error:  # the latter if anybody may load filters
    print(error)
"""
    )
    assert "a process with CAP_BPF and CAP_PERFMON must load this program" in output


def test_signals_during_the_load_do_no_harm() -> None:
    """The verifier gives up when a signal is pending; the handler runs, and it tries again."""
    seen: list[int] = []
    body = "\n".join(["r6 = r1"] + ["r0 = *(u8 *)skb[0]\nif r0 == 5 goto +0"] * 2000)
    with alarms(lambda number, frame: seen.append(number), 0.001, 0.1):
        for _ in range(10):
            Program.load(body + "\nexit").close()
    assert seen


# ---- the descriptor ----


def test_the_descriptor_is_close_on_exec_and_closed_by_the_block() -> None:
    with Program.load(RETURN_0) as loaded:
        assert fcntl.fcntl(loaded.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        assert loaded.fileno() == loaded.fd
        assert not loaded.closed
        assert repr(loaded) == f"<pykcm.bpf.Program fd={loaded.fd}>"
    assert loaded.closed
    assert repr(loaded) == "<pykcm.bpf.Program closed>"
    loaded.close()
    for use in (lambda: loaded.fd, lambda: loaded.info, lambda: loaded.run(b"x")):
        with pytest.raises(ValueError, match="the program is closed"):
            use()


class Struck(Exception):  # noqa: N818
    """An exception that may come at any line, as a signal handler's may."""


def struck_at(number: int, call: Callable[[], object]) -> bool:
    """Make a call; whether it got to so many lines of pykcm that an exception struck."""
    left = number

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_name == "__del__":
            return None  # what is raised there reaches nobody
        if event == "line" and "/pykcm/" in frame.f_code.co_filename:
            left -= 1
            if left == -1:
                raise Struck
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except Struck:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.filterwarnings("ignore:.*was not closed:ResourceWarning")
@pytest.mark.parametrize("way", ["load", "from_pin", "from_id", "close"])
def test_an_exception_at_any_line_leaves_no_descriptor_open(way: str, bpffs: Path) -> None:
    def load() -> None:
        Program.load(code).close()

    def from_pin() -> None:
        Program.from_pin(bpffs / "program").close()

    def from_id() -> None:
        Program.from_id(number).close()

    code = bpf.assemble(RETURN_0)
    with Program.load(code) as pinned:
        pinned.pin(bpffs / "program")
        number = pinned.info.id
    ways = {"load": load, "from_pin": from_pin, "from_id": from_id}
    before = descriptors()
    for line in range(1000):
        loaded = Program.load(code)
        if way != "close":
            loaded.close()
        struck = struck_at(line, ways.get(way, loaded.close))
        loaded.close()
        gc.collect()
        assert descriptors() == before, line
        if not struck:
            break
    assert 1 < line < 999


def test_a_forgotten_program_warns_and_is_closed() -> None:
    loaded = Program.load(RETURN_0)
    with pytest.warns(ResourceWarning, match="was not closed"):
        del loaded
        gc.collect()


def test_a_forgotten_program_is_closed_where_warnings_are_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda error: seen.append(error.exc_type))
    with no_descriptor_left(), warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = Program.load(RETURN_0)
        del loaded
        gc.collect()
    assert seen == [ResourceWarning]


def test_a_program_can_be_neither_copied_nor_pickled() -> None:
    with Program.load(RETURN_0) as loaded:
        for way in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="neither copied nor pickled"):
                way(loaded)


def test_a_descriptor_that_is_no_programs_is_an_error() -> None:
    read, write = os.pipe()
    os.close(write)
    with Program(read) as wrong:
        with pytest.raises(BPFError, match=f"descriptor {read} failed"):
            _ = wrong.info
        with pytest.raises(BPFError, match="running the program"):
            wrong.run(b"x")


def test_a_pin_that_is_no_program_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    Kernel(monkeypatch, pykcm_bpf_get=[os.open("/dev/null", os.O_RDONLY)])
    with pytest.raises(BPFError, match="/pin is not a program but /dev/null"):
        Program.from_pin("/pin")


def test_threads_can_load_at_once() -> None:
    errors: list[BaseException] = []

    def load(number: int) -> None:
        try:
            for _ in range(50):
                with Program.load("r0 = N\nexit", N=number) as loaded:
                    assert loaded.run(b"x") == number
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=load, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def resident() -> int:
    """Bytes of memory that this process has."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def test_ten_thousand_loads_leave_nothing_behind() -> None:
    def load_and_fail(times: int) -> None:
        for number in range(times):
            with Program.load(code):
                pass
            if number % 20 == 0:
                with pytest.raises(VerifierError):
                    Program.load(wrong)

    code, wrong = bpf.assemble(RETURN_0), bpf.assemble("exit")
    load_and_fail(1000)  # caches and arenas fill up
    gc.collect()
    before = descriptors()
    grown: list[int] = []
    while not grown or (grown[-1] >= 2_000_000 and len(grown) < 2):
        memory = resident()
        load_and_fail(10_000)
        gc.collect()
        assert descriptors() == before
        grown.append(resident() - memory)
    # An allocator's arenas may fill up once; what leaks does so each time.
    assert min(grown) < 2_000_000, grown


# ---- pins ----


def test_a_pinned_program_outlives_its_loader(bpffs: Path) -> None:
    path = bpffs / "program"
    with Program.load("r0 = 7\nexit", name="pinned") as loaded:
        loaded.pin(path)
        identity = loaded.info.id
    with Program.from_pin(path) as opened:
        assert opened.info.id == identity
        assert opened.info.name == "pinned"
        assert opened.run(b"x") == 7
        assert fcntl.fcntl(opened.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        with pytest.raises(BPFError, match="the path exists") as caught:
            opened.pin(path)
        assert caught.value.errno == errno.EEXIST
        with pytest.raises(BPFError, match="its directory does not exist"):
            opened.pin(bpffs / "missing" / "program")
        with pytest.raises(BPFError, match=r"a name with '\.' is reserved"):
            opened.pin(bpffs / "a.program")
    path.unlink()
    with pytest.raises(BPFError, match="nothing is there") as caught:
        Program.from_pin(str(path))
    assert caught.value.errno == errno.ENOENT


@needs_root
@pytest.mark.skipif(
    tuple(int(part) for part in os.uname().release.split(".")[:2]) < (5, 19),
    reason="before Linux 5.19 opening a pin needs what loading needs",
)
def test_a_process_without_capabilities_can_open_a_pin(bpffs: Path) -> None:
    with Program.load("r0 = 7\nexit") as loaded:
        loaded.pin(bpffs / "program")
    output = without_capabilities(
        f"""
from pykcm import bpf
from pykcm.errors import CapabilityError
with bpf.Program.from_pin({str(bpffs / "program")!r}) as program:
    print(program.run(b"x"), program.info.translated_size, program.translated())
"""
    )
    assert output == "7 0 b''\n"


@needs_bpf
def test_a_pin_that_is_mounted_alone(bpffs: Path, tmp_path: Path) -> None:
    """As in a container: its directory is in another file system, and that is not what is wrong."""
    with Program.load(RETURN_0) as loaded:
        loaded.pin(bpffs / "program")
    (bpffs / "program").chmod(0)
    alone = tmp_path / "alone"
    alone.touch()
    subprocess.run(["mount", "--bind", bpffs / "program", alone], check=True)
    try:
        with Program.from_pin(alone) as program:
            assert program.info.type == 1
        told = without_capabilities(
            f"""
from pykcm import bpf
try:
    bpf.Program.from_pin({str(alone)!r})
except OSError as error:
    print(error)
"""
        )
    finally:
        subprocess.run(["umount", alone], check=True)
    assert told == f"opening the pinned program {alone} failed [EACCES: Permission denied]\n"


def test_pins_outside_a_bpf_file_system_are_explained(tmp_path: Path) -> None:
    with Program.load(RETURN_0) as loaded:
        with pytest.raises(BPFError, match="is not in a BPF file system; one is mounted by"):
            loaded.pin(tmp_path / "program")
        for path in ("", "a\0b"):
            with pytest.raises(BPFError, match="is not a path"):
                loaded.pin(path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BPFError, match="is not in a BPF file system"):
        Program.from_pin(tmp_path / "file")
    with pytest.raises(BPFError, match="nothing is there"):
        Program.from_pin(tmp_path / "missing")
