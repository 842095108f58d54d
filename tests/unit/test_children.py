"""Forked processes of tests."""

from __future__ import annotations

import os
import time

import pytest

from tests.children import in_child


def test_what_is_raised_fails_the_test(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError, match="ended with 1"):
        in_child(lambda: 1 / 0)
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_a_child_that_hangs_says_where(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError, match="ended with -14"):
        in_child(lambda: time.sleep(60), limit=1)
    assert "in in_child" in capfd.readouterr().err


def test_a_child_that_ends_well() -> None:
    parent = os.getpid()

    def run() -> None:
        assert os.getppid() == parent

    in_child(run)
