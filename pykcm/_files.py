"""Writing a file so that it is there whole or not at all; quickly loaded, without pathlib."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile


def put(content: bytes, path: str, mode: int) -> None:
    """Replace what a file has, so that a reader finds the old or the new.

    Where a device or a pipe has that name, it is written to, and stays what it is.

    Args:
        content: what it shall have.
        path: the file, which need not exist yet; of a link, where that leads.
        mode: its permissions.

    Raises:
        OSError: it can't be written; then nothing is left of it.
    """
    target = os.path.realpath(path)
    try:
        replaceable = stat.S_ISREG(os.lstat(target).st_mode)
    except FileNotFoundError:
        replaceable = True
    if not replaceable:
        with open(target, "wb") as file:  # noqa: PTH123
            file.write(content)
        return
    directory, name = os.path.split(target)
    # node_exporter reads *.prom, which this is not.
    fd, temporary = tempfile.mkstemp(".tmp", f".{name}.", directory)
    try:
        with open(fd, "wb") as file:  # noqa: PTH123 - a descriptor
            file.write(content)
            os.fchmod(fd, mode)
        os.replace(temporary, target)  # noqa: PTH105
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)  # noqa: PTH108
        raise
