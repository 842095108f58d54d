"""`kcm stat`: what it prints, of recorded texts of /proc."""

from __future__ import annotations

import errno
import json
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from pykcm import KCMOSError, UnavailableError
from pykcm._files import put
from pykcm._joining import kernel, look
from pykcm.cli import _stat_screen, _stat_watch, stat
from tests.unit.stat_machine import (
    MEMBERS,
    NEW_KCM,
    NEW_STATS,
    OLD_KCM,
    OLD_STATS,
    Machine,
    machine,
    observe,
)
from tests.unit.test_statistics import KCM, STATS

__all__ = ["machine"]  # a fixture

SCREENS = Path(__file__).parent / "screens"


@pytest.fixture
def fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda *_: "13:20:11")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(stat.command, arguments, catch_exceptions=False)


# ---- output ----


@pytest.mark.parametrize(("width", "height"), [(80, 24), (20, 100)])
def test_screen(machine: Machine, width: int, height: int, fixed_time: None) -> None:
    """The screens are kept as text; `SCREENS=write pytest ...` writes them anew."""
    machine.texts["/proc/net/kcm"] = KCM.replace(
        "   psock-0  ",
        "   psock-1     12345678   987654321        3          30               1        2304     "
        "6        9        RxStop\n   psock-0  ",
    )
    assert machine.lists
    members = MEMBERS[0]._replace(psocks=(*MEMBERS[0].psocks, kernel.Psock(0x24, 1, 502, 0, 0)))
    machine.lists.told = [[members, MEMBERS[1]]]
    screen = _stat_watch.Screen(2.0, "number")
    screen.look = observe()
    console = Console(width=width, height=height, highlight=False, color_system=None)
    with console.capture() as capture:
        console.print(screen.render(console))
    text = "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())
    path = SCREENS / f"stat-{width}x{height}.txt"
    if os.environ.get("SCREENS") == "write":
        path.write_text(text)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("\n") == height
    assert text == path.read_text()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0"),
        (99_999, "99999"),
        (99_999.7, "100k"),
        (1_234_567, "1.2M"),
        (999_600_000, "1.0G"),
        (0.25, "0.2"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert _stat_screen.number(value) == text


def test_sorting(machine: Machine) -> None:
    rows = "".join(
        f"   psock-{index}  1  {octets}  0  0  0  0  0  1  \n"
        for index, octets in ((0, 5), (1, 50), (2, 20))
    )
    head, _, _ = OLD_KCM.partition("   psock-0")
    machine.texts = {"/proc/net/kcm": head + rows, "/proc/net/kcm_stats": OLD_STATS}
    machine.lists = None
    printed = run("--sort", "received").output.split("PSOCK")[1].splitlines()[1:4]
    assert [line.split()[0] for line in printed] == ["1", "2", "0"]


def test_json(machine: Machine) -> None:
    told = json.loads(run("--json").output)
    assert told["totals"]["psocks"]["rx_messages"] == 683
    newest = told["multiplexors"][0]
    assert newest["processes"] == [
        {"pid": 812, "name": "server"},
        {"pid": 813, "name": "worker"},
    ]
    assert newest["transports"][0]["connection"]["peer"] == "10.0.0.2:9090"
    assert newest["transports"][0]["status"] == ["Rsvd-0", "RxWait=12"]
    assert "identity" not in newest  # an address of the kernel's is nobody's business


def test_a_line_of_json(machine: Machine) -> None:
    (line,) = run("--jsonl", "--once").output.splitlines()
    assert json.loads(line)["multiplexors"][0]["number"] == 2


def metrics(text: str) -> dict[tuple[str, str], float]:
    return {
        (sample.name, "".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_prometheus(machine: Machine) -> None:
    text = run("--prometheus").output
    found = metrics(text)
    assert found["kcm_received_messages_total", ""] == 683
    assert found["kcm_sent_bytes_total", ""] == 498224
    assert found["kcm_receive_errors_total", "bad_length"] == 11
    assert found["kcm_dropped_messages_total", ""] == 1
    assert found["kcm_transports", "established"] == 1
    assert found["kcm_transports", "unknown"] == 0
    assert found["kcm_sockets", ""] == 3
    assert found["kcm_socket_receive_queue_messages", ""] == 4
    assert found["kcm_transports_with_status", "RxWait"] == 1
    for family in text_string_to_metric_families(text):
        assert family.documentation.endswith(".")
        assert family.type != "unknown"
    assert "812" not in {label for _, label in found}


def test_metrics_are_the_same_whoever_is_there(machine: Machine) -> None:
    """No label grows with processes, connections or multiplexors; no series comes and goes."""
    before = metrics(run("--prometheus").output).keys()
    machine.texts["/proc/net/kcm"] = "".join(KCM.splitlines(keepends=True)[:2])
    assert metrics(run("--prometheus").output).keys() == before


def test_promtool(machine: Machine) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool (Debian's package prometheus) is not installed")
    for stats in (STATS, OLD_STATS, NEW_STATS):
        machine.texts["/proc/net/kcm_stats"] = stats
        text = run("--prometheus").output
        done = subprocess.run(
            [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_file_for_node_exporter(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "kcm.prom"
    path.write_text("old")
    result = run("--once", "--output", str(path))
    assert (result.exit_code, result.output) == (0, "")
    assert metrics(path.read_text())["kcm_multiplexors", ""] == 2
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_replaced(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one stays, and nothing else does."""
    path = tmp_path / "kcm.prom"
    path.write_text("old")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="full"):
        run("--output", str(path))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "arguments", [("--once", "--watch"), ("--jsonl", "--output", "x"), ("--watch", "0")]
)
def test_options_that_do_not_fit(arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


# ---- other kernels ----


def test_an_old_kernel(machine: Machine) -> None:
    machine.texts = {"/proc/net/kcm": OLD_KCM, "/proc/net/kcm_stats": OLD_STATS}
    machine.lists = None
    assert "errors so far: 1 bad length" in run().output
    found = metrics(run("--prometheus").output)
    assert found["kcm_receive_errors_total", "bad_length"] == 1
    assert ("kcm_receive_errors_total", "refused_header") not in found


def test_a_kernel_with_more_columns(machine: Machine) -> None:
    machine.texts = {"/proc/net/kcm": NEW_KCM, "/proc/net/kcm_stats": NEW_STATS}
    machine.lists = None
    printed = " ".join(run().output.split())
    assert "Age=77" in printed
    assert "NewWord" in printed
    told = json.loads(run("--json").output)
    assert told["multiplexors"][0]["transports"][0]["unknown"] == {"Age": "77"}
    assert told["totals"]["psocks"]["TX-New"] == 12
    found = metrics(run("--prometheus").output)
    assert found["kcm_other_column", "PsockTX-New"] == 12
    assert found["kcm_transports_with_status", "NewWord"] == 1


def test_a_kernel_with_fewer_columns(machine: Machine) -> None:
    machine.texts["/proc/net/kcm"] = (
        "*** KCM statistics (1 MUX) ****\nObject RX-Msgs Status\nmux 7 KCMs: 1, Psocks 1\n"
        "   kcm-0 2 RxWait\n   psock-0 8 \n"
    )
    machine.lists = None
    assert run().exit_code == 0
    assert run("--prometheus").exit_code == 0
    assert json.loads(run("--json").output)["multiplexors"][0]["rx_bytes"] is None


@pytest.mark.parametrize("path", ["/proc/net/kcm", "/proc/net/kcm_stats"])
@pytest.mark.parametrize("cut", [1, 40, 200])
def test_a_text_that_is_cut(machine: Machine, path: str, cut: int) -> None:
    machine.texts[path] = machine.texts[path][:-cut]
    with pytest.raises(KCMOSError) as caught:
        run()
    assert caught.value.errno == errno.EBADMSG
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["/proc/net/kcm", "/proc/net/kcm_stats"])
def test_a_kernel_without_kcm(machine: Machine, path: str) -> None:
    del machine.texts[path]
    with pytest.raises(UnavailableError):
        run("--json")


def test_the_module_goes_while_it_is_watched(machine: Machine) -> None:
    with look.Observer() as observer:
        observer.look()
        kept = dict(machine.texts)
        machine.texts.clear()
        gone = observer.look()
        assert gone.multiplexors == ()
        assert "does not exist" in gone.notes[0]
        machine.texts.update(kept)
        assert len(observer.look().multiplexors) == 2
        assert observer.look().rates is not None


# ---- the screen that is watched ----

WATCH = """
import sys
from pykcm._joining import kernel
from pykcm import statistics
from pykcm.cli import main
from tests.unit.test_statistics import KCM, STATS
texts = {"/proc/net/kcm": KCM, "/proc/net/kcm_stats": STATS}
statistics._read = texts.__getitem__
def shut():
    raise kernel.Obstacle("this is a test")
kernel.Lists = shut
main(["stat", "--watch", "60"])
"""


def until(fd: int, condition: Callable[[str], bool]) -> str:
    """What a terminal shows until a condition holds."""
    text = ""
    end = time.monotonic() + 30
    while not condition(text):
        assert time.monotonic() < end, text
        if select.select([fd], [], [], 0.2)[0]:
            text += os.read(fd, 1 << 16).decode()
    return text


SIZE = ("COLUMNS", "LINES")


def test_keys_and_resizing() -> None:
    """On a terminal: it fits, s sorts, another size is drawn at once, q gives the terminal back."""
    near, far = pty.openpty()
    ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    mode = termios.tcgetattr(far)
    # A size in the environment, as that of a terminal in which tests are run, counts for more.
    environment = {name: value for name, value in os.environ.items() if name not in SIZE}
    with subprocess.Popen(
        [sys.executable, "-c", WATCH],
        stdin=far,
        stdout=far,
        stderr=far,
        cwd=Path(__file__).parents[2],
        env={**environment, "TERM": "xterm"},
        start_new_session=True,
    ) as process:
        assert "multiplexor 2" in until(near, lambda text: "q quits" in text)
        os.write(near, b"s")
        until(near, lambda text: "sorts by received" in text)
        ioctl(near, termios.TIOCSWINSZ, struct.pack("HHHH", 10, 40, 0, 0))
        process.send_signal(signal.SIGWINCH)
        until(near, lambda text: "lines below" in text)
        os.write(near, b"q")
        assert process.wait(30) == 0
    assert termios.tcgetattr(far) == mode
    os.close(near)
    os.close(far)


@pytest.mark.parametrize("size", [(80, 24), (20, 24), (20, 3), (80, 1)])
def test_the_watched_screen_fits(machine: Machine, size: tuple[int, int]) -> None:
    screen = _stat_watch.Screen(2.0, "number")
    screen.look = observe()
    for keys in ("", "jjjj", "kkkkkkk", "j" * 100):
        assert screen.press(keys)
        console = Console(width=size[0], height=size[1], color_system=None)
        with console.capture() as capture:
            console.print(screen.render(console), end="")
        lines = capture.get().splitlines()
        assert len(lines) <= max(2, size[1])
        assert max(map(len, lines)) <= size[0]
    assert not screen.press("q")


def test_a_file_is_whole_and_a_device_stays_what_it_is(tmp_path: Path) -> None:
    file, link, pipe = tmp_path / "file", tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(file)
    for path in (file, link):
        put(b"text", str(path), 0o640)
        assert file.read_bytes() == b"text"
        assert file.stat().st_mode & 0o777 == 0o640
    assert link.is_symlink()
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    put(b"through", str(pipe), 0o644)
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert pipe.is_fifo()
    with pytest.raises(FileNotFoundError):
        put(b"", str(tmp_path / "none" / "file"), 0o644)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "link", "pipe"}
