"""Ready framings, by protocol.

Each is a `Framing`; `ALL` lists them with their specification and limits.  Their max_length is the
protocol's own maximum, or 1 MiB where that is larger or there is none:
`protocols.KAFKA.replace(max_length=100 << 20)` is for those who need more.  The TCP socket's
receive buffer must have room for a message of max_length.

A framing reads just as much of a header as tells where the message ends.  It refuses a length that
is impossible, and wrong fixed bytes; all else is the application's to check.

A message does not say which connection it came by, and a send cannot choose one.  So many
connections can share one multiplexor only where answers carry an id, or nothing is answered:
`Protocol.connections` says for which protocols that is so, and `Protocol.reason` why.

Protocols without a framing, and why, are in `LEFT_OUT`.
"""

from __future__ import annotations

import types

from pykcm.framing import DEFAULT_MAX_LENGTH, Delimiter, Framing, Layout, LengthField, Varint
from pykcm.framing.field import Field
from pykcm.framing.search import LARGEST_SEARCH, Find
from pykcm.framing.steps import LARGEST_LENGTH, Add, Case, Match, RoundUp, Step, Switch, Within
from pykcm.framing.value import Value
from pykcm.framing.variable import ber_length, decimal, leb128

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Literal


class Protocol(Value):
    """An entry of the catalogue.

    Attributes:
        name: its name here, as in `protocols.THRIFT_FRAMED`.
        make: makes the framing anew.
        summary: what a message is, in a line.
        reference: the specification.
        maximum: the longest message that the specification allows, header included, in bytes;
            None where it sets no limit, or one beyond any message.
        note: what to know before it is used; may be empty.
        connections: "many" if many connections can share one multiplexor, where a message does
            not say which it came by and a send cannot choose; "one" if each needs its own.
        reason: why.
        id: where a request has the number that its sender chose; None where that is at no fixed
            place, or there is none.
        answer_id: where the answer has it.
    """

    name: str
    make: Callable[[], Framing]
    summary: str
    reference: str
    maximum: int | None
    note: str
    connections: Literal["many", "one"]
    reason: str
    id: Field | None
    answer_id: Field | None

    @property
    def framing(self) -> Framing:
        """The framing."""
        return _get(self.name)


_entries: dict[str, Protocol] = {}


def _enter(
    name: str,
    make: Callable[[], Framing],
    summary: str,
    reference: str,
    maximum: int | None = None,
    note: str = "",
    *,
    many: str = "",
    one: str = "",
    id: Field | None = None,
    answer_id: Field | None = None,
) -> None:
    """Enter a protocol; either `many` or `one` is the reason for what `connections` has."""
    assert bool(many) != bool(one), name
    connections: Literal["many", "one"] = "many" if many else "one"
    described = name, make, summary, reference, maximum, note, connections, many or one
    _entries[name] = Protocol(*described, id, answer_id or id)


def _get(name: str) -> Framing:
    """A framing, made when it is first asked for: all of them take longer than the import."""
    if name not in _entries:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in globals():
        globals()[name] = _entries[name].make()
    framing: Framing = globals()[name]
    return framing


if not TYPE_CHECKING:  # which know the names from the annotations below, and only those
    __getattr__ = _get


def __dir__() -> list[str]:
    return sorted({*globals(), *_entries})


def _one_of(field: Field, *values: int | tuple[int, int]) -> Switch:
    return Switch(field, (Case(values),))


THRIFT_FRAMED: LengthField
_enter(
    "THRIFT_FRAMED",
    lambda: LengthField(size=4),
    "4-byte length, then the message",
    "Apache Thrift, doc/specs/thrift-rpc.md, framed transport",
    (1 << 31) - 1,
    "Thrift's own limit is 16,384,000 bytes by default (TConfiguration).",
    many="A reply carries its call's seqid, which stands behind the method's name.",
)

DNS: LengthField
_enter(
    "DNS",
    lambda: LengthField(size=2, min_length=2 + 12, max_length=2 + 65535),
    "2-byte length, then a message of at least its 12-byte header",
    "RFC 1035 section 4.2.2, RFC 7766 section 8",
    2 + 65535,
    many="A response carries its query's 16-bit ID.",
    id=Field(2, 2),
)

GRPC: Layout
_enter(
    "GRPC",
    lambda: Layout("gRPC message", (_one_of(Field(0), 0, 1), Add(Field(1, 4)), Add(5))),
    "compressed flag, 4-byte length, then the message",
    "gRPC over HTTP2, doc/PROTOCOL-HTTP2.md, Length-Prefixed-Message",
    5 + (1 << 32) - 1,
    "gRPC puts these into HTTP/2 DATA frames: this is for streams that carry them bare.",
    one="Messages carry no id; the order is the stream's.",
)

HTTP2: LengthField
_enter(
    "HTTP2",
    lambda: LengthField(size=3, adjustment=9, min_length=9, max_length=9 + (1 << 14)),
    "3-byte length, type, flags, stream; the length counts what follows these 9 bytes",
    "RFC 9113 section 4.1",
    9 + (1 << 24) - 1,
    "Frames over 16,384 bytes need SETTINGS_MAX_FRAME_SIZE and a larger max_length.  A server "
    "must read the client's 24-byte preface before it attaches the connection.",
    one="Stream numbers, header compression and flow control belong to the connection.",
)

KAFKA: LengthField
_enter(
    "KAFKA",
    lambda: LengthField(size=4, min_length=8),
    "4-byte length, then a request or response, which begin with 4 bytes at least",
    "Apache Kafka protocol guide, RequestOrResponse",
    4 + (1 << 31) - 1,
    "A broker's own limit is socket.request.max.bytes, 100 MiB by default.",
    many="A response carries its request's correlation id.  Authenticate before attaching.",
    id=Field(8, 4),
    answer_id=Field(4, 4),
)

POSTGRESQL: LengthField
_enter(
    "POSTGRESQL",
    lambda: LengthField(offset=1, size=4, adjustment=1, min_length=5),
    "type byte, 4-byte length that counts itself",
    "PostgreSQL, Frontend/Backend Protocol 3.x, Message Formats",
    1 + (1 << 31) - 1,
    "What a server sends, and a client after its first message.  The single byte that answers an "
    "SSLRequest or GSSENCRequest is no message: settle encryption before attaching.",
    one="Answers carry no id, and a session and its transaction belong to the connection.",
)


# MAX_STARTUP_PACKET_LENGTH of src/include/libpq/pqcomm.h, which does not count the length itself.
def _postgresql_startup() -> tuple[Step, ...]:
    return (
        _one_of(Field(4, 4), (3 << 16, (4 << 16) - 1), (80877102, 80877104)),
        Add(Field(0, 4)),
        Within(8, 4 + 10000),
    )


POSTGRESQL_CLIENT: Layout
_enter(
    "POSTGRESQL_CLIENT",
    lambda: Layout(
        "PostgreSQL client message",
        (
            Switch(
                Field(0),
                (
                    # A type is a letter; the first byte of a length up to 10,004 is 0.
                    Case((0,), _postgresql_startup()),
                    Case(
                        ((0x41, 0x5A), (0x61, 0x7A)),
                        (Add(Field(1, 4)), Within(4, LARGEST_LENGTH), Add(1)),
                    ),
                ),
            ),
        ),
        min_length=5,
    ),
    "as POSTGRESQL, and the client's first messages, which have no type byte",
    "PostgreSQL, Frontend/Backend Protocol 3.x, Message Formats (StartupMessage, SSLRequest, "
    "GSSENCRequest, CancelRequest)",
    1 + (1 << 31) - 1,
    one="As POSTGRESQL.",
)

MYSQL: LengthField
_enter(
    "MYSQL",
    lambda: LengthField(size=3, byteorder="little", adjustment=4, min_length=4),
    "3-byte little-endian length, sequence number, then the packet",
    "MySQL internals, Client/Server Protocol, Packets",
    4 + (1 << 24) - 1,
    "A payload of 2**24 - 1 bytes or more comes in several packets: each is a message here.  A "
    "compressed connection has another header.",
    one="Answers carry no id, and a session and its transaction belong to the connection.",
)

MONGODB: LengthField
_enter(
    "MONGODB",
    lambda: LengthField(size=4, byteorder="little", adjustment=0, min_length=16),
    "4-byte little-endian length of the whole message, 16-byte header",
    "MongoDB Wire Protocol, Standard Message Header",
    48_000_000,
    "The maximum is the server's maxMessageSizeBytes.",
    many="A reply's responseTo is its request's requestID.  Authenticate before attaching.",
    id=Field(4, 4, "little"),
    answer_id=Field(8, 4, "little"),
)

MEMCACHED_BINARY: Layout
_enter(
    "MEMCACHED_BINARY",
    lambda: Layout(
        "memcached binary packet",
        (_one_of(Field(0), (0x80, 0x81)), Add(Field(8, 4)), Add(24)),
    ),
    "24-byte header with magic 0x80 or 0x81 and the body's 4-byte length",
    "memcached, Binary Protocol Revamped, Packet Structure",
    24 + (1 << 32) - 1,
    many="A response carries its request's opaque.",
    id=Field(12, 4),
)

AMQP: Layout
_enter(
    "AMQP",
    lambda: Layout(
        "AMQP 0-9-1 frame",
        (
            Switch(
                Field(0),
                (
                    Case((0x41,), (Match(b"AMQP"), Add(8))),
                    Case((1, 2, 3, 8), (Add(Field(3, 4)), Add(8))),
                ),
            ),
        ),
    ),
    "type, channel, 4-byte length, payload, end octet; and the 8-byte protocol header",
    "AMQP 0-9-1 specification, sections 2.2.4 and 4.2",
    8 + (1 << 32) - 1,
    "That the frame ends with 0xCE is for the application to check.  The negotiated frame-max is "
    "a good max_length.",
    one="Channels and their state belong to the connection.",
)

MQTT: Layout
_enter(
    "MQTT",
    lambda: Layout(
        "MQTT control packet",
        (_one_of(Field(0, mask=0xF0, shift=4), (1, 15)), *leb128(1, 4)),
    ),
    "type and flags, remaining length of 1 to 4 bytes, then that many bytes",
    "MQTT 3.1.1 section 2.2, MQTT 5.0 section 2.1",
    5 + 268_435_455,
    one="A session has one connection: a second one with its client identifier ends the first.",
)

TPKT: LengthField
_enter(
    "TPKT",
    lambda: LengthField(
        offset=2, size=2, adjustment=0, min_length=7, max_length=65535, magic=b"\x03"
    ),
    "version 3, reserved byte, 2-byte length of the whole packet",
    "RFC 1006 section 6",
    65535,
    one="Each transport connection of ISO 8073 class 0 has a TCP connection of its own.",
)

BGP: LengthField
_enter(
    "BGP",
    lambda: LengthField(
        offset=16, size=2, adjustment=0, min_length=19, max_length=4096, magic=b"\xff" * 16
    ),
    "marker of 16 bytes 0xFF, 2-byte length of the whole message, type",
    "RFC 4271 section 4.1",
    4096,
    "With the Extended Message capability (RFC 8654) the maximum is 65,535.",
    one="A session is its connection; nothing carries an id.",
)

DIAMETER: LengthField
_enter(
    "DIAMETER",
    lambda: LengthField(
        offset=1, size=3, adjustment=0, min_length=20, magic=b"\x01", multiple_of=4
    ),
    "version 1, 3-byte length of the whole message, a multiple of 4",
    "RFC 6733 section 3",
    (1 << 24) - 4,
    one="Peers have one connection (RFC 6733 section 2.1), on which each answers the other's "
    "watchdogs.",
    id=Field(12, 4),
)

RADIUS: LengthField
_enter(
    "RADIUS",
    lambda: LengthField(offset=2, size=2, adjustment=0, min_length=20, max_length=4096),
    "code, identifier, 2-byte length of the whole packet",
    "RFC 2865 section 3, over TCP as in RFC 6613 section 2.6",
    4096,
    "RFC 7930 allows 65,535 where both ends agree.",
    many="A response carries its request's identifier: 8 bits, so 256 requests at a time.",
    id=Field(1),
)

TLS: Layout
_enter(
    "TLS",
    lambda: Layout(
        "TLS record",
        (_one_of(Field(0), (20, 24)), Match(b"\x03", 1), Add(Field(3, 2)), Add(5)),
        max_length=5 + (1 << 14) + 2048,
    ),
    "content type, version 3.x, 2-byte length, then the fragment",
    "RFC 5246 section 6.2, RFC 8446 section 5",
    5 + (1 << 14) + 2048,
    "The records as they are, still encrypted.",
    one="Records are numbered and encrypted by connection.",
)

WEBSOCKET: Layout
_enter(
    "WEBSOCKET",
    lambda: Layout(
        "WebSocket frame",
        (
            Switch(
                Field(1, mask=0x7F),
                (
                    Case(((0, 125),), (Add(Field(1, mask=0x7F)), Add(2))),
                    # A length must be in the shortest form that holds it.
                    Case((126,), (Add(Field(2, 2)), Within(126, 65535), Add(4))),
                    Case((127,), (Add(Field(2, 8)), Within(65536, LARGEST_LENGTH), Add(10))),
                ),
            ),
            Switch(Field(1, mask=0x80, shift=7), (Case((0,)), Case((1,), (Add(4),)))),
        ),
    ),
    "flags and opcode, mask bit, length of 7 bits, 2 or 8 bytes, masking key",
    "RFC 6455 section 5.2",
    14 + (1 << 63) - 1,
    "After the opening handshake, which is HTTP and must be read before attaching.  Each frame is "
    "a message here, also one of a fragmented WebSocket message.",
    one="Frames carry no id, and those of a message follow each other.",
)


def _ber_sequence() -> tuple[Step, ...]:
    return (Match(b"\x30"), *ber_length())


LDAP: Layout
_enter(
    "LDAP",
    lambda: Layout("LDAPMessage", _ber_sequence()),
    "a BER SEQUENCE of definite length",
    "RFC 4511 section 5.1; X.690 section 8.1.3",
    None,
    "The long form may have up to 8 length bytes, leading zeros among them.",
    many="Answers carry their request's messageID, and a search has several.  Bind all "
    "connections alike before attaching them.",
)

SNMP: Layout
_enter(
    "SNMP",
    lambda: Layout("SNMP message", _ber_sequence()),
    "a BER SEQUENCE of definite length",
    "RFC 3430 section 2.1; X.690 section 8.1.3",
    None,
    "The long form may have up to 8 length bytes, leading zeros among them.",
    many="A response carries its request's request-id.",
)


def iscsi(
    *,
    header_digest: bool = False,
    data_digest: bool = False,
    max_length: int = DEFAULT_MAX_LENGTH,
) -> Layout:
    """An iSCSI PDU: RFC 7143 section 11.2.

    The basic header segment of 48 bytes, additional header segments, the data segment padded to 4
    bytes, and the digests, of which that of the data is left out with an empty data segment.

    Args:
        header_digest: whether the login negotiated HeaderDigest=CRC32C.
        data_digest: whether it negotiated DataDigest=CRC32C.
        max_length: the longest PDU in bytes, all included.
    """
    data = Field(5, 3)
    steps: list[Step] = [Add(data), RoundUp(4)]
    if data_digest:
        steps.append(Switch(data, (Case((0,)), Case(((1, data.largest),), (Add(4),)))))
    header = 48 + 4 * header_digest
    steps += [Add(Field(4), 4), Add(header)]
    digests = [name for name, on in (("header", header_digest), ("data", data_digest)) if on]
    title = "iSCSI PDU" + (f" with {' and '.join(digests)} digest" if digests else "")
    return Layout(title, tuple(steps), min_length=header, max_length=max_length)


ISCSI: Layout
_enter(
    "ISCSI",
    iscsi,
    "48-byte header, additional headers counted in words, data padded to 4 bytes",
    "RFC 7143 section 11.2",
    48 + 255 * 4 + 4 + (1 << 24) + 4,
    "Without digests, as before and during login; `iscsi(header_digest=…, data_digest=…)` makes "
    "the others.",
    one="A command keeps to one connection (its allegiance), which counts its answers.",
    id=Field(16, 4),
)

ONC_RPC: LengthField
_enter(
    "ONC_RPC",
    lambda: LengthField(size=4, mask=0x7FFFFFFF),
    "last-fragment bit and 31 bits of length, then the fragment",
    "RFC 5531 section 11",
    4 + (1 << 31) - 1,
    "Each fragment is a message here; NFS, for one, sends each record as one fragment.",
    many="A reply carries its call's xid, provided that each record is one fragment.",
    id=Field(4, 4),
)

NBD_REQUEST: Layout
_enter(
    "NBD_REQUEST",
    lambda: Layout(
        "NBD request",
        (
            Match(b"\x25\x60\x95\x13"),
            Switch(Field(6, 2), (Case((0, (2, 8))), Case((1,), (Add(Field(24, 4)),)))),
            Add(28),
        ),
        min_length=28,
    ),
    "28-byte header with magic; a write's data follows it",
    "NBD protocol, doc/proto.md, Request message",
    28 + (1 << 32) - 1,
    "What a client sends in the transmission phase, without extended headers.",
    one="A reply goes out on its request's connection.",
)

REDIS_LINES: Delimiter
_enter(
    "REDIS_LINES",
    lambda: Delimiter(b"\r\n", LARGEST_SEARCH),
    "lines that end with CR LF: inline commands, simple strings, errors, integers",
    "Redis serialization protocol specification, RESP protocol description",
    64 << 10,
    "Not for connections that carry bulk strings: see RESP.  The maximum is the server's for "
    "inline commands.",
    one="Answers carry no id; they come in the order of the requests.",
)


def _resp_bulk() -> tuple[Step, ...]:
    null = Case((ord("-"),), (Match(b"-1\r\n", 1), Add(5)))
    counted = Case(((0x30, 0x39),), (*decimal(b"\r", 9, offset=1), Add(3)))
    return (Switch(Field(1), (null, counted)),)


RESP: Layout
_enter(
    "RESP",
    lambda: Layout(
        "RESP element",
        (
            Switch(
                Field(0),
                (
                    Case((*b"$!=",), _resp_bulk()),
                    Case((*b"+-:*_#,(%~>|",), (Find(b"\r\n", LARGEST_SEARCH),)),
                ),
            ),
        ),
        min_length=3,
    ),
    "a line, or a bulk string of counted bytes",
    "Redis serialization protocol specification, RESP2 and RESP3",
    (512 << 20) + 14,
    "An array, set or map is not a message but several: its head, a line that counts the elements, "
    "and each element.  Lines are up to 65,536 bytes.  Streamed strings are refused.",
    one="Answers carry no id; they come in the order of the requests.",
)

NETSTRING: Layout
_enter(
    "NETSTRING",
    lambda: Layout("netstring", (*decimal(b":", 9), Add(1)), min_length=3),
    "decimal length, colon, that many bytes, comma",
    "D. J. Bernstein, Netstrings, 1997",
    None,
    "That a comma ends it is for the application to check.  The number has up to 9 digits, and no "
    "leading zeros.",
    one="No id of its own; if what is in it has one, many can be used.",
)

NINE_P: LengthField
_enter(
    "NINE_P",
    lambda: LengthField(size=4, byteorder="little", adjustment=0, min_length=7),
    "4-byte little-endian size of the whole message, type, tag",
    "Plan 9 manual, intro(5)",
    (1 << 32) - 1,
    "The negotiated msize is a good max_length.",
    one="An answer carries its request's tag, but a fid is known on its own connection alone.",
    id=Field(5, 2, "little"),
)

CQL: Layout
_enter(
    "CQL",
    lambda: Layout(
        "CQL envelope",
        (_one_of(Field(0, mask=0x7F), (3, 5)), Add(Field(5, 4)), Add(9)),
    ),
    "9-byte header with version 3, 4 or 5 and the body's 4-byte length",
    "Apache Cassandra, native_protocol_v4.spec section 2",
    9 + (256 << 20),
    "Version 5 wraps its messages into frames once STARTUP is answered: see CQL_V5.",
    many="A response carries its request's stream id.  Send STARTUP, and authenticate, before "
    "attaching; a USE holds for one connection.",
    id=Field(2, 2),
)

CQL_V5: LengthField
_enter(
    "CQL_V5",
    lambda: LengthField(
        size=3,
        byteorder="little",
        mask=0x1FFFF,
        adjustment=6 + 4,
        min_length=10,
        max_length=6 + 0x1FFFF + 4,
    ),
    "3 bytes with 17 bits of length, CRC24, payload, CRC32",
    "Apache Cassandra, native_protocol_v5.spec section 2.1, uncompressed format",
    6 + 0x1FFFF + 4,
    "A message larger than a frame comes in several.",
    one="The frames of a larger message must be joined in order, and name no message.",
)

CQL_V5_COMPRESSED: LengthField
_enter(
    "CQL_V5_COMPRESSED",
    lambda: LengthField(
        size=3,
        byteorder="little",
        mask=0x1FFFF,
        adjustment=8 + 4,
        min_length=12,
        max_length=8 + 0x1FFFF + 4,
    ),
    "5 bytes with 17 bits of compressed and of plain length, CRC24, payload, CRC32",
    "Apache Cassandra, native_protocol_v5.spec section 2.2, compressed format",
    8 + 0x1FFFF + 4,
    "A message larger than a frame comes in several.",
    one="As CQL_V5.",
)

PROTOBUF_DELIMITED: Varint
_enter(
    "PROTOBUF_DELIMITED",
    Varint,
    "varint length, then the message",
    "Protocol Buffers, Java's writeDelimitedTo and C++'s SerializeDelimitedToZeroCopyStream",
    5 + (1 << 31) - 1,
    one="No id of its own; if what is in it has one, many can be used.",
)

MODBUS_TCP: LengthField
_enter(
    "MODBUS_TCP",
    lambda: LengthField(
        offset=4, size=2, min_length=8, max_length=260, magic=b"\0\0", magic_offset=2
    ),
    "transaction, protocol 0, 2-byte length, then unit, function and data",
    "MODBUS Messaging on TCP/IP Implementation Guide V1.0b, section 3.1.3",
    260,
    many="A response carries its request's transaction identifier.",
    id=Field(0, 2),
)

SYSLOG_COUNTED: Layout
_enter(
    "SYSLOG_COUNTED",
    lambda: Layout("octet-counted syslog message", decimal(b" ", 9), min_length=3),
    "decimal length, space, that many bytes",
    "RFC 6587 section 3.4.1, as RFC 5425 section 4.3 over TLS",
    None,
    "The number has up to 9 digits, and no leading zeros.  Not for senders that end messages with "
    "a line feed (RFC 6587 section 3.4.2).",
    many="Nothing is answered.",
)


def _zmtp() -> tuple[Step, ...]:
    greeting = (Match(b"\x7f", 9), Switch(Field(10), (Case(((3, 255),)),)), Add(64))
    short = (Add(Field(1)), Add(2))
    long = (Add(Field(1, 8)), Add(9))
    cases = Case((0, 1, 4), short), Case((2, 3, 6), long), Case((0xFF,), greeting)
    return (Switch(Field(0), cases),)


ZMTP: Layout
_enter(
    "ZMTP",
    lambda: Layout("ZMTP frame", _zmtp(), min_length=2),
    "flags, size of 1 or 8 bytes, then the body; and the 64-byte greeting",
    "ZeroMQ RFC 37, ZMTP 3.1; RFC 23, ZMTP 3.0",
    9 + (1 << 63) - 1,
    "Greeting and handshake come before attaching.  Each frame is a message here, also one of a "
    "multipart message.  The frames of ZMTP 1.0 and the greetings of 1.0 and 2.0 are others.",
    one="Frames carry no id, and those of a multipart message follow each other.",
)


def _nanomsg() -> tuple[Step, ...]:
    first = 0x00535000  # NUL, "SP", version 0
    sized = ((0, first - 1), (first + 1, 0xFFFFFFFF))
    size = (Add(Field(0, 8)), Add(8))
    cases = Case((first,), (Match(b"\0\0", 6), Add(8))), Case(sized, size)
    return (Switch(Field(0, 4), cases),)


NANOMSG: Layout
_enter(
    "NANOMSG",
    lambda: Layout("SP message", _nanomsg(), min_length=8),
    "8-byte length, then the message; and the 8-byte protocol header",
    "nanomsg, SP over TCP (sp-tcp-mapping-01)",
    8 + (1 << 64) - 1,
    "Exchange the protocol headers before attaching.",
    many="A reply carries its request's id (REQ and REP); other patterns have no answers.",
    id=Field(8, 4),
)

IKE_TCP: LengthField
_enter(
    "IKE_TCP",
    lambda: LengthField(size=2, adjustment=0, min_length=3, max_length=65535),
    "2-byte length that counts itself, then an IKE message behind 4 zero bytes, or an ESP packet",
    "RFC 9329 section 3",
    65535,
    "The stream begins with 6 bytes, IKETCP, once: read them before attaching.",
    one="A security association uses one connection at a time.",
)

#: Every framing here by its name, in the order above.
ALL: Mapping[str, Protocol] = types.MappingProxyType(_entries)

#: What has no framing here, and why.
LEFT_OUT: Mapping[str, str] = types.MappingProxyType(
    {
        "NBD replies": "a simple reply has no length: how much data follows depends on the request "
        "that it answers, which the program can't know.  Requests can be framed: NBD_REQUEST.",
        "SIP": "the body's length stands in a Content-Length line (or its short form 'l') anywhere "
        "among the header lines, in any case and with folding; a program that may only look, "
        "anew with each segment, can't find it with certainty within the verifier's limits.",
        "STOMP": "a frame ends with a NUL, unless a content-length line says that its body may "
        "hold NULs; the same search as for SIP, and line feeds as heartbeats between the frames.",
        "HTTP/1": "the same search, and chunked bodies have no length.",
        "memcached text": "the length of a value stands as the fourth or fifth word of a line, and "
        "whether a value follows depends on the command.",
        "RESP arrays as one message": "an array's length is known only when its last element is "
        "there; its elements can be framed: RESP.",
        "WebSocket messages": "a message of several frames may have control frames between them; "
        "its frames can be framed: WEBSOCKET.",
        "SSH": "the length itself is encrypted.",
    }
)
