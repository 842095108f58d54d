"""Where there is no AF_KCM, or no Linux, pykcm says so: one exception, its errno and the remedy."""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import pykcm
from pykcm import _binding, statistics
from pykcm._explain import OPEN, explain

ROOT = Path(__file__).parents[2]


def has_kcm() -> bool:
    try:
        socket.socket(_binding.lib.AF_KCM, socket.SOCK_DGRAM).close()
    except OSError:
        return False
    return True


def test_a_kernel_without_kcm() -> None:
    if has_kcm():
        error = explain(OSError(errno.EAFNOSUPPORT, "not supported"), OPEN)
    else:
        with pytest.raises(pykcm.UnavailableError) as info:
            pykcm.KCMSocket()
        error = info.value
        with pytest.raises(pykcm.UnavailableError):
            pykcm.Multiplexor(pykcm.FixedLength(8))
        with pytest.raises(pykcm.UnavailableError):
            statistics.multiplexors()
    assert error.errno == errno.EAFNOSUPPORT
    assert "modprobe kcm" in str(error)


def test_a_wrong_type() -> None:
    error = explain(OSError(errno.ESOCKTNOSUPPORT, "not supported"), OPEN)
    assert error.errno == errno.ESOCKTNOSUPPORT
    assert "SOCK_SEQPACKET" in str(error)


@pytest.mark.parametrize(("platform", "remedy"), [("darwin", "Linux 4.6"), ("linux", "install")])
def test_without_the_compiled_module(platform: str, remedy: str) -> None:
    """On another platform the package is not compiled, and importing it must work all the same."""
    script = f"""
import sys
sys.modules["pykcm._native"] = None
import errno
import pykcm
sys.platform = {platform!r}
for call in (pykcm.KCMSocket, pykcm.FixedLength(8).load):
    try:
        call()
    except pykcm.UnavailableError as error:
        assert error.errno == errno.ENOSYS, error
        assert {remedy!r} in str(error), error
    else:
        raise SystemExit(f"{{call}} did not fail")
"""
    # The platform is looked at when the module is used, not when it is imported.
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.skipif(
    sys.version_info < (3, 12), reason="before Python 3.12 every interpreter shares one GIL"
)
def test_in_an_interpreter_with_its_own_gil() -> None:
    """The package is in order there: the advice to install it again would be wrong."""
    script = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
inner = '''
import pykcm
try:
    pykcm.FixedLength(8).load()
except pykcm.UnavailableError as error:
    print(error, flush=True)
'''
print(interpreters.run_string(interpreters.create(), inner))
"""
    result = subprocess.run(
        [sys.executable, "-c", script], check=True, timeout=60, capture_output=True, text=True
    )
    assert "in an interpreter with its own GIL" in result.stdout, result
    assert "install" not in result.stdout


def test_the_calls_in_python_alone() -> None:
    """What PyPy has, in tests of all that lies above them."""
    tests = [f"tests/unit/test_{name}.py" for name in ("draining", "exchange")]
    script = f"""
import sys, pytest
sys.modules["pykcm._fastpath"] = None
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", *{tests}]))
"""
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-4000:]


def test_the_compiled_part_does_not_claim_to_do_without_the_gil() -> None:
    """It would be believed, and receiving relies on the GIL."""
    code = (ROOT / "pykcm" / "_fastpath.c").read_text(encoding="utf-8")
    comments = re.compile(r"/\*.*?\*/", re.DOTALL)
    assert not re.search(r"Py_mod_gil|GIL_NOT_USED|SetGIL", comments.sub("", code))


@pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has the GIL in any case"
)
def test_using_it_turns_the_gil_on() -> None:
    script = """
import sys
assert not sys._is_gil_enabled()
from pykcm import KCMSocket
print(sys._is_gil_enabled())
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON_GIL"}
    result = subprocess.run(
        [sys.executable, "-W", "always", "-c", script],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "True\n"
    assert (
        "The global interpreter lock (GIL) has been enabled to load module 'pykcm." in result.stderr
    )
