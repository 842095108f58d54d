"""The units of examples/systemd, run by a systemd of their own: `make systemd`."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pykcm import _explain

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "examples" / "systemd"
SYSTEMD = os.environ.get("PYKCM_SYSTEMD_ROOT", "")
PATIENCE = 120
PINNED, TOKEN = 7000, 7001

pytestmark = pytest.mark.skipif(
    not SYSTEMD, reason="boots a systemd of its own: `make systemd` makes one and runs this"
)

# systemd has a root and namespaces of its own, but the guest's network.  By pivot_root, since in a
# chroot no process may make a user namespace.
BOOT = """\
set -e
mount --make-rprivate /
umount -R /sys/fs/cgroup || true
mount --rbind /sys $0/sys
mount --rbind /dev $0/dev
mount -t proc proc $0/proc
mount -t tmpfs tmpfs $0/run
mount -t cgroup2 cgroup2 $0/sys/fs/cgroup
cd $0
pivot_root . mnt
umount -l /mnt
exec env -i PATH=/usr/sbin:/usr/bin /lib/systemd/systemd \
    --unit=sockets.target --log-target=kmsg --show-status=no
"""
KCM = '#!/bin/sh\nexec python3 -m pykcm "$@"\n'


class Systemd:
    """A systemd in namespaces of its own.

    Attributes:
        pid: its process, as seen from outside.
    """

    def __init__(self, root: Path) -> None:
        # The child of `unshare` keeps its number when it becomes systemd.
        self._unshare = subprocess.Popen(
            ["unshare", "--fork", "--pid", "--mount", "--cgroup", "sh", "-c", BOOT, str(root)],
            stdin=subprocess.DEVNULL,
        )
        self.pid = 0
        deadline = time.monotonic() + PATIENCE
        while "active" not in self.run("systemctl", "is-active", "sockets.target").split():
            assert time.monotonic() < deadline, "systemd does not start"
            assert self._unshare.poll() is None, "systemd has ended"
            time.sleep(0.5)

    def run(self, *command: str) -> str:
        """What a command prints that is run beside systemd; also if it fails."""
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        self.pid = int((children.read_text("ascii").split() or ["0"])[0])
        if not self.pid:
            return ""
        beside = ["nsenter", "--target", str(self.pid), "--pid", "--mount", "--root"]
        done = subprocess.run(
            [*beside, "env", "-i", "PATH=/usr/sbin:/usr/bin", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        return done.stdout

    def status(self, unit: str) -> dict[str, str]:
        """/proc/PID/status of a unit's process."""
        pid = self.run("systemctl", "show", "-P", "MainPID", unit).strip()
        lines = self.run("cat", f"/proc/{pid}/status").splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self._unshare.wait()


@pytest.fixture(scope="module")
def systemd() -> Iterator[Systemd]:
    """With the units, and pykcm installed as they expect it."""
    scratch, root = Path("/run/systemd-scratch"), Path("/run/systemd-root")
    for directory in (scratch, root):
        directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", scratch], check=True)
    for directory in (scratch / "upper", scratch / "work"):
        directory.mkdir()
    layers = f"lowerdir={SYSTEMD},upperdir={scratch}/upper,workdir={scratch}/work"
    subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", root], check=True)
    shutil.copytree(ROOT / "pykcm", root / "usr/lib/python3/dist-packages/pykcm")
    (root / "usr/bin/kcm").write_text(KCM, encoding="ascii")
    (root / "usr/bin/kcm").chmod(0o755)
    examples = root / "usr/share/doc/pykcm/examples"
    examples.mkdir(parents=True)
    shutil.copy(ROOT / "examples" / "service.py", examples)
    units = root / "etc/systemd/system"
    (units / "sockets.target.wants").mkdir(exist_ok=True)
    for unit in (*UNITS.glob("*.service"), *UNITS.glob("*.socket")):
        shutil.copy(unit, units)
        if unit.suffix == ".socket":
            (units / "sockets.target.wants" / unit.name).symlink_to(f"../{unit.name}")
    shutil.copy(UNITS / "sysusers.conf", root / "usr/lib/sysusers.d/kcm-examples.conf")
    started = Systemd(root)
    yield started
    started.end()


def ask(port: int) -> bytes:
    """What comes for two messages."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as tcp:
        tcp.sendall(b"\0\0\0\5hello\0\0\0\3abc")
        answers = b""
        while len(answers) < 16 and (more := tcp.recv(16)):
            answers += more
        return answers


LOAD = "from pykcm import protocols; print(protocols.DNS.load().info.name, 'is loaded')"
ANSWERS = b"\0\0\0\5HELLO\0\0\0\3ABC"


def test_systemd_finds_no_mistake(systemd: Systemd) -> None:
    names = [path.name for path in UNITS.iterdir() if path.suffix in (".service", ".socket")]
    told = systemd.run("systemd-analyze", "verify", *names)
    assert "kcm" not in told, told


def test_a_service_without_capabilities(systemd: Systemd) -> None:
    """It has a pinned program, and starts with the first connection."""
    assert ask(PINNED) == ANSWERS, systemd.run("journalctl", "--no-pager", "-u", "kcm-*")
    status = systemd.status("kcm-pinned.service")
    assert status["Uid"].split()[0] != "0"
    assert {int(status[name], 16) for name in status if name.startswith("Cap")} == {0}
    pid = systemd.run("systemctl", "show", "-P", "MainPID", "kcm-pinned.service").strip()
    # A connection that comes while the service is down waits for the next one.
    systemd.run("systemctl", "stop", "kcm-pinned.service")
    assert ask(PINNED) == ANSWERS
    assert systemd.run("systemctl", "show", "-P", "MainPID", "kcm-pinned.service").strip() != pid


def test_a_service_with_a_token(systemd: Systemd) -> None:
    """Its capabilities are those of its own user namespace."""
    assert ask(TOKEN) == ANSWERS, systemd.run("journalctl", "--no-pager", "-u", "kcm-*")
    status = systemd.status("kcm-token.service")
    assert status["CapEff"] == f"{1 << 38 | 1 << 39:016x}"


def test_the_command_that_errors_name(systemd: Systemd) -> None:
    *words, _ = _explain.RUN_WITH_TOKEN.split()
    words[1:1] = ["--wait", "--pipe"]
    told = systemd.run(*words, "python3", "-c", LOAD)
    assert "is loaded" in told, told


def test_what_is_printed_of_its_security(systemd: Systemd) -> None:
    told = systemd.run("systemd-analyze", "security", "--no-pager", "kcm-pinned.service")
    bad = [line.split()[1] for line in told.splitlines() if line.startswith("✗")]
    page = (ROOT / "docs/how-to/deploy.md").read_text("utf-8")
    assert [line.split()[1] for line in page.splitlines() if line.strip().startswith("✗")] == bad
    assert told.splitlines()[-1].strip().rpartition(" ")[0] in page  # without the face
