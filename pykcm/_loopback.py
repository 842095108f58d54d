"""A TCP connection of the loopback interface, for what is found out or tested by trying."""

from __future__ import annotations

import socket


def connection(timeout: float = 20.0) -> tuple[socket.socket, socket.socket]:
    """Two connected TCP sockets on 127.0.0.1, both blocking.

    Args:
        timeout: seconds within which the connection has to stand.

    Raises:
        OSError: the interface is down, or no descriptors are left.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(timeout)
        near = socket.create_connection(listener.getsockname(), timeout)
        try:
            while True:
                far, address = listener.accept()
                if address == near.getsockname():
                    break
                far.close()  # somebody else connected meanwhile
        except BaseException:
            near.close()
            raise
    near.settimeout(None)
    far.settimeout(None)
    return near, far
