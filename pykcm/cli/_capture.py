"""The TCP streams of a capture file (pcap, pcapng), put together from its packets.

The packets are read by dpkt.  A stream is each direction of a connection.  What comes out of order
waits; what does not come is a loss, named when the capture ends or much has come behind it.
"""

from __future__ import annotations

import heapq
import ipaddress
import struct
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

from pykcm.cli._scan import Scan

_PCAP = (b"\xa1\xb2\xc3\xd4", b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\x3c\x4d", b"\x4d\x3c\xb2\xa1")
_PCAPNG = b"\x0a\x0d\x0d\x0a"

# Bytes that may wait behind a gap before it is taken for a loss.  No receive window is larger.
_BEHIND = 1 << 26

_SEQUENCE = 1 << 32


class CaptureError(ValueError):
    """A file that is not a capture, or one of another kind of network."""


class Segment(NamedTuple):
    """A TCP segment.

    Attributes:
        ends: source and destination, as people write them.
        sequence: the number of its first byte.
        flags: TCP's.
        data: the payload, as far as it was captured.
        length: its length on the network, in bytes.
    """

    ends: tuple[str, str]
    sequence: int
    flags: int
    data: bytes
    length: int


class Stream:
    """One direction of a connection.

    Attributes:
        ends: source and destination.
        begun: whether its beginning was captured.
        scan: what is measured in it.
    """

    def __init__(self, ends: tuple[str, str], scan: Scan) -> None:
        self.ends = ends
        self.scan = scan
        self.begun = False
        self._next: int | None = None  # the sequence number that is to come
        self._first: int | None = None  # as `_next` was before the first byte
        self._waiting: dict[int, Segment] = {}  # by its place in the stream
        self._places: list[int] = []  # these places, a heap
        self._at = 0  # bytes of the stream so far
        self._held = 0

    def begin(self, sequence: int) -> bool:
        """A SYN: the first byte has the next number.  False if it begins another connection."""
        first = (sequence + 1) % _SEQUENCE
        if self._next is None:
            self.begun = True
            self._next = self._first = first
        return self._first == first

    def add(self, segment: Segment) -> None:
        """A segment, in any order, as often as it likes."""
        if not segment.length:
            return
        if self._next is None:
            self._next = segment.sequence
        distance = (segment.sequence - self._next + _SEQUENCE // 2) % _SEQUENCE - _SEQUENCE // 2
        place = self._at + distance
        known = self._waiting.get(place)
        if known is None or known.length < segment.length:
            if known is None:
                heapq.heappush(self._places, place)
            self._held += segment.length - (known.length if known else 0)
            self._waiting[place] = segment
        self._take()
        while self._held > _BEHIND:
            self._lose()

    def finish(self) -> None:
        """Nothing more comes."""
        while self._waiting:
            self._lose()
        self.scan.finish()

    def _take(self) -> None:
        """Measure what follows what was measured."""
        while self._places and self._places[0] <= self._at:
            place = heapq.heappop(self._places)
            segment = self._waiting.pop(place)
            self._held -= segment.length
            new = segment.length - (self._at - place)
            if new <= 0:
                continue  # sent again
            data = segment.data[self._at - place : segment.length]
            if data:
                self.scan.feed(data)
            if len(data) < new:  # the capture has only the packet's beginning
                self.scan.lose(new - len(data))
            self._advance(new)

    def _lose(self) -> None:
        gap = self._places[0] - self._at
        self.scan.lose(gap)
        self._advance(gap)
        self._take()

    def _advance(self, count: int) -> None:
        assert self._next is not None
        self._at += count
        self._next = (self._next + count) % _SEQUENCE


def is_capture(magic: bytes) -> bool:
    """Whether a file that begins so is a capture."""
    return magic in _PCAP or magic == _PCAPNG


def read(
    file: IO[bytes], new_scan: Callable[[], Scan], port: int | None
) -> tuple[list[Stream], str]:
    """Measure the streams of a capture.

    Args:
        file: the capture, seekable, at its beginning.
        new_scan: makes the Scan of a stream.
        port: only streams from or to this port; None for all.

    Returns:
        The streams that carry data, in the order in which they begin; and what is wrong with the
        capture itself, an empty text for nothing.

    Raises:
        CaptureError: the file's header is damaged, or its link type is not known.
    """
    import dpkt

    streams: list[Stream] = []
    current: dict[tuple[str, str], Stream] = {}
    wrong = ""
    try:
        for segment in _segments(file):
            if port is not None and not any(e.endswith(f":{port}") for e in segment.ends):
                continue
            stream = current.get(segment.ends)
            starts = segment.flags & dpkt.tcp.TH_SYN
            if stream is None or (starts and not stream.begin(segment.sequence)):
                stream = Stream(segment.ends, new_scan())
                current[segment.ends] = stream
                streams.append(stream)
                if starts:
                    stream.begin(segment.sequence)
            # A SYN counts as a byte itself.
            first = (segment.sequence + bool(starts)) % _SEQUENCE
            stream.add(segment._replace(sequence=first))
    except (dpkt.Error, struct.error, ValueError) as error:
        if isinstance(error, CaptureError):
            raise
        wrong = f"the capture is damaged, or cut in a packet ({error or type(error).__name__})"
    for stream in streams:
        stream.finish()
    return [stream for stream in streams if stream.scan.size], wrong


def _segments(file: IO[bytes]) -> Iterator[Segment]:
    import dpkt

    magic = file.read(4)
    file.seek(0)
    try:
        reader = dpkt.pcapng.Reader(file) if magic == _PCAPNG else dpkt.pcap.Reader(file)
    except (dpkt.Error, struct.error, ValueError) as error:
        raise CaptureError(f"its header is damaged ({error})") from error
    link = _link_layer(reader.datalink())
    for _, packet in reader:
        try:
            frame = link(packet)
        except (dpkt.Error, struct.error, IndexError):
            continue  # not a whole header: nothing can be said of it
        ip = frame if isinstance(frame, (dpkt.ip.IP, dpkt.ip6.IP6)) else frame.data
        if isinstance(ip, (dpkt.ip.IP, dpkt.ip6.IP6)) and isinstance(ip.data, dpkt.tcp.TCP):
            yield _segment(ip)


def _segment(ip: Any) -> Segment:
    import dpkt

    tcp = ip.data
    header = 4 * tcp.off
    if isinstance(ip, dpkt.ip.IP):
        length = ip.len - 4 * ip.hl - header if ip.len else len(tcp.data)
    else:
        before = sum(each.length for each in ip.all_extension_headers)
        length = ip.plen - before - header if ip.plen else len(tcp.data)
    source, destination = (str(ipaddress.ip_address(address)) for address in (ip.src, ip.dst))
    ends = _end(source, tcp.sport), _end(destination, tcp.dport)
    return Segment(ends, tcp.seq, tcp.flags, bytes(tcp.data), length)


def _end(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _link_layer(number: int) -> Callable[[bytes], Any]:
    """What decodes packets of a link type (https://www.tcpdump.org/linktypes.html)."""
    import dpkt

    def raw(packet: bytes) -> Any:
        return (dpkt.ip6.IP6 if packet[0] >> 4 == 6 else dpkt.ip.IP)(packet)

    known: dict[int, Callable[[bytes], Any]] = {
        0: dpkt.loopback.Loopback,
        1: dpkt.ethernet.Ethernet,
        12: raw,
        101: raw,
        108: dpkt.loopback.Loopback,
        113: dpkt.sll.SLL,
        228: dpkt.ip.IP,
        229: dpkt.ip6.IP6,
        276: dpkt.sll2.SLL2,
    }
    if number not in known:
        raise CaptureError(f"its link type, {number}, is none of those that are known here")
    return known[number]
