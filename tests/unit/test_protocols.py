"""The catalogue: bytes from each protocol's specification, and what it says of itself."""

from __future__ import annotations

import errno
import pickle

import pytest

from pykcm import protocols
from pykcm._offset import NONE
from pykcm.errors import FramingDefinitionError, FramingError
from pykcm.framing import Framing
from tests.protocol_streams import STREAMS
from tests.unit.bpf_oracle import needs_bpf

# Protocol, where the bytes come from, the beginning of a message in hexadecimal, its length.
# Where the specification gives no example of a whole message, the bytes are written by its field
# table: "fields".
SAMPLES: list[tuple[str, str, str, int]] = [
    # thrift-rpc.md: a frame's length does not count itself; thrift-binary-protocol.md: a call.
    ("THRIFT_FRAMED", "fields", "00000011 80010001 00000004 70696e67 00000001 00", 21),
    # RFC 1035 section 4.2.2 and 4.1: A example.com, 12 + 17 bytes.
    (
        "DNS",
        "fields",
        "001d 1234 0100 0001 0000 0000 0000 07 6578616d706c65 03 636f6d 00 0001 0001",
        31,
    ),
    ("GRPC", "fields", "00 00000007 0a05776f726c64", 12),
    ("GRPC", "fields", "01 00000000", 5),
    ("HTTP2", "RFC 9113 6.5: empty SETTINGS", "000000 04 00 00000000", 9),
    ("HTTP2", "RFC 9113 6.5: SETTINGS acknowledged", "000000 04 01 00000000", 9),
    ("HTTP2", "RFC 9113 6.7: PING", "000008 06 00 00000000 0102030405060708", 17),
    ("HTTP2", "RFC 9113 4.2: the largest size by default", "004000 00 00 00000001", 16393),
    ("KAFKA", "fields: ApiVersions v0 of client 'ab'", "0000000c 0012 0000 00000001 0002 6162", 16),
    ("POSTGRESQL", "ReadyForQuery", "5a 00000005 49", 6),
    ("POSTGRESQL", "AuthenticationOk", "52 00000008 00000000", 9),
    ("POSTGRESQL", "ParseComplete", "31 00000004", 5),
    ("POSTGRESQL_CLIENT", "Terminate", "58 00000004", 5),
    ("POSTGRESQL_CLIENT", "SSLRequest", "00000008 04d2162f", 8),
    ("POSTGRESQL_CLIENT", "GSSENCRequest", "00000008 04d21630", 8),
    ("POSTGRESQL_CLIENT", "CancelRequest", "00000010 04d2162e 00000001 00000002", 16),
    ("POSTGRESQL_CLIENT", "StartupMessage", "00000009 00030000 00", 9),
    ("MYSQL", "COM_QUIT", "010000 00 01", 5),
    ("MYSQL", "OK_Packet", "070000 02 00 00 00 0200 0000", 11),
    ("MYSQL", "the largest payload of a packet, cut by max_length", "fcff0f 00", 1 << 20),
    ("MONGODB", "fields: OP_MSG", "1a000000 01000000 00000000 dd070000 00000000 00", 26),
    (
        "MEMCACHED_BINARY",
        "Get request of the protocol's text",
        "80 00 0005 00 00 0000 00000005 00000000 0000000000000000 48656c6c6f",
        29,
    ),
    (
        "MEMCACHED_BINARY",
        "Get response of the protocol's text",
        "81 00 0000 04 00 0000 00000009 00000000 0000000000000001 deadbeef 576f726c64",
        33,
    ),
    ("AMQP", "2.2.4 and 4.2.2: protocol header", "414d5150 00 00 09 01", 8),
    ("AMQP", "4.2.7: heartbeat", "08 0000 00000000 ce", 8),
    ("MQTT", "3.12: PINGREQ", "c000", 2),
    ("MQTT", "3.2: CONNACK", "20020000", 4),
    # Table 2.4: the edges of the remaining length's one to four bytes.
    ("MQTT", "table 2.4", "30 7f", 2 + 127),
    ("MQTT", "table 2.4", "30 8001", 3 + 128),
    ("MQTT", "table 2.4", "30 ff7f", 3 + 16383),
    ("MQTT", "table 2.4", "30 808001", 4 + 16384),
    ("TPKT", "RFC 1006 6 with RFC 905's CR TPDU", "03 00 000b 06 e0 0000 0000 00", 11),
    ("BGP", "RFC 4271 4.4: KEEPALIVE", "ff" * 16 + "0013 04", 19),
    ("BGP", "RFC 4271 4.1: the largest", "ff" * 16 + "1000 02", 4096),
    # RFC 6733 section 3: a Device-Watchdog-Request without AVPs.
    ("DIAMETER", "fields", "01 000014 80 000118 00000000 00000001 00000001", 20),
    (
        "RADIUS",
        "RFC 2865 7.1: Access-Request",
        "01 00 0038 0f403f9473978057bd83d5cb98f4227a 01066e656d6f"
        "02120dbe708d93d413ce3196e43f782a0aee 0406c0a80110 050600000003",
        56,
    ),
    (
        "RADIUS",
        "RFC 2865 7.1: Access-Accept",
        "02 00 0026 86fe220e7624ba2a1005f6bf9b55e0b2 060600000001 0f0600000000 0e06c0a80103",
        38,
    ),
    ("TLS", "RFC 8448 3: ClientHello record", "16 0301 00c4 01 0000c0 0303 cb34ecb1e781", 201),
    ("TLS", "RFC 8446 6.1: close_notify", "15 0303 0002 01 00", 7),
    ("TLS", "RFC 5246 6.2.3: the largest", "17 0303 4800", 5 + 18432),
    ("WEBSOCKET", "RFC 6455 5.7: unmasked text", "81 05 48656c6c6f", 7),
    ("WEBSOCKET", "RFC 6455 5.7: masked text", "81 85 37fa213d 7f9f4d5158", 11),
    ("WEBSOCKET", "RFC 6455 5.7: fragment", "01 03 48656c", 5),
    ("WEBSOCKET", "RFC 6455 5.7: last fragment", "80 02 6c6f", 4),
    ("WEBSOCKET", "RFC 6455 5.7: Ping", "89 05 48656c6c6f", 7),
    ("WEBSOCKET", "RFC 6455 5.7: masked Pong", "8a 85 37fa213d 7f9f4d5158", 11),
    ("WEBSOCKET", "RFC 6455 5.7: 256 bytes", "82 7e 0100", 4 + 256),
    ("WEBSOCKET", "RFC 6455 5.7: 64 KiB", "82 7f 0000000000010000", 10 + 65536),
    ("LDAP", "RFC 4511 4.3: UnbindRequest", "30 05 020103 4200", 7),
    ("LDAP", "RFC 4511 4.2: anonymous BindRequest", "30 0c 020101 6007 020103 0400 8000", 14),
    # X.690 section 8.1.3.5 note: L = 201 as 0x81 0xC9.
    ("LDAP", "X.690 8.1.3.5", "30 81c9", 3 + 201),
    ("LDAP", "X.690 8.1.3.5, with leading zeros", "30 840000000c 020101", 6 + 12),
    ("SNMP", "fields: GetRequest", "30 26 020100 04067075626c6963 a019", 40),
    ("ONC_RPC", "RFC 5531 11: last fragment of 40 bytes", "80000028 00000001 00000000", 44),
    ("ONC_RPC", "RFC 5531 11: fragment", "00000028 00000001", 44),
    ("NBD_REQUEST", "fields: read", "25609513 0000 0000" + "00" * 16 + "00001000", 28),
    ("NBD_REQUEST", "fields: write", "25609513 0000 0001" + "00" * 16 + "00001000", 28 + 4096),
    ("NBD_REQUEST", "fields: disconnect", "25609513 0000 0002" + "00" * 20, 28),
    ("REDIS_LINES", "simple string", b"+OK\r\n".hex(), 5),
    ("REDIS_LINES", "inline command", b"EXISTS somekey\r\n".hex(), 16),
    ("RESP", "bulk string", b"$5\r\nhello\r\n".hex(), 11),
    ("RESP", "empty bulk string", b"$0\r\n\r\n".hex(), 6),
    ("RESP", "null bulk string", b"$-1\r\n".hex(), 5),
    ("RESP", "array head", b"*2\r\n$5\r\nhello\r\n$5\r\nworld\r\n".hex(), 4),
    ("RESP", "null", b"_\r\n".hex(), 3),
    ("RESP", "verbatim string", b"=15\r\ntxt:Some string\r\n".hex(), 22),
    ("RESP", "bulk error", b"!21\r\nSYNTAX invalid syntax\r\n".hex(), 28),
    ("NETSTRING", "its example", "31323a68656c6c6f20776f726c64212c", 16),
    ("NETSTRING", "its empty string", "303a2c", 3),
    ("NINE_P", "fields: Tversion 9P2000", "13000000 64 ffff 00200000 0600 395032303030", 19),
    ("CQL", "fields: OPTIONS", "04 00 0000 05 00000000", 9),
    ("CQL", "fields: STARTUP", "04 00 0000 01 00000016 0001 000b", 9 + 22),
    ("CQL", "fields: READY", "84 00 0000 02 00000000", 9),
    ("CQL_V5", "fields: 9 bytes, self-contained", "090002 000000", 6 + 9 + 4),
    ("CQL_V5", "fields: the largest, self-contained", "ffff03 000000", 6 + 131071 + 4),
    ("CQL_V5_COMPRESSED", "fields: 9 of 32 bytes, self-contained", "0900400004 000000", 8 + 9 + 4),
    ("PROTOBUF_DELIMITED", "encoding.html: 150 and 300 as varints", "9601", 2 + 150),
    ("PROTOBUF_DELIMITED", "encoding.html: 150 and 300 as varints", "ac02", 2 + 300),
    ("MODBUS_TCP", "fields: Read Holding Registers", "1501 0000 0006 ff 03 0004 0001", 12),
    ("MODBUS_TCP", "fields: Read Exception Status", "1502 0000 0002 ff 07", 8),
    ("MODBUS_TCP", "fields: the largest", "1503 0000 00fe ff 10", 260),
    # RFC 5424 section 6.5, example 1, counted.
    (
        "SYSLOG_COUNTED",
        "RFC 6587 3.4.1",
        b"114 <34>1 2003-10-11T22:14:15.003Z mymachine.example.com su - ID47 - \xef\xbb\xbf".hex(),
        118,
    ),
    ("SYSLOG_COUNTED", "RFC 6587 3.4.1: the shortest", b"1 <".hex(), 3),
    (
        "ZMTP",
        "RFC 37: the greeting",
        "ff 0000000000000000 7f 03 01 4e554c4c" + "00" * 16 + "00" + "00" * 31,
        64,
    ),
    ("ZMTP", "RFC 37: READY of NULL", "04 19 05 5245414459 0b 536f636b65742d54797065", 2 + 25),
    ("ZMTP", "RFC 37: a part with more to come", "01 00", 2),
    ("ZMTP", "RFC 37: the last part", "00 05 48656c6c6f", 7),
    ("ZMTP", "RFC 37: a long message", "02 0000000000000100", 9 + 256),
    ("ZMTP", "RFC 37: a long command", "06 0000000000000100 05", 9 + 256),
    ("NANOMSG", "sp-tcp-mapping: header of REQ", "00 5350 00 0030 0000", 8),
    ("NANOMSG", "fields: a request", "0000000000000009 80000001 48656c6c6f", 17),
    ("NANOMSG", "fields: an empty message", "0000000000000000", 8),
    ("IKE_TCP", "fields: IKE_SA_INIT", "0022 00000000" + "11" * 8 + "00" * 8 + "21202208", 34),
    ("IKE_TCP", "fields: ESP", "ffff c0ffee00 00000001", 65535),
]


@needs_bpf
@pytest.mark.parametrize(("name", "source", "sample", "length"), SAMPLES)
def test_sample(name: str, source: str, sample: str, length: int) -> None:
    data = bytes.fromhex(sample)
    framing = protocols.ALL[name].framing
    assert framing.measure(data) == length, source
    with framing.load(NONE) as program:
        assert program.run(data) == length, source


def basic_header(ahs: int, data: int) -> bytes:
    """RFC 7143 section 11.2.1: TotalAHSLength is byte 4, DataSegmentLength bytes 5 to 7."""
    return b"\x01\x80\0\0" + bytes([ahs]) + data.to_bytes(3, "big") + bytes(40)


@pytest.mark.parametrize(
    ("header_digest", "data_digest", "ahs", "data", "length"),
    [
        (False, False, 0, 0, 48),
        (False, False, 0, 1, 52),
        (False, False, 2, 5, 48 + 8 + 8),
        (True, False, 2, 5, 48 + 8 + 4 + 8),
        (False, True, 2, 5, 48 + 8 + 8 + 4),
        (True, True, 255, 8192, 48 + 1020 + 4 + 8192 + 4),
        (True, True, 0, 0, 48 + 4),
    ],
)
def test_iscsi(header_digest: bool, data_digest: bool, ahs: int, data: int, length: int) -> None:
    framing = protocols.iscsi(header_digest=header_digest, data_digest=data_digest)
    assert framing.measure(basic_header(ahs, data)) == length
    assert framing.measure(basic_header(ahs, data)[:7]) == 0
    for name, on in (("header", header_digest), ("data", data_digest)):
        assert (name in repr(framing)) == on


REFUSED: list[tuple[str, str, int]] = [
    ("DNS", "000b", errno.EBADMSG),  # less than a DNS header
    ("GRPC", "02 00000000", errno.EBADMSG),
    ("HTTP2", "004001 00 00 00000001", errno.EMSGSIZE),
    ("HTTP2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".hex(), errno.EMSGSIZE),
    ("KAFKA", "00000003 000000", errno.EBADMSG),
    ("KAFKA", "ffffffff", errno.EMSGSIZE),
    ("POSTGRESQL", "5a 00000003", errno.EBADMSG),
    ("POSTGRESQL_CLIENT", "58 00000003", errno.EBADMSG),
    ("POSTGRESQL_CLIENT", "00000008 00020000", errno.EBADMSG),  # protocol 2
    ("POSTGRESQL_CLIENT", "00000007 00030000", errno.EBADMSG),
    ("POSTGRESQL_CLIENT", "00002715 00030000", errno.EMSGSIZE),  # 10,005
    ("POSTGRESQL_CLIENT", "16030100 c4", errno.EBADMSG),  # TLS
    ("MONGODB", "0f000000", errno.EBADMSG),
    ("MEMCACHED_BINARY", b"get key\r\n".hex(), errno.EBADMSG),
    ("AMQP", "414d5151 00000901", errno.EBADMSG),
    ("AMQP", "04 0000 00000000", errno.EBADMSG),
    ("MQTT", "00 00", errno.EBADMSG),
    ("MQTT", "10 ffffff80", errno.EBADMSG),
    ("MQTT", "10 ffffff7f", errno.EMSGSIZE),  # right, but over 1 MiB
    ("TPKT", "02 00 000b", errno.EBADMSG),
    ("TPKT", "03 00 0006", errno.EBADMSG),
    ("BGP", "ff" * 16 + "0012 04", errno.EBADMSG),
    ("BGP", "ff" * 16 + "1001 02", errno.EMSGSIZE),
    ("BGP", "00" * 16 + "0013 04", errno.EBADMSG),
    ("DIAMETER", "01 000016", errno.EBADMSG),
    ("DIAMETER", "02 000014", errno.EBADMSG),
    ("RADIUS", "01 00 0013", errno.EBADMSG),
    ("RADIUS", "01 00 1001", errno.EMSGSIZE),
    ("TLS", "19 0303 0002", errno.EBADMSG),
    ("TLS", "16 0403 0002", errno.EBADMSG),
    ("TLS", "17 0303 4801", errno.EMSGSIZE),
    ("TLS", b"GET / HTTP/1.1".hex(), errno.EBADMSG),
    ("WEBSOCKET", "82 7e 007d", errno.EBADMSG),  # RFC 6455 5.2: the minimal number of bytes
    ("WEBSOCKET", "82 7f 000000000000ffff", errno.EBADMSG),
    ("WEBSOCKET", "82 7f 8000000000000000", errno.EMSGSIZE),  # the most significant bit must be 0
    ("LDAP", "30 80 02 01 03 42 00 00 00", errno.EBADMSG),  # RFC 4511 5.1: definite lengths only
    ("LDAP", "30 ff", errno.EBADMSG),  # X.690 8.1.3.5 c
    ("LDAP", "31 05", errno.EBADMSG),
    ("LDAP", "30 88 ffffffffffffffff", errno.EMSGSIZE),
    ("SNMP", "30 80", errno.EBADMSG),
    ("ONC_RPC", "ffffffff", errno.EMSGSIZE),
    ("NBD_REQUEST", "25609514", errno.EBADMSG),
    ("NBD_REQUEST", "25609513 0000 0009", errno.EBADMSG),
    ("NBD_REQUEST", "25609513 0000 0001" + "00" * 16 + "ffffffff", errno.EMSGSIZE),
    ("RESP", b"$?\r\n".hex(), errno.EBADMSG),
    ("RESP", b"$-2\r\n".hex(), errno.EBADMSG),
    ("RESP", b"$05\r\n".hex(), errno.EBADMSG),
    ("RESP", b"PING\r\n".hex(), errno.EBADMSG),
    ("RESP", b"$999999999\r".hex(), errno.EMSGSIZE),
    ("NETSTRING", b"00:,".hex(), errno.EBADMSG),
    ("NETSTRING", b"-1:".hex(), errno.EBADMSG),
    ("NETSTRING", b":".hex(), errno.EBADMSG),
    ("NETSTRING", b"1234567890:".hex(), errno.EBADMSG),
    ("NINE_P", "06000000", errno.EBADMSG),
    ("CQL", "02 00 00 05 00000000 00", errno.EBADMSG),
    ("CQL", "04 00 0000 05 ffffffff", errno.EMSGSIZE),
    ("PROTOBUF_DELIMITED", "8080808080", errno.EBADMSG),
    ("PROTOBUF_DELIMITED", "ffffffff0f", errno.EMSGSIZE),
    ("MODBUS_TCP", "1501 0001 0006", errno.EBADMSG),
    ("MODBUS_TCP", "1501 0000 0001", errno.EBADMSG),
    ("MODBUS_TCP", "1501 0000 00ff", errno.EMSGSIZE),
    ("SYSLOG_COUNTED", b"<34>1 2003".hex(), errno.EBADMSG),
    ("SYSLOG_COUNTED", b"0 ".hex(), errno.EBADMSG),
    ("SYSLOG_COUNTED", b"01 ".hex(), errno.EBADMSG),
    ("ZMTP", "05 00", errno.EBADMSG),  # a command has no more parts
    ("ZMTP", "08 00", errno.EBADMSG),
    ("ZMTP", "ff 0000000000000001 7f 01", errno.EBADMSG),  # ZMTP 2.0
    ("ZMTP", "ff 0000000000000000 7e 03", errno.EBADMSG),
    ("ZMTP", "02 8000000000000000", errno.EMSGSIZE),
    ("NANOMSG", "00 5350 00 0030 0001", errno.EBADMSG),
    ("NANOMSG", "00 5350 01 0030 0000", errno.EMSGSIZE),
    ("NANOMSG", "ffffffff ffffffff", errno.EMSGSIZE),
    ("IKE_TCP", "0001", errno.EBADMSG),
    ("IKE_TCP", "0000", errno.EBADMSG),
]


@needs_bpf
@pytest.mark.parametrize(("name", "header", "error"), REFUSED)
def test_refused(name: str, header: str, error: int) -> None:
    framing, data = protocols.ALL[name].framing, bytes.fromhex(header)
    with pytest.raises(FramingError) as caught:
        framing.measure(data)
    assert caught.value.errno == error
    with framing.load(NONE) as program:
        assert program.run(data) == -error


def test_a_line_over_the_limit() -> None:
    framing = protocols.REDIS_LINES
    assert framing.measure(b"x" * 65534 + b"\r\n") == 65536
    assert framing.measure(b"x" * 65535) == 0
    with pytest.raises(FramingError):
        framing.measure(b"x" * 65535 + b"\r\n")


@pytest.mark.parametrize("name", protocols.ALL)
def test_entry(name: str) -> None:
    entry = protocols.ALL[name]
    assert entry.name == name
    assert getattr(protocols, name) is entry.framing
    assert isinstance(entry.framing, Framing)
    assert entry.summary
    assert entry.reference
    assert entry.maximum is None or entry.framing.max_length <= entry.maximum
    copy = pickle.loads(pickle.dumps(entry.framing))
    assert copy == entry.framing
    assert hash(copy) == hash(entry.framing)
    assert copy.assembly(NONE) == entry.framing.assembly(NONE)
    smaller = entry.framing.replace(max_length=entry.framing.max_length - 1)
    assert smaller.max_length == entry.framing.max_length - 1


# A request or answer of the samples above, and the number in it that pairs it with the other.
@pytest.mark.parametrize(
    ("name", "sample", "number", "answers"),
    [
        ("DNS", "001d 1234 0100", 0x1234, True),
        ("KAFKA", "0000000c 0012 0000 00000001 0002 6162", 1, False),
        ("KAFKA", "0000000c 00000001", 1, True),
        ("MONGODB", "1a000000 01000000 02000000", 1, False),
        ("MONGODB", "1a000000 01000000 02000000", 2, True),
        ("MEMCACHED_BINARY", "81 00 0000 04 00 0000 00000009 0000beef", 0xBEEF, True),
        ("DIAMETER", "01 000014 80 000118 00000000 00000001 00000002", 1, True),
        ("RADIUS", "02 07", 7, True),
        ("ISCSI", "00" * 16 + "0000002a", 42, True),
        ("ONC_RPC", "80000028 00000001 00000000", 1, True),
        ("NINE_P", "13000000 64 feff", 0xFFFE, True),
        ("CQL", "84 00 0102 02", 0x102, True),
        ("MODBUS_TCP", "1501 0000 0006", 0x1501, True),
        ("NANOMSG", "0000000000000009 80000001", 0x80000001, True),
    ],
)
def test_the_id(name: str, sample: str, number: int, answers: bool) -> None:
    entry = protocols.ALL[name]
    field = entry.answer_id if answers else entry.id
    assert field is not None
    assert field.read(memoryview(bytes.fromhex(sample))) == number


def test_how_many_connections() -> None:
    assert {entry.connections for entry in protocols.ALL.values()} == {"many", "one"}
    for entry in protocols.ALL.values():
        assert entry.reason.endswith(".")
        assert (entry.id is None) == (entry.answer_id is None)
    many = {name for name, entry in protocols.ALL.items() if entry.connections == "many"}
    # What answers in order, or keeps a session by connection, must never be called "many".
    assert not many & {"POSTGRESQL", "MYSQL", "RESP", "REDIS_LINES", "HTTP2", "AMQP", "WEBSOCKET"}


def test_every_protocol_is_tested() -> None:
    """One that is added without samples and streams fails here."""
    assert set(protocols.ALL) - {"ISCSI"} <= {name for name, *_ in SAMPLES}
    assert set(protocols.ALL) <= set(STREAMS)
    assert protocols.ALL["ISCSI"].framing == protocols.iscsi()


def test_the_lists_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        protocols.ALL["X"] = protocols.ALL["DNS"]  # type: ignore[index]
    assert all(protocols.LEFT_OUT.values())


def test_replace_refuses_what_does_not_fit() -> None:
    with pytest.raises(FramingDefinitionError, match="max_length"):
        protocols.BGP.replace(max_length=18)
    assert protocols.BGP.replace(max_length=65535).measure(b"\xff" * 18) == 65535
