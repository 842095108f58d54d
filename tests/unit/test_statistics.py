"""/proc/net/kcm and kcm_stats: columns by name, and one error for damaged text."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pykcm import KCMOSError, UnavailableError, statistics

# As Linux 6.1 writes them.
KCM = """\
*** KCM statistics (2 MUX) ****
Object         RX-Msgs    RX-Bytes         TX-Msgs    TX-Bytes         Recv-Q   Rmem     Send-Q   \
Smem     Status
mux            7          70               3          30               -        -        -        \
-        KCMs: 2, Psocks 1
   kcm-0       2          20               3          30               4        3072     5        \
-        Psck-0 WMore 
   kcm-1       0          0                0          0                0        0        0        \
-        RxWait 
   psock-0     8          81               3          30               1        2304     6        \
9        Rsvd-0 RxWait=12 
mux            0          0                0          0                -        -        -        \
-        KCMs: 1, Psocks 0
   kcm-0       0          0                0          0                0        0        0        \
-        RxWait 
"""  # noqa: W291 - the kernel ends a status with a blank
STATS = """\
MUX      RX-Msgs    RX-Bytes         TX-Msgs    TX-Bytes         TX-Retries Attach     Unattach   \
UnattchRsvd RX-RdyDrops
         592        67522            283        498223           0          103        2          \
101        1         
Psock    RX-Msgs    RX-Bytes         TX-Msgs    TX-Bytes         Reserved   Unreserved RX-Aborts  \
RX-Intr    RX-Unrecov RX-MemFail RX-NeedMor RX-BadLen  RX-TooBig  RX-Timeout TX-Aborts 
         683        77446            284        498224           52         51         7          \
4          8          9          10         11         2          12         3         
"""  # noqa: W291


def test_multiplexors() -> None:
    newest, oldest = statistics.parse_multiplexors(KCM)
    assert newest == statistics.MultiplexorStatistics(
        rx_messages=7,
        rx_bytes=70,
        tx_messages=3,
        tx_bytes=30,
        sockets=(
            statistics.Socket(0, 2, 20, 3, 30, 4, 3072, 5, ("Psck-0", "WMore"), {}),
            statistics.Socket(1, 0, 0, 0, 0, 0, 0, 0, ("RxWait",), {}),
        ),
        psocks=(statistics.Psock(0, 8, 81, 3, 30, 1, 2304, 6, 9, ("Rsvd-0", "RxWait=12"), {}),),
        unknown={},
    )
    assert len(oldest.sockets) == 1
    assert oldest.psocks == ()


def test_no_multiplexors() -> None:
    title, names, *_ = KCM.splitlines(keepends=True)
    assert statistics.parse_multiplexors(title + names) == []


def test_totals() -> None:
    assert statistics.parse_totals(STATS) == statistics.Totals(
        multiplexors={
            "rx_messages": 592,
            "rx_bytes": 67522,
            "tx_messages": 283,
            "tx_bytes": 498223,
            "tx_retries": 0,
            "attach": 103,
            "unattach": 101,
            "unattach_reserved": 2,
            "rx_ready_drops": 1,
        },
        psocks={
            "rx_messages": 683,
            "rx_bytes": 77446,
            "tx_messages": 284,
            "tx_bytes": 498224,
            "reserved": 52,
            "unreserved": 51,
            "rx_aborts": 7,
            "rx_interrupted": 4,
            "rx_unrecoverable": 8,
            "rx_memory_failures": 9,
            "rx_need_more_header": 10,
            "rx_bad_length": 11,
            "rx_too_big": 2,
            "rx_timeouts": 12,
            "tx_aborts": 3,
        },
    )


def test_the_two_counts_that_the_kernel_confuses() -> None:
    """They are right also on a kernel that writes each below its own name."""
    right = STATS.replace("2          101", "101        2  ")
    assert right != STATS
    for text in (STATS, right):
        counts = statistics.parse_totals(text).multiplexors
        assert (counts["unattach"], counts["unattach_reserved"]) == (101, 2)


def columns_changed(text: str, change: Callable[[list[str]], list[str]]) -> str:
    """The text with the columns before Status changed in every line."""
    lines = []
    for line in text.splitlines():
        words = line.split()
        if line.startswith("***"):
            lines.append(line)
            continue
        if line.startswith(" " * 8):
            words.insert(0, "")
        lines.append(" ".join(change(words)))
    return "\n".join(lines) + "\n"


def test_a_column_that_is_gone() -> None:
    def drop(words: list[str]) -> list[str]:
        return words[:3] + words[4:]

    mux = statistics.parse_multiplexors(columns_changed(KCM, drop))[0]
    assert mux.tx_messages is None
    assert mux.tx_bytes == 30
    assert mux.sockets[0].tx_messages is None
    assert mux.sockets[0].status == ("Psck-0", "WMore")
    assert mux.psocks[0].send_memory == 9
    counts = statistics.parse_totals(columns_changed(STATS, drop))
    assert "tx_messages" not in counts.multiplexors
    assert counts.psocks["tx_bytes"] == 498224


def test_the_kernel_without_the_aborts_counter() -> None:
    """net-next of October 2026 drops it."""
    text = columns_changed(STATS, lambda words: words[:7] + words[8:] if len(words) > 10 else words)
    counts = statistics.parse_totals(text).psocks
    assert "rx_aborts" not in counts
    assert (counts["unreserved"], counts["rx_interrupted"]) == (51, 4)


def test_a_column_that_is_new() -> None:
    def add(words: list[str]) -> list[str]:
        number = "77" if words[0] in ("", "mux") or "-" in words[0] else "New-Thing"
        return [words[0], number, *words[1:]]

    mux = statistics.parse_multiplexors(columns_changed(KCM, add))[0]
    assert (mux.rx_messages, mux.unknown) == (7, {"New-Thing": "77"})
    assert mux.sockets[1].unknown == mux.psocks[0].unknown == {"New-Thing": "77"}
    assert mux.psocks[0].status == ("Rsvd-0", "RxWait=12")
    counts = statistics.parse_totals(columns_changed(STATS, add))
    assert counts.multiplexors["New-Thing"] == counts.psocks["New-Thing"] == 77
    assert counts.psocks["tx_aborts"] == 3


def test_a_line_of_totals_that_is_new() -> None:
    assert statistics.parse_totals(STATS + "Other Count\n 5\n") == statistics.parse_totals(STATS)


# Each raised something else once: ValueError, TypeError, IndexError.
DAMAGED = [
    "",
    "\n",
    "one line\n",
    KCM.replace("70 ", "7o "),
    KCM.replace("kcm-0", "kcm"),
    KCM.replace("kcm-0", "kcm-x"),
    KCM.replace("mux ", "mud "),
    KCM.replace("RxWait \n", "\n").replace(" 0        -        \n", "\n"),
    KCM.replace("30  ", "9" * 5000),
    KCM[: KCM.index("mux")] + "   kcm-0 0 0 0 0 0 0 0 - RxWait\n",
    KCM + "\n",
    KCM[:-300],
    KCM.replace(" Status", ""),
]
DAMAGED_TOTALS = [
    "",
    "\n",
    "one\ntwo\nthree\n",
    STATS.replace("MUX", "MUXES"),
    STATS.replace("592", "١"),  # noqa: RUF001 - Python's int() takes it
    STATS.replace("592", "5_9"),
    STATS.replace("592", "9" * 5000),
    STATS.replace("103 ", ""),
    STATS[:-5],
    STATS[: STATS.index("Psock")],
]


def refuses(parse: Callable[[str], object], text: str) -> None:
    with pytest.raises(KCMOSError) as info:
        parse(text)
    assert info.value.errno == errno.EBADMSG
    assert "/proc/net/kcm" in str(info.value)


@pytest.mark.parametrize("text", DAMAGED)
def test_damaged_multiplexors(text: str) -> None:
    refuses(statistics.parse_multiplexors, text)


@pytest.mark.parametrize("text", DAMAGED_TOTALS)
def test_damaged_totals(text: str) -> None:
    refuses(statistics.parse_totals, text)


@st.composite
def damaged(draw: st.DrawFn, text: str) -> str:
    """A text of the kernel's with pieces cut out, doubled, moved or replaced."""
    for _ in range(draw(st.integers(1, 4))):
        start, end = sorted(draw(st.tuples(*[st.integers(0, len(text))] * 2)))
        place = draw(st.integers(0, len(text)))
        piece = draw(
            st.sampled_from(["", text[start:end], "\n", " ", "-", "mux", "9" * 30])
            | st.text(max_size=8)
        )
        text = draw(st.sampled_from([text[:start] + piece + text[end:], text[:place] + piece]))
    return text


@given(text=damaged(KCM) | st.text())
@example(KCM)
def test_any_text_of_multiplexors(text: str) -> None:
    try:
        statistics.parse_multiplexors(text)
    except KCMOSError as error:
        assert error.errno == errno.EBADMSG


@given(text=damaged(STATS) | st.text())
@example(STATS)
def test_any_text_of_totals(text: str) -> None:
    try:
        statistics.parse_totals(text)
    except KCMOSError as error:
        assert error.errno == errno.EBADMSG


@pytest.mark.parametrize(
    ("path", "kind", "number"),
    [
        ("missing", UnavailableError, errno.ENOENT),
        (".", KCMOSError, errno.EISDIR),
        ("binary", KCMOSError, errno.EBADMSG),
    ],
)
def test_a_file_that_can_not_be_read(
    path: str, kind: type[KCMOSError], number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\0\n" * 4)
    for name, call in (
        ("_MULTIPLEXORS", statistics.multiplexors),
        ("_TOTALS", statistics.totals),
    ):
        monkeypatch.setattr(statistics, name, str(tmp_path / path))
        with pytest.raises(kind) as info:
            call()
        assert info.value.errno == number
        assert str(tmp_path) in str(info.value)


def test_it_loads_little() -> None:
    """Its own imports are a handful of modules of the standard library."""
    script = (
        "import sys, types\n"
        "package = types.ModuleType('pykcm')\n"
        "package.__path__ = [sys.argv[1]]\n"
        "sys.modules['pykcm'] = package\n"
        "import pykcm.statistics\n"
        "print(*sys.modules)\n"
    )
    directory = str(Path(statistics.__file__).parent)
    loaded = subprocess.run(
        [sys.executable, "-S", "-c", script, directory], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"dataclasses", "inspect", "pathlib"} & set(loaded)
