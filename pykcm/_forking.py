"""Locks that are held through a fork, so that the child finds nothing half done."""

from __future__ import annotations

import os
import weakref
from _thread import RLock, get_ident

# By id(); what lists these does so in one step, whatever other threads do.
_locks: dict[int, weakref.ref[RLock]] = {}

# What a thread that forks holds, by its number.
_held: dict[int, list[RLock]] = {}


def lock() -> RLock:
    """A new one.  Whoever holds it may hold no other of them."""
    made = RLock()
    number = id(made)
    _locks[number] = weakref.ref(made, lambda _: _locks.pop(number, None))
    return made


def _hold() -> None:
    held = _held[get_ident()] = []
    for each in list(_locks.values()):
        if (made := each()) is not None:
            held.append(made)
    held.sort(key=id)  # all threads take them in the same order
    for made in held:
        made.acquire()


def _let_go() -> None:
    for made in _held.pop(get_ident(), []):
        made.release()


def _let_go_in_child() -> None:
    _let_go()
    _held.clear()


os.register_at_fork(before=_hold, after_in_parent=_let_go, after_in_child=_let_go_in_child)
