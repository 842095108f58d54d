"""The lock that is held through a fork, so that the child finds nothing half done."""

from __future__ import annotations

import os
from _thread import RLock

#: Held while transports change, of whatever multiplexor: never for longer than a look takes, and
#: never while anything waits or a caller's function runs.
lock = RLock()

os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
