"""Random messages of every framing, made by encoders that know nothing of pykcm's framings.

What an encoder writes is one whole message by the protocol's specification; that the framing finds
just these messages in a stream is the tests' oracle.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from pykcm import protocols
from pykcm.framing import CustomFraming, Delimiter, FixedLength, Framing, LengthField, Varint

if TYPE_CHECKING:
    from pykcm.framing.base import Buffer

Encoder: TypeAlias = Callable[[random.Random, int], bytes]


def payload(rng: random.Random, size: int) -> bytes:
    """Bytes that look like headers as often as not: a wrong offset must not go unnoticed."""
    kinds = (bytes(size), b"\xff" * size, rng.randbytes(size))
    return rng.choice(kinds)


def text(rng: random.Random, size: int) -> bytes:
    return bytes(rng.choice(b"0123456789:,;$+-* abcXYZ") for _ in range(size))


def prefixed(layout: str, extra: int = 0) -> Encoder:
    """A length of what follows it, plus `extra`."""

    def encode(rng: random.Random, size: int) -> bytes:
        return struct.pack(layout, size + extra) + payload(rng, size)

    return encode


def number(size: int, order: str, head: int = 0) -> Encoder:
    """`head` random bytes, then a length of what follows."""

    def encode(rng: random.Random, length: int) -> bytes:
        field = length.to_bytes(size, "big")
        return (
            rng.randbytes(head) + (field if order == "big" else field[::-1]) + payload(rng, length)
        )

    return encode


def leb128(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def varint(rng: random.Random, size: int) -> bytes:
    return leb128(size) + payload(rng, size)


def ber(rng: random.Random, size: int) -> bytes:
    if size < 0x80 and rng.random() < 0.5:
        length = bytes([size])
    else:
        # Leading zeros are allowed, and Active Directory sends them.
        count = rng.randint(max(1, (size.bit_length() + 7) // 8), 8)
        length = bytes([0x80 | count]) + size.to_bytes(count, "big")
    return b"\x30" + length + payload(rng, size)


def dns(rng: random.Random, size: int) -> bytes:
    size = max(size, 12)
    return struct.pack(">H", size) + payload(rng, size)


def grpc(rng: random.Random, size: int) -> bytes:
    return struct.pack(">BI", rng.randrange(2), size) + payload(rng, size)


def http2(rng: random.Random, size: int) -> bytes:
    return struct.pack(">I", size)[1:] + rng.randbytes(6) + payload(rng, size)


def kafka(rng: random.Random, size: int) -> bytes:
    return struct.pack(">II", size + 4, rng.getrandbits(32)) + payload(rng, size)


def postgresql(rng: random.Random, size: int) -> bytes:
    return rng.choice(b"RSKZTDCENdcf").to_bytes(1, "big") + prefixed(">I", 4)(rng, size)


def postgresql_client(rng: random.Random, size: int) -> bytes:
    kind = rng.randrange(4)
    if kind == 0:
        return struct.pack(">II", 8, rng.choice((80877103, 80877104)))
    if kind == 1:
        return struct.pack(">IIII", 16, 80877102, rng.getrandbits(32), rng.getrandbits(32))
    if kind == 2:
        size = min(size, 9000)
        return struct.pack(">IHH", 8 + size, 3, rng.choice((0, 2))) + text(rng, size)
    return rng.choice(b"QPBEDSXpdcfHC").to_bytes(1, "big") + prefixed(">I", 4)(rng, size)


def mysql(rng: random.Random, size: int) -> bytes:
    return struct.pack("<I", size)[:3] + rng.randbytes(1) + payload(rng, size)


def mongodb(rng: random.Random, size: int) -> bytes:
    return struct.pack("<IIII", 16 + size, rng.getrandbits(32), 0, 2013) + payload(rng, size)


def memcached(rng: random.Random, size: int) -> bytes:
    head = struct.pack(">BBHBBHI", rng.choice((0x80, 0x81)), rng.randrange(36), 0, 0, 0, 0, size)
    return head + rng.randbytes(12) + payload(rng, size)


def amqp(rng: random.Random, size: int) -> bytes:
    if rng.random() < 0.1:
        return b"AMQP\x00\x00\x09\x01"
    head = struct.pack(">BHI", rng.choice((1, 2, 3, 8)), rng.getrandbits(16), size)
    return head + payload(rng, size) + b"\xce"


def mqtt(rng: random.Random, size: int) -> bytes:
    return bytes([rng.randint(1, 15) << 4 | rng.randrange(16)]) + varint(rng, size)


def tpkt(rng: random.Random, size: int) -> bytes:
    size = max(size, 3)
    return struct.pack(">BBH", 3, 0, 4 + size) + payload(rng, size)


def bgp(rng: random.Random, size: int) -> bytes:
    size = min(size, 4096 - 19)
    return b"\xff" * 16 + struct.pack(">HB", 19 + size, rng.randint(1, 5)) + payload(rng, size)


def diameter(rng: random.Random, size: int) -> bytes:
    size = size // 4 * 4
    return b"\x01" + struct.pack(">I", 20 + size)[1:] + rng.randbytes(16) + payload(rng, size)


def radius(rng: random.Random, size: int) -> bytes:
    size = min(size, 4096 - 20)
    head = struct.pack(">BBH", rng.randint(1, 13), rng.randrange(256), 20 + size)
    return head + rng.randbytes(16) + payload(rng, size)


def tls(rng: random.Random, size: int) -> bytes:
    return struct.pack(">BBBH", rng.randint(20, 24), 3, rng.randint(1, 3), size) + payload(
        rng, size
    )


def websocket(rng: random.Random, size: int) -> bytes:
    mask = rng.choice((0, 0x80))
    first = bytes([rng.choice((0x00, 0x01, 0x80, 0x81, 0x82, 0x89))])
    if size < 126:
        head = bytes([mask | size])
    elif size < 1 << 16:
        head = struct.pack(">BH", mask | 126, size)
    else:
        head = struct.pack(">BQ", mask | 127, size)
    return first + head + (rng.randbytes(4) if mask else b"") + payload(rng, size)


def iscsi(*, header_digest: bool, data_digest: bool) -> Encoder:
    def encode(rng: random.Random, size: int) -> bytes:
        words = rng.choice((0, 0, 1, 13))
        head = rng.randbytes(4) + bytes([words]) + struct.pack(">I", size)[1:] + rng.randbytes(40)
        pdu = head + rng.randbytes(4 * words)
        if header_digest:
            pdu += rng.randbytes(4)
        pdu += payload(rng, size) + bytes(-size % 4)
        if data_digest and size:
            pdu += rng.randbytes(4)
        return pdu

    return encode


def onc_rpc(rng: random.Random, size: int) -> bytes:
    return struct.pack(">I", size | rng.getrandbits(1) << 31) + payload(rng, size)


def nbd_request(rng: random.Random, size: int) -> bytes:
    kind = rng.choice((0, 1, 1, 1, 2, 3, 4, 5, 6, 7))
    head = struct.pack(">IHHQQI", 0x25609513, 0, kind, rng.getrandbits(64), 0, size)
    return head + (payload(rng, size) if kind == 1 else b"")


def line(rng: random.Random, size: int) -> bytes:
    # A lone half of the delimiter must not end the line.
    return text(rng, size).replace(b";", rng.choice((b"\r", b"\n"))) + b"\r\n"


def resp(rng: random.Random, size: int) -> bytes:
    kind = rng.randrange(8)
    if kind == 0:
        return b"$-1\r\n"
    if kind == 1:
        return rng.choice((b"*", b"%", b"~", b">")) + b"%d\r\n" % size
    if kind == 2:
        return rng.choice((b"+", b"-", b":", b",", b"(")) + text(rng, size) + b"\r\n"
    return rng.choice((b"$", b"!", b"=")) + b"%d\r\n" % size + payload(rng, size) + b"\r\n"


def netstring(rng: random.Random, size: int) -> bytes:
    return b"%d:" % size + payload(rng, size) + b","


def nine_p(rng: random.Random, size: int) -> bytes:
    return struct.pack("<IBH", 7 + size, rng.randint(100, 127), 0xFFFF) + payload(rng, size)


def cql(rng: random.Random, size: int) -> bytes:
    version = rng.choice((3, 4, 5)) | rng.choice((0, 0x80))
    head = struct.pack(">BBhBI", version, 0, rng.randint(-2, 99), rng.randrange(17), size)
    return head + payload(rng, size)


def cql_v5(header: int) -> Encoder:
    def encode(rng: random.Random, size: int) -> bytes:
        size = min(size, 0x1FFFF)
        bits = size | rng.getrandbits(1) << (17 if header == 6 else 34)
        if header == 8:
            bits |= rng.getrandbits(17) << 17
        head = bits.to_bytes(header - 3, "little") + rng.randbytes(3)
        return head + payload(rng, size) + rng.randbytes(4)

    return encode


def modbus(rng: random.Random, size: int) -> bytes:
    size = min(max(size, 1), 253)
    return struct.pack(">HHHB", rng.getrandbits(16), 0, size + 1, 255) + payload(rng, size)


def syslog(rng: random.Random, size: int) -> bytes:
    return b"%d " % max(size, 1) + payload(rng, max(size, 1))


def zmtp(rng: random.Random, size: int) -> bytes:
    if rng.random() < 0.1:
        return b"\xff" + rng.randbytes(8) + b"\x7f\x03" + rng.randbytes(53)
    if size < 256 and rng.random() < 0.8:
        return struct.pack(">BB", rng.choice((0, 1, 4)), size) + payload(rng, size)
    return struct.pack(">BQ", rng.choice((2, 3, 6)), size) + payload(rng, size)


def nanomsg(rng: random.Random, size: int) -> bytes:
    if rng.random() < 0.1:
        return b"\0SP\0" + rng.randbytes(2) + b"\0\0"
    return prefixed(">Q")(rng, size)


def ike(rng: random.Random, size: int) -> bytes:
    return prefixed(">H", 2)(rng, min(max(size, 1), 65533))


def fixed(rng: random.Random, _size: int) -> bytes:
    return rng.randbytes(13)


def delimited(delimiter: bytes) -> Encoder:
    def encode(rng: random.Random, size: int) -> bytes:
        # Of the delimiter's own bytes, so that there are many beginnings of it.
        body = bytes(rng.choice(delimiter + b"x") for _ in range(min(size, 4000)))
        return body[: (body + delimiter).index(delimiter)] + delimiter

    return encode


def measure_custom(buffer: Buffer) -> int:
    return buffer[2] + 3 if len(buffer) > 2 else 0


#: A framing, and what writes messages of about a payload size.
STREAMS: dict[str, tuple[Framing, Encoder]] = {
    "FixedLength": (FixedLength(13), fixed),
    "LengthField-1": (LengthField(size=1), lambda r, s: number(1, "big")(r, min(s, 255))),
    "LengthField-3-little": (LengthField(2, 3, "little"), number(3, "little", 2)),
    "LengthField-5": (LengthField(size=5), number(5, "big")),
    "LengthField-6-little": (LengthField(1, 6, "little"), number(6, "little", 1)),
    "LengthField-7": (LengthField(size=7), number(7, "big")),
    "LengthField-8": (LengthField(3, 8), number(8, "big", 3)),
    "LengthField-8-little": (LengthField(size=8, byteorder="little"), number(8, "little")),
    "Varint": (Varint(max_bytes=9), varint),
    "Delimiter-1": (Delimiter(b"\n"), delimited(b"\n")),
    "Delimiter-3": (Delimiter(b"aab", 4096), delimited(b"aab")),
    "Delimiter-8": (Delimiter(b"abababac"), delimited(b"abababac")),
    "CustomFraming": (
        CustomFraming(
            "r7 = message_offset\nr0 = *(u8 *)skb[r7 + 2]\nr0 += header\nexit",
            max_length=258,
            measure=measure_custom,
            header=3,
        ),
        lambda r, s: number(1, "big", 2)(r, min(s, 255)),
    ),
    "THRIFT_FRAMED": (protocols.THRIFT_FRAMED, prefixed(">I")),
    "DNS": (protocols.DNS, dns),
    "GRPC": (protocols.GRPC, grpc),
    "HTTP2": (protocols.HTTP2, lambda r, s: http2(r, min(s, 16384))),
    "KAFKA": (protocols.KAFKA, kafka),
    "POSTGRESQL": (protocols.POSTGRESQL, postgresql),
    "POSTGRESQL_CLIENT": (protocols.POSTGRESQL_CLIENT, postgresql_client),
    "MYSQL": (protocols.MYSQL, mysql),
    "MONGODB": (protocols.MONGODB, mongodb),
    "MEMCACHED_BINARY": (protocols.MEMCACHED_BINARY, memcached),
    "AMQP": (protocols.AMQP, amqp),
    "MQTT": (protocols.MQTT, mqtt),
    "TPKT": (protocols.TPKT, tpkt),
    "BGP": (protocols.BGP, bgp),
    "DIAMETER": (protocols.DIAMETER, diameter),
    "RADIUS": (protocols.RADIUS, radius),
    "TLS": (protocols.TLS, lambda r, s: tls(r, min(s, 16384 + 2048))),
    "WEBSOCKET": (protocols.WEBSOCKET, websocket),
    "LDAP": (protocols.LDAP, ber),
    "SNMP": (protocols.SNMP, ber),
    "ISCSI": (protocols.ISCSI, iscsi(header_digest=False, data_digest=False)),
    "ISCSI-header-digest": (
        protocols.iscsi(header_digest=True),
        iscsi(header_digest=True, data_digest=False),
    ),
    "ISCSI-data-digest": (
        protocols.iscsi(data_digest=True),
        iscsi(header_digest=False, data_digest=True),
    ),
    "ISCSI-digests": (
        protocols.iscsi(header_digest=True, data_digest=True),
        iscsi(header_digest=True, data_digest=True),
    ),
    "ONC_RPC": (protocols.ONC_RPC, onc_rpc),
    "NBD_REQUEST": (protocols.NBD_REQUEST, nbd_request),
    "REDIS_LINES": (protocols.REDIS_LINES, line),
    "RESP": (protocols.RESP, resp),
    "NETSTRING": (protocols.NETSTRING, netstring),
    "NINE_P": (protocols.NINE_P, nine_p),
    "CQL": (protocols.CQL, cql),
    "CQL_V5": (protocols.CQL_V5, cql_v5(6)),
    "CQL_V5_COMPRESSED": (protocols.CQL_V5_COMPRESSED, cql_v5(8)),
    "PROTOBUF_DELIMITED": (protocols.PROTOBUF_DELIMITED, varint),
    "MODBUS_TCP": (protocols.MODBUS_TCP, modbus),
    "SYSLOG_COUNTED": (protocols.SYSLOG_COUNTED, syslog),
    "ZMTP": (protocols.ZMTP, zmtp),
    "NANOMSG": (protocols.NANOMSG, nanomsg),
    "IKE_TCP": (protocols.IKE_TCP, ike),
}

#: Payload sizes about which lengths change their form.
EDGES = (0, 0, 1, 2, 3, 4, 5, 9, 10, 11, 99, 100, 125, 126, 127, 128, 255, 256, 999, 1000)


def messages(name: str, rng: random.Random, count: int, largest: int = 0) -> list[bytes]:
    """Random messages of a stream.

    Args:
        name: the key in STREAMS.
        count: how many.
        largest: the largest payload, in bytes; half of them are that long, evenly spread.  0 for
            the sizes of EDGES alone.
    """
    encode = STREAMS[name][1]
    return [
        encode(rng, rng.randrange(largest) if largest and rng.random() < 0.5 else rng.choice(EDGES))
        for _ in range(count)
    ]
