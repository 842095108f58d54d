"""Delineation programs that measure several messages at once, run by the kernel on data at hand.

BPF_PROG_TEST_RUN needs no AF_KCM; the first message lies at the start of the data.
"""

from __future__ import annotations

import errno
import random

import pytest

from pykcm._offset import NONE, STRATEGIES, Strategy
from pykcm.errors import FramingDefinitionError, FramingError
from pykcm.framing import CustomFraming, Delimiter, FixedLength, Framing, LengthField
from pykcm.framing.base import LARGEST_BATCH
from tests.protocol_streams import STREAMS, messages
from tests.unit.bpf_oracle import needs_bpf

pytestmark = needs_bpf

NEAR = NONE._replace(far_loads=False)
SEED = 20240607
# What a run can be given is a page less some headroom.
ROOM = 3000
BATCHES = (2, 7, 64)

BATCHED = [name for name, (framing, _) in STREAMS.items() if not isinstance(framing, CustomFraming)]
SEARCHES = {"Delimiter-1", "Delimiter-3", "Delimiter-8", "REDIS_LINES", "RESP"}
PROGRAMS = [(name, NONE) for name in BATCHED] + [(name, NEAR) for name in sorted(SEARCHES)]


def alone(framing: Framing, data: bytes) -> int:
    try:
        return framing.measure(data)
    except FramingError as error:
        assert error.errno
        return -error.errno


def sums(framing: Framing, data: bytes, batch: int) -> list[int]:
    """What the program may return for a first message and so many others; the last is best."""
    length = alone(framing, data)
    found = [length]
    end = min(len(data), framing.batch_bytes(batch))
    while 0 < found[-1] < end and len(found) < batch:
        length = alone(framing, data[found[-1] :])
        if length <= 0 or found[-1] + length > end:
            break
        found.append(found[-1] + length)
    return found


def pieces(name: str, rng: random.Random) -> bytes:
    """Messages, the last of them often cut or damaged."""
    sent = messages(name, rng, rng.randint(1, 9))
    if rng.random() < 0.3:  # of the shortest, as many as there is room for
        sent = messages(name, rng, 1) + [min(messages(name, rng, 30), key=len)] * 70
    data = bytearray(b"".join(sent)[:ROOM])
    if rng.random() < 0.3:
        data = data[: rng.randint(1, len(data))]
    if rng.random() < 0.3:
        data[rng.randrange(len(data))] = rng.randrange(256)
    if rng.random() < 0.2:
        data += rng.randbytes(rng.randint(1, 20))
    return bytes(data)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    ("name", "strategy"),
    PROGRAMS,
    ids=lambda value: value if isinstance(value, str) else "near" * (value == NEAR),
)
def test_the_sum_of_what_is_whole(name: str, strategy: Strategy, batch: int) -> None:
    framing, _ = STREAMS[name]
    rng = random.Random(f"{SEED} {name}")
    most = 0
    with framing.load(strategy, batch) as program:
        for _ in range(400):
            data = pieces(name, rng)
            possible = sums(framing, data, batch)
            result = program.run(data)
            if name in SEARCHES:  # which may leave a following message to the next call
                assert result in possible, (SEED, data.hex())
            else:
                assert result == possible[-1], (SEED, data.hex())
            if result > 0:
                most = max(most, possible.index(int(result)) + 1)
    shortest = 20 if name == "NBD_REQUEST" else min(map(len, messages(name, rng, 200)))
    assert most >= min(batch, ROOM // shortest // 2, 30), most


@pytest.mark.parametrize(("strategy", "longest"), [(NONE, 432), (NEAR, 32)], ids=["far", "near"])
def test_a_following_line_that_one_look_finds(strategy: Strategy, longest: int) -> None:
    """What `Find` promises for messages after the first."""
    framing = Delimiter(b"\r\n")
    with framing.load(strategy, 3) as program:
        for size in range(longest + 20):
            line = b"x" * size + b"\r\n"
            result = program.run(b"\r\n" + line + b"\r\n")
            if len(line) <= longest:
                assert result == 2 + len(line) + 2, size
            else:
                assert result in {2, 2 + len(line) + 2}, size


@pytest.mark.parametrize("batch", BATCHES)
def test_every_length_of_data(batch: int) -> None:
    """The data's end at every byte: whole messages only, or the first alone."""
    framing = LengthField(size=2, max_length=300)
    sent = [n.to_bytes(2, "big") + bytes(n) for n in (3, 0, 290, 1, 1, 1, 0, 0, 9)]
    data = b"".join(sent)
    ends = [sum(map(len, sent[:n])) for n in range(1, len(sent) + 1)]
    with framing.load(NONE, batch) as program:
        for end in range(1, len(data) + 1):
            whole = [e for e in ends[:batch] if e <= end]
            expected = whole[-1] if whole else 0 if end < 2 else 5
            assert program.run(data[:end]) == expected, end


def test_a_bad_header_is_left_for_the_next_call() -> None:
    framing = LengthField(size=2, adjustment=0, max_length=100)
    good = b"\0\4ab"
    with framing.load(NONE, 7) as program:
        for bad, error in ((b"\0\1", errno.EBADMSG), (b"\xff\xff", errno.EMSGSIZE)):
            assert program.run(good * 3 + bad + good) == 12
            assert program.run(bad + good * 3) == -error


def test_it_is_no_longer_than_batch_bytes() -> None:
    framing = LengthField(size=2, max_length=1000)
    assert framing.batch_bytes(1) == 1000
    assert framing.batch_bytes(2) == 2000
    assert framing.batch_bytes(64) == 64_000
    assert framing.batch_bytes(66) == 1 << 16
    assert LengthField(max_length=1 << 20).batch_bytes(64) == 1 << 20
    for size in (998, 499, 120):
        message = size.to_bytes(2, "big") + bytes(size)
        for batch in (1, 2, 3):
            with framing.load(NONE, batch) as program:
                assert program.run((message * 30)[:ROOM]) == len(message) * batch
    # Where the longest message is the limit, the messages that fit are taken.
    small = LengthField(size=2, max_length=1 << 16).replace(max_length=1 << 16)
    assert small.batch_bytes(64) == 1 << 16


def test_fixed_length() -> None:
    framing = FixedLength(13)
    for batch in (1, 2, 7, 64, LARGEST_BATCH):
        with framing.load(NONE, batch) as program:
            for size in (1, 12, 13, 14, 26, 27, 13 * 7, 13 * 8, 13 * 64, 13 * 65, 2999):
                most = min(batch, max(size // 13, 1))
                assert program.run(bytes(size)) == 13 * most, (batch, size)
    assert FixedLength(70_000).batch_bytes(64) == 70_000
    with FixedLength(70_000).load(NONE, 64) as program:
        assert program.run(bytes(100)) == 70_000


@pytest.mark.parametrize("batch", [0, -1, LARGEST_BATCH + 1, 1.0, 1.5, True, "7"])
@pytest.mark.parametrize("framing", [LengthField(), FixedLength(5)])
def test_an_impossible_batch(framing: Framing, batch: int) -> None:
    framing.load(NONE, 1).close()  # whose instructions are kept
    for call in (framing.assembly, framing.load):
        with pytest.raises(FramingDefinitionError) as caught:
            call(NONE, batch)
        assert caught.value.argument == "batch"
    with pytest.raises(FramingDefinitionError):
        framing.batch_bytes(batch)


def test_a_program_by_hand_measures_what_it_measures() -> None:
    framing, _ = STREAMS["CustomFraming"]
    assert framing.largest_batch(NONE) == 1
    assert framing.batch_bytes(1) == framing.max_length
    for call in (framing.assembly, framing.load):
        with pytest.raises(FramingDefinitionError, match="batch: must be 1 to 1"):
            call(NONE, 2)


def test_too_large_for_the_verifier() -> None:
    """A search by packet loads takes the verifier long; the error says how many are possible."""
    framing, _ = STREAMS["RESP"]
    largest = framing.largest_batch(NEAR)
    assert 1 <= largest < LARGEST_BATCH
    with pytest.raises(
        FramingDefinitionError, match=f"takes for this framing, {largest}"
    ) as caught:
        framing.load(NEAR, LARGEST_BATCH)
    assert caught.value.argument == "batch"
    framing.load(NEAR, largest).close()


@pytest.mark.parametrize("name", BATCHED)
def test_the_verifier_takes_every_batch_of_64(name: str) -> None:
    framing, _ = STREAMS[name]
    for strategy in STRATEGIES.values():
        with framing.load(strategy, 64) as program:
            assert program.info.verified_instructions < 100_000
