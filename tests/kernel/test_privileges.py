"""A process without the capabilities: refused with the reason, and the ways that remain."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pykcm
from pykcm import _loopback, _offset, bpf
from tests.children import in_child
from tests.strikes import no_descriptor_left

from .connections import FRAMING, PATIENCE, Pair, message

NOBODY = 65534
UNPRIVILEGED_BPF = Path("/proc/sys/kernel/unprivileged_bpf_disabled")


@pytest.fixture
def tcp() -> Iterator[Pair]:
    near, far = _loopback.connection()
    with near, far:
        yield near, far


def as_nobody(run: Callable[[], None]) -> None:
    """Run in a forked process of an ordinary user, which has asked the kernel nothing yet."""

    def become_nobody() -> None:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        _offset._found = None
        run()

    in_child(become_nobody)


def test_attaching_is_refused_with_the_reason(tcp: Pair) -> None:
    if UNPRIVILEGED_BPF.read_text().strip() == "0":
        pytest.skip("this kernel lets everybody load socket filters")

    def run() -> None:
        with pykcm.KCMSocket() as kcm:
            try:
                kcm.attach(tcp[0], FRAMING)
            except pykcm.CapabilityError as error:
                assert isinstance(error, PermissionError)
                assert error.errno == errno.EPERM
                assert "CAP_BPF" in str(error)
                assert "CAP_PERFMON" in str(error)
                assert "pin" in str(error)
            else:
                raise AssertionError("attached")

    as_nobody(run)


def test_a_program_pinned_by_another(tcp: Pair) -> None:
    path = Path("/sys/fs/bpf/pykcm_test_privileges")
    with FRAMING.load() as program:
        program.pin(path)
    try:
        os.chown(path, NOBODY, NOBODY)

        def run() -> None:
            with bpf.Program.from_pin(path) as pinned, pykcm.KCMSocket() as kcm:
                kcm.attach(tcp[0], pinned)
                kcm.settimeout(PATIENCE)
                assert kcm.recv() == message(b"without privilege")

        tcp[1].sendall(message(b"without privilege"))
        if int(os.uname().release.split(".")[0]) < 6:
            pytest.skip("before Linux 5.19 opening a pin needs what loading needs")
        as_nobody(run)
    finally:
        path.unlink()


def test_a_clone_of_an_attached_socket(tcp: Pair) -> None:
    with pykcm.KCMSocket() as kcm:
        kcm.attach(tcp[0], FRAMING)
        clone = kcm.clone()
        kcm.recv_disabled = True

        def run() -> None:
            clone.settimeout(PATIENCE)
            clone.send(clone.recv())

        tcp[1].sendall(message(b"there and back"))
        as_nobody(run)
        tcp[1].settimeout(PATIENCE)
        assert tcp[1].recv(100) == message(b"there and back")
        clone.close()


def test_a_program_that_the_verifier_refuses(tcp: Pair) -> None:
    framing = pykcm.CustomFraming("r0 = *(u32 *)(r1 + 4096)\nexit")
    with no_descriptor_left(), pykcm.KCMSocket() as kcm:
        with pytest.raises(pykcm.VerifierError) as info:
            kcm.attach(tcp[0], framing)
        assert info.value.errno in (errno.EACCES, errno.EINVAL)
        assert "invalid bpf_context access" in info.value.log
