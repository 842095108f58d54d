"""A server of frames, without pykcm: writes each request's number down, then answers.

python replica.py NAME PORT LOG

A frame is a length of 4 bytes, which counts what follows, a number of 4 bytes, and a body. The
answer has the same number, and the replica's name as its body.
"""

import os
import socket
import sys
import threading


def serve(tcp: socket.socket, name: bytes, log: int) -> None:
    try:
        with tcp, tcp.makefile("rb") as reader:
            while len(head := reader.read(8)) == 8:
                reader.read(int.from_bytes(head[:4], "big") - 4)
                os.write(log, head[4:])
                tcp.sendall((4 + len(name)).to_bytes(4, "big") + head[4:] + name)
    except OSError:
        pass  # the connection is lost, which is for the other end to notice


def main() -> None:
    name, port, path = sys.argv[1:]
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with socket.create_server(("", int(port)), backlog=64) as listener:
        print("ready", flush=True)
        while True:
            tcp, _ = listener.accept()
            threading.Thread(target=serve, args=[tcp, name.encode(), log], daemon=True).start()


main()
