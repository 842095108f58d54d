"""ci/jobs: commands at the same time; whatever happens, none is left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ci import jobs
from ci.jobs import Job, end_with_parent
from ci.kernels import ROOT


def shell(name: str, script: str) -> Job:
    return Job(name, ("sh", "-c", script))


def runs(pid: int) -> bool:
    """Whether it has not ended; who inherits a process may not wait for it."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_statuses_come_in_the_order_of_the_commands(at_once: int) -> None:
    todo = [shell("late", "sleep 0.3; exit 3"), shell("early", "exit 4"), shell("good", "true")]
    assert jobs.run(todo, at_once) == [3, 4, 0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_ends_with_its_parent(number: signal.Signals) -> None:
    script = (
        "import subprocess; from ci.jobs import end_with_parent\n"
        "child = subprocess.Popen(['sleep', '100'], preexec_fn=end_with_parent())\n"
        "print(child.pid, flush=True); child.wait()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        parent.send_signal(number)
        end = time.monotonic() + 30
        while runs(pid):  # until whoever inherits it has waited for it
            assert time.monotonic() < end
            time.sleep(0.01)


def test_a_command_whose_parent_has_ended_before_it_begins() -> None:
    ask = end_with_parent()
    told, teller = os.pipe()
    between = os.fork()
    if between == 0:
        try:
            between = os.getpid()
            if os.fork() == 0:
                while os.getppid() == between:
                    time.sleep(0.01)
                ask()
                os.write(teller, b"it goes on")
        finally:
            os._exit(0)
    os.close(teller)
    os.waitpid(between, 0)
    assert os.read(told, 100) == b""
    os.close(told)


def test_a_signal_is_a_negative_status() -> None:
    assert jobs.run([shell("killed", "kill -9 $$")]) == [-9]


def test_no_commands() -> None:
    assert jobs.run([], 2) == []


def test_whole_lines_behind_the_name(capsys: pytest.CaptureFixture[str]) -> None:
    pieces = "printf a; sleep 0.2; printf b; sleep 0.2; echo c; echo to stderr >&2; printf end"
    jobs.run([shell("one", pieces), shell("two", pieces)], 2)
    lines = capsys.readouterr().out.splitlines()
    for name in ("one", "two"):
        assert [line for line in lines if line.startswith(f"{name} |")] == [
            f"{name} | abc",
            f"{name} | to stderr",
            f"{name} | end",
        ]


def test_a_single_command_has_our_own_output(capfd: pytest.CaptureFixture[str]) -> None:
    jobs.run([shell("one", "echo bare")])
    assert "\nbare\n" in capfd.readouterr().out


@pytest.mark.parametrize(("at_once", "most"), [(1, 1), (2, 2), (9, 4)])
def test_so_many_at_once(at_once: int, most: int, tmp_path: Path) -> None:
    all_here = f"[ $(ls | grep -cv seen) -ge {most} ] || grep -qx {most} seen 2>/dev/null"
    count = (
        f"cd {tmp_path}; touch $$; until {all_here}; do sleep 0.02; done; "
        "sleep 0.3; ls | grep -cv seen >>seen; sleep 0.3; rm -f -- $$"
    )
    jobs.run([shell(str(number), count) for number in range(4)], at_once)
    assert max(map(int, (tmp_path / "seen").read_text().split())) == most


def test_a_command_that_does_not_exist_leaves_the_others_ended(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):  # soon, or this test's time is over
        jobs.run([shell("long", "exec sleep 1000"), Job("none", (str(tmp_path / "none"),))], 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("at_once", [1, 2])
def test_a_signal_ends_all(number: signal.Signals, at_once: int, tmp_path: Path) -> None:
    script = "echo $$ >{}.new && mv {}.new {}; exec sleep 60"
    files = [tmp_path / name for name in ("a", "b")]
    todo = [shell(file.name, script.format(file, file, file)) for file in files]
    program = f"from ci import jobs; from ci.jobs import Job; jobs.run({todo!r}, {at_once})"
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        expected = files[:at_once]
        end = time.monotonic() + 30
        while not all(file.exists() for file in expected):
            assert time.monotonic() < end
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(30) != 0
    finally:
        process.kill()
        process.wait()
    assert not any(runs(int(file.read_text())) for file in expected)
    assert [file.exists() for file in files] == [True, at_once == 2]
