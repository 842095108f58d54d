"""What every other kernel test takes for granted."""

import os
import socket
from pathlib import Path

import pytest

from pykcm._native import lib


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_kcm_socket_opens(kind: int) -> None:
    with socket.socket(lib.AF_KCM, kind, lib.KCMPROTO_CONNECTED) as kcm:
        assert kcm.family == 41


def test_statistics_are_there() -> None:
    with socket.socket(lib.AF_KCM, socket.SOCK_DGRAM, lib.KCMPROTO_CONNECTED):
        assert Path("/proc/net/kcm").exists()
        assert Path("/proc/net/kcm_stats").exists()


def test_bpf_file_system_is_mounted() -> None:
    assert "/sys/fs/bpf bpf" in Path("/proc/mounts").read_text(encoding="utf-8")


def test_loopback_is_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=10).close()


def test_temporary_files_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(10))
