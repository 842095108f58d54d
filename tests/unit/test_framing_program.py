"""The same rule twice: each framing's program, run by the kernel, against its `measure`.

BPF_PROG_TEST_RUN needs no AF_KCM; the message lies at the start of the data.
"""

from __future__ import annotations

import random

import pytest

from pykcm import bpf
from pykcm._offset import NONE, STRATEGIES, Strategy
from pykcm.bpf import Program
from pykcm.errors import FramingDefinitionError, FramingError
from pykcm.framing import CustomFraming, Delimiter, Framing, Layout, LengthField
from pykcm.framing.field import Field
from pykcm.framing.search import LARGEST_SEARCH, Find
from pykcm.framing.steps import Case, Switch
from tests.protocol_streams import STREAMS, measure_custom, messages
from tests.unit.bpf_oracle import needs_bpf

# A kernel on which the search for a delimiter takes packet loads.
NEAR = NONE._replace(far_loads=False)

SEED = 20240607
HEADERS = 10_000
# What a run can be given is a page less some headroom.
ROOM = 3000


# What a framing's headers can't be: -1 is refused, 0 is too short to tell.
CANNOT = {
    "FixedLength": {-1, 0},
    "LengthField-1": {-1, 0},
    "CustomFraming": {-1},
    "REDIS_LINES": {-1},  # its limit is longer than what a run can be given
    "Delimiter-1": {-1},
    "Delimiter-3": {-1},
    "Delimiter-8": {-1},
    "CQL_V5": {-1},
    "CQL_V5_COMPRESSED": {-1},
}


def expected(framing: Framing, data: bytes) -> int:
    try:
        return framing.measure(data)
    except FramingError as error:
        assert error.errno
        return -error.errno


def headers(name: str, rng: random.Random) -> list[bytes]:
    """Valid headers, cut and damaged ones, and bytes that are nothing."""
    valid = messages(name, rng, 600)
    found = []
    for _ in range(HEADERS):
        message = bytearray(rng.choice(valid))[:ROOM]
        kind = rng.randrange(6)
        if kind == 1:  # damaged near the front
            for _ in range(rng.randint(1, 3)):
                at = rng.randrange(min(len(message), 12))
                message[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, message[at] ^ 1, 0x30, 0x3A))
        elif kind == 2:  # cut
            message = message[: rng.randint(1, min(len(message), 30))]
        elif kind == 3:  # damaged and cut
            message[rng.randrange(min(len(message), 12))] = rng.randrange(256)
            message = message[: rng.randint(1, min(len(message), 30))]
        elif kind == 4:  # with the next message behind it
            message = (message + rng.choice(valid))[:ROOM]
        elif kind == 5:
            message = bytearray(rng.randbytes(rng.randint(1, 24)))
        found.append(bytes(message))
    return found


PROGRAMS = [(name, NONE) for name in STREAMS]
PROGRAMS += [
    (name, NEAR)
    for name, (framing, _) in STREAMS.items()
    if framing.assembly(NEAR) != framing.assembly(NONE)
]


@needs_bpf
@pytest.mark.parametrize(
    ("name", "strategy"),
    PROGRAMS,
    ids=lambda value: value if isinstance(value, str) else "near" * (value == NEAR),
)
def test_kernel_and_measure_agree(name: str, strategy: Strategy) -> None:
    framing, _ = STREAMS[name]
    rng = random.Random(f"{SEED} {name}")
    outcomes = set()
    with framing.load(strategy) as program:
        for header in headers(name, rng):
            result = program.run(header)
            assert result == expected(framing, header), f"seed {SEED}: {header[:40].hex()}"
            outcomes.add(max(-1, min(result, 1)))
    # A program that never waits, or never refuses, was not tested for it.
    possible = {-1, 0, 1} - CANNOT.get(name, set())
    assert outcomes == possible


@pytest.mark.parametrize("name", STREAMS)
def test_measure_finds_what_the_encoder_wrote(name: str) -> None:
    framing, _ = STREAMS[name]
    for message in messages(name, random.Random(f"{SEED} {name}"), 300, 5000):
        assert framing.measure(message) == len(message), message[:40].hex()
        assert framing.measure(message + b"the next") == len(message), message[:40].hex()
        lengths = [framing.measure(message[:end]) for end in range(min(len(message), 60))]
        assert set(lengths) <= {0, len(message)}, message[:40].hex()
        # Once it could tell, more data changes nothing; and to KCM a length that lies within what
        # the program said was too little is an error.
        assert lengths == sorted(lengths), message[:40].hex()


@needs_bpf
@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_verifier_takes_every_program_with_every_strategy(name: str, strategy: str) -> None:
    framing, _ = STREAMS[name]
    with framing.load(STRATEGIES[strategy]) as program:
        assert program.info.name.startswith("pykcm_")


@needs_bpf
@pytest.mark.parametrize("size", [1, 2, 8])
@pytest.mark.parametrize(("far_loads", "most"), [(True, 10_000), (False, 120_000)])
def test_the_longest_search_is_cheap_to_verify(far_loads: bool, most: int, size: int) -> None:
    """With what may stand around it: a branch before and a comparison after."""
    find = Find(b"12345678"[:size], LARGEST_SEARCH)
    rule = (Switch(Field(0), (Case(((0, 9),), (find,)),)),)
    strategy = STRATEGIES["cb1"]._replace(far_loads=far_loads)
    with Layout("search", rule, min_length=100).load(strategy) as program:
        assert program.info.verified_instructions < most


@needs_bpf
@pytest.mark.parametrize("strategy", [NONE, NEAR], ids=["far", "near"])
@pytest.mark.parametrize(
    "delimiter", [b"\n", b"\xff", b"\xff\xfe", b"\0\0\0", b"ab,cd", b"\xff" * 8, b"abcdefgh"]
)
@pytest.mark.parametrize("limit", [8, 64, 503, 504, 505, 1007, 1008, 2000])
def test_delimiter_at_every_place(delimiter: bytes, limit: int, strategy: Strategy) -> None:
    """Across the ends of words and chunks, at the limit and past it, with and without a rest."""
    framing = Delimiter(delimiter, limit)
    filler = b"\x01" if delimiter[0] != 1 else b"\x02"
    with framing.load(strategy) as program:
        for at in range(limit + 10):
            for rest in (b"", b"x", delimiter):
                for cut in {0, len(delimiter) - 1}:
                    whole = filler * at + delimiter
                    data = whole[: len(whole) - cut] + (rest if not cut else b"")
                    if data:
                        assert program.run(data) == expected(framing, data), (at, rest, cut)


@needs_bpf
def test_delimiter_borrow() -> None:
    """A byte one above the delimiter's, next to it: where a careless word scan goes wrong."""
    framing = Delimiter(b"\x10", 100)
    with framing.load(NONE) as program:
        for at in range(30):
            for before in (b"\x11", b"\x0f", b"\x10\x11", b"\x90", b"\x91"):
                data = b"a" * at + before + b"\x11\x10\x11"
                assert program.run(data) == expected(framing, data) == data.index(0x10) + 1


def test_fixed_length_needs_no_offset() -> None:
    framing, _ = STREAMS["FixedLength"]
    assert framing.assembly() == framing.assembly(STRATEGIES["probe"])
    assert framing.assembly().split() == ["r0", "=", "13", "exit"]


def test_assembly_shows_the_strategy() -> None:
    framing = LengthField()
    assert "call bpf_probe_read_kernel" in framing.assembly(STRATEGIES["probe"])
    assert "r7 = *(u32 *)(r6 + 64)" in framing.assembly(STRATEGIES["cb4"])
    assert "r7 = *(u32 *)(r6 + 52)" in framing.assembly(STRATEGIES["cb1"])


CUSTOM = CustomFraming("r7 = message_offset\nr0 = 5\nexit")


@pytest.mark.parametrize("framing", [LengthField(), CUSTOM, STREAMS["RESP"][0]], ids=type)
def test_text_needs_no_kernel(framing: Framing, monkeypatch: pytest.MonkeyPatch) -> None:
    """`assembly` is for reading, wherever one reads; `load` asks the kernel (defect 40)."""

    class Asked(Exception):  # noqa: N818
        pass

    def ask() -> Strategy:
        raise Asked

    monkeypatch.setattr("pykcm._offset.find_strategy", ask)
    assert framing.assembly() == framing.assembly(STRATEGIES["probe"])
    with pytest.raises(Asked):
        framing.load()


@needs_bpf
def test_custom_framing_is_a_value() -> None:
    framing = CustomFraming("r7 = message_offset\nr0 = header\nexit", header=5, max_length=9)
    same = CustomFraming("r7 = message_offset\nr0 = header\nexit", header=5, max_length=9)
    assert framing == same
    assert hash(framing) == hash(same)
    other = framing.replace(header=6)
    assert other != framing
    assert other.max_length == 9
    with other.load(NONE) as program:
        assert program.run(b"x") == 6
    with pytest.raises(AttributeError):
        framing.text = "exit"  # type: ignore[misc]
    with pytest.raises(NotImplementedError):
        framing.measure(b"")
    assert framing.replace(measure=measure_custom).measure(b"\0\0\1") == 4


@needs_bpf
def test_custom_assembly_is_the_whole_program() -> None:
    framing = CustomFraming("r9 = message_offset\nr0 = header\nexit", header=5)
    text = framing.assembly(STRATEGIES["probe"])
    assert bpf.assemble(text) == bpf.assemble(
        framing.text, message_offset=STRATEGIES["probe"].lines(), header=5
    )
    with Program.load(text) as program:
        assert program.info.type == 1


def test_custom_framing_refuses() -> None:
    text = "r7 = message_offset\nr0 = 1\nexit"
    bad: list[tuple[str, dict[str, object]]] = [
        ("text", {"text": ""}),
        ("text", {"text": b"exit"}),
        ("measure", {"text": text, "measure": 5}),
        ("max_length", {"text": text, "max_length": 0}),
        ("message_offset", {"text": text, "message_offset": 5}),
        ("header", {"text": text, "header": "5"}),
    ]
    for argument, arguments in bad:
        with pytest.raises(FramingDefinitionError) as caught:
            CustomFraming(**arguments)  # type: ignore[arg-type]
        assert caught.value.argument == argument
