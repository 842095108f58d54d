"""What an earlier core got wrong and no kernel with KCM is needed to see.

The numbers are those of the list by which they were fixed.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

import pykcm


def test_49_importing_changes_no_warning_filter() -> None:
    """49. It did, since warnings of lost data were ResourceWarnings, which Python hides."""
    code = (
        "import warnings; before = list(warnings.filters)\n"
        "import pykcm\n"
        "for name in pykcm.__all__: getattr(pykcm, name)\n"
        "assert warnings.filters == before, warnings.filters"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("warning", [pykcm.UnsentWarning, pykcm.UnreadWarning])
def test_49_lost_data_is_shown_by_default(warning: type[Warning]) -> None:
    code = f"import warnings, pykcm; warnings.warn('lost', pykcm.{warning.__name__})"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "lost" in result.stderr


@pytest.mark.parametrize("framing", ["DNS", None, 1.5, b"", object()])
def test_55_what_is_not_a_framing(framing: object) -> None:
    """55. `Multiplexor("DNS")` was accepted, and the wrong framing showed at attach."""
    with pytest.raises(pykcm.ArgumentError, match="framing"):
        pykcm.Multiplexor(framing)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1.5, 0, -1, 2**31, "1", None])
def test_36_a_size_that_cannot_be(size: object) -> None:
    """36. `max_message_size=1.5` was taken."""
    with pytest.raises(pykcm.ArgumentError, match="max_message_size"):
        pykcm.KCMSocket(max_message_size=size)  # type: ignore[arg-type]
