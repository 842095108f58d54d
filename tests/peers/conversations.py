"""What is said to each server, and a reader of its answers that shares no code with pykcm."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from tests.peers.servers import ENTRIES, value

# Reads so many bytes off the connection, all of them.
Take: TypeAlias = Callable[[int], bytes]
# Reads one message off a connection.
Read: TypeAlias = Callable[[], bytes]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def everything(_message: bytes) -> bytes:
    return _message


@dataclass(frozen=True)
class Conversation:
    """Requests of a protocol, and what must be known to compare their answers.

    protocol: its name in `pykcm.protocols`. requests: each asked once. read: one message off a
    stream. greet: what comes before requests. prepare: what the server must be told first, by a
    plain connection. last: whether a message ends the answer to a request. key: pairs answers
    with requests, None where their order does. same: what of a message must be the same in each
    conversation. holds: what must be in the answer to the request of a number.
    """

    protocol: str
    requests: list[bytes]
    read: Callable[[Take], bytes]
    greet: Callable[[socket.socket, Read], None] = lambda tcp, read: None
    prepare: list[bytes] = field(default_factory=list)
    last: Callable[[bytes], bool] = lambda message: True
    key: Callable[[bytes], Hashable] | None = None
    same: Callable[[bytes], bytes] = everything
    holds: Callable[[int], bytes] = value


def exactly(tcp: socket.socket) -> Take:
    """What takes so many bytes off a connection."""

    def take(count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = tcp.recv(count - len(data))
            if not piece:
                raise EOFError(f"it ended after {data!r}")
            data += piece
        return data

    return take


def counted(offset: int, size: int, more: int = 0, mask: int = -1) -> Callable[[Take], bytes]:
    """A reader of messages with a big-endian length; more: what it does not count behind it."""

    def read(take: Take) -> bytes:
        head = take(offset + size)
        return head + take((int.from_bytes(head[offset:], "big") & mask) + more)

    return read


def integer(message: bytes, offset: int, size: int = 4) -> int:
    return int.from_bytes(message[offset : offset + size], "big")


# ---- memcached ----


def memcached_packet(opcode: int, number: int, extras: bytes = b"", body: bytes = b"") -> bytes:
    name = b"n%d" % number
    total = len(extras) + len(name) + len(body)
    head = struct.pack(
        ">BBHBxHIIQ", 0x80, opcode, len(name), len(extras), 0, total, 1000 + number, 0
    )
    return head + extras + name + body


def read_memcached(take: Take) -> bytes:
    head = take(24)
    return head + take(integer(head, 8))


MEMCACHED = Conversation(
    "MEMCACHED_BINARY",
    [memcached_packet(0, number) for number in range(ENTRIES)],
    read_memcached,
    prepare=[memcached_packet(1, number, bytes(8), value(number)) for number in range(ENTRIES)],
    key=lambda message: message[12:16],
)

# ---- DNS ----


def question(number: int) -> bytes:
    name = b"n%d" % number
    labels = b"".join(bytes([len(label)]) + label for label in (name, b"example", b"com", b""))
    query = struct.pack(">6H", 2000 + number, 0, 1, 0, 0, 0) + labels + struct.pack(">HH", 16, 1)
    return len(query).to_bytes(2, "big") + query


DNS = Conversation(
    "DNS",
    [question(number) for number in range(ENTRIES)],
    counted(0, 2),
    key=lambda message: message[2:4],
    holds=lambda number: value(number)[:200],
)

# ---- PostgreSQL ----


def greet_postgresql(tcp: socket.socket, read: Read) -> None:
    body = struct.pack(">I", 3 << 16) + b"user\0postgres\0\0"
    tcp.sendall(struct.pack(">I", 4 + len(body)) + body)
    while read()[:1] != b"Z":
        pass


def query(number: int) -> bytes:
    letter = chr(97 + number % 26)
    text = f"SELECT '{number}:' || repeat('{letter}', {number * 37 % 3000}), {number}\0".encode()
    return b"Q" + struct.pack(">I", 4 + len(text)) + text


POSTGRESQL = Conversation(
    "POSTGRESQL",
    [query(number) for number in range(ENTRIES)],
    counted(1, 4, -4),
    greet_postgresql,
    last=lambda message: message[:1] == b"Z",
)

# ---- MQTT ----


def mqtt_packet(first: int, body: bytes) -> bytes:
    length, digits = len(body), b""
    while True:
        length, digit = divmod(length, 128)
        digits += bytes([digit | 128 * (length > 0)])
        if not length:
            return bytes([first]) + digits + body


def text(word: bytes) -> bytes:
    return struct.pack(">H", len(word)) + word


def greet_mqtt(tcp: socket.socket, read: Read) -> None:
    connect = text(b"MQTT") + bytes([4, 2]) + struct.pack(">H", 600) + text(b"")
    tcp.sendall(mqtt_packet(0x10, connect))
    assert read()[:2] == b"\x20\x02"
    tcp.sendall(mqtt_packet(0x82, struct.pack(">H", 1) + text(b"topic") + b"\0"))
    assert read()[:1] == b"\x90"


def read_mqtt(take: Take) -> bytes:
    head = take(2)
    while head[-1] & 128:
        head += take(1)
    digits = head[1:]
    return head + take(sum((digit & 127) << 7 * place for place, digit in enumerate(digits)))


MQTT = Conversation(
    "MQTT",
    # Published to the topic that this connection is subscribed to: it comes back, then PUBACK.
    [
        mqtt_packet(0x32, text(b"topic") + struct.pack(">H", 1 + number) + value(number))
        for number in range(ENTRIES)
    ],
    read_mqtt,
    greet_mqtt,
    last=lambda message: message[:1] == b"\x40",
)

# ---- Redis ----


def redis_command(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words)


def read_redis(take: Take) -> bytes:
    line = take(1)
    while not line.endswith(b"\r\n"):
        line += take(1)
    return line + take(int(line[1:-2]) + 2) if line[:1] == b"$" and line[1:2] != b"-" else line


REDIS = Conversation(
    "RESP",
    [redis_command(b"GET", b"n%d" % number) for number in range(ENTRIES)],
    read_redis,
    prepare=[redis_command(b"SET", b"n%d" % number, value(number)) for number in range(ENTRIES)],
)

# ---- LDAP ----


def ber(tag: int, *contents: bytes) -> bytes:
    body = b"".join(contents)
    if len(body) < 128:
        return bytes([tag, len(body)]) + body
    return bytes([tag, 0x82]) + struct.pack(">H", len(body)) + body


def search(number: int) -> bytes:
    """For one entry: its answers are the entry, and that the search is done."""
    base = ber(0x04, b"cn=n%d,dc=example" % number)
    limits = ber(0x0A, b"\0") * 2 + ber(0x02, b"\0") * 2 + ber(0x01, b"\0")
    anything = ber(0x87, b"objectClass")
    request = ber(0x63, base, limits, anything, ber(0x30))
    return ber(0x30, ber(0x02, struct.pack(">H", 3000 + number)), request)


def read_ldap(take: Take) -> bytes:
    head = take(2)
    if head[1] & 128:
        more = take(head[1] & 127)
        return head + more + take(int.from_bytes(more, "big"))
    return head + take(head[1])


def ldap_parts(message: bytes) -> tuple[bytes, int]:
    """A message's number, and the tag of what it is."""
    start = 2 + (message[1] & 127 if message[1] & 128 else 0)
    end = start + 2 + message[start + 1]
    return message[start + 2 : end], message[end]


LDAP = Conversation(
    "LDAP",
    [search(number) for number in range(ENTRIES)],
    read_ldap,
    last=lambda message: ldap_parts(message)[1] == 0x65,
    key=lambda message: ldap_parts(message)[0],
)

# ---- ONC RPC ----


def call(number: int) -> bytes:
    """To rpcbind: which port it has itself over TCP, or all that it knows."""
    dump = number % 2
    program, tcp = 100000, 6
    head = struct.pack(">6I", 4000 + number, 0, 2, program, 2, 4 if dump else 3)
    body = head + bytes(16) + (b"" if dump else struct.pack(">4I", program, 2, tcp, 0))
    return struct.pack(">I", 1 << 31 | len(body)) + body


ONC_RPC = Conversation(
    "ONC_RPC",
    [call(number) for number in range(ENTRIES)],
    counted(0, 4, mask=0x7FFFFFFF),
    key=lambda message: message[4:8],
    holds=lambda number: struct.pack(">I", 111),
)

# ---- Thrift ----


def repeat(number: int) -> bytes:
    name = b"repeat"
    body = struct.pack(">II", 0x80010001, len(name)) + name + struct.pack(">I", 5000 + number)
    body += struct.pack(">BHI", 11, 1, 2) + b"%02d" % (number % 100)
    body += struct.pack(">BHI", 8, 2, number * 37 % 3000) + b"\0"
    return struct.pack(">I", len(body)) + body


def seqid(message: bytes) -> bytes:
    start = 12 + integer(message, 8)
    return message[start : start + 4]


THRIFT = Conversation(
    "THRIFT_FRAMED",
    [repeat(number) for number in range(ENTRIES)],
    counted(0, 4),
    key=seqid,
    holds=lambda number: b"%02d" % (number % 100) * (number * 37 % 3000),
)

# ---- HTTP/2 ----


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def settings(pairs: Iterable[tuple[int, int]]) -> bytes:
    return frame(4, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in pairs))


def greet_http2(tcp: socket.socket, read: Read) -> None:
    # No table of headers, so that an answer's headers do not depend on those before it.
    mine = settings([(1, 0), (4, (1 << 31) - 1)])
    window = frame(8, 0, 0, struct.pack(">I", 1 << 30))
    tcp.sendall(PREFACE + mine + window)
    waiting = {(4, 0), (4, 1)}  # its settings, and that it has ours
    while waiting:
        message = read()
        waiting.discard((message[3], message[4]))
    tcp.sendall(frame(4, 1, 0))


def get(number: int) -> bytes:
    path, host = b"/n%d" % number, b"localhost"
    headers = b"\x82\x86\x04" + bytes([len(path)]) + path + b"\x01" + bytes([len(host)]) + host
    return frame(1, 5, 1 + 2 * number, headers)


def comparable_frame(message: bytes) -> bytes:
    """Of headers, which have the time of day, only that they say 200 (8 in HPACK's table)."""
    return message[3:9] + b"200" * (0x88 in message[9:12]) if message[3] == 1 else message


HTTP2 = Conversation(
    "HTTP2",
    [get(number) for number in range(ENTRIES)],
    counted(0, 3, 6),
    greet_http2,
    last=lambda message: bool(message[3] in (0, 1) and message[4] & 1),
    key=lambda message: message[5:9],
    same=comparable_frame,
)

CONVERSATIONS = {
    "memcached": MEMCACHED,
    "Knot DNS": DNS,
    "PostgreSQL": POSTGRESQL,
    "Mosquitto": MQTT,
    "Redis": REDIS,
    "slapd": LDAP,
    "rpcbind": ONC_RPC,
    "Thrift": THRIFT,
    "nghttpd": HTTP2,
}
