"""tests/strikes.py: what a test borrows, it gives back."""

from __future__ import annotations

import signal
import time

import pytest

from tests.strikes import Storm, Strike, alarms


@pytest.mark.parametrize("first", [1e-6, 1e-5, 0.01])
def test_the_timer_of_a_time_out_goes_on(first: float) -> None:
    def strike(*_: object) -> None:
        raise Strike

    def outer(*_: object) -> None:
        pass

    start = time.monotonic()
    with alarms(outer, 50.0, 7.0):
        with pytest.raises(Strike), alarms(strike, first):
            time.sleep(5)
        with Storm(0.3) as storm, pytest.raises(Strike):
            storm.armed = True
            time.sleep(5)
        left, again = signal.getitimer(signal.ITIMER_REAL)
        passed = time.monotonic() - start
        assert signal.getsignal(signal.SIGALRM) is outer
        # What passes between two lines is at worst counted twice.
        assert 50.0 - 2 * passed <= left <= 50.0 - first
        assert again == 7.0
