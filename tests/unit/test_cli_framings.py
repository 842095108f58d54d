"""How a command is told its framing: by name, by its fields, in a TOML file."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from pykcm import (
    CustomFraming,
    Delimiter,
    FixedLength,
    Framing,
    Layout,
    LengthField,
    Varint,
    cli,
    protocols,
)
from pykcm.cli import _escapes, _framings
from pykcm.framing.field import Field
from pykcm.framing.search import Find
from pykcm.framing.steps import (
    Add,
    Case,
    Divisible,
    Match,
    RoundUp,
    Step,
    Switch,
    Times,
    Within,
)
from pykcm.framing.variable import ber_length, decimal, leb128

if sys.version_info < (3, 11):
    pytest.importorskip("tomli", reason="Python 3.10 reads TOML with tomli alone")

FIELDS = "offset=2,size=2,adjustment=4,magic=O\\x4b,max-length=0x1000,byteorder=little"
# As `--layout` has them, and what they are.
GRPC = "{switch = 0, cases = [{values = [[0, 1]]}]}, {field = 1, size = 4}, {add = 5}"
LAYOUTS = [
    (GRPC, (Switch(Field(0), (Case(((0, 1),)),)), Add(Field(1, 4)), Add(5))),
    (r'{match = "\\x30"}, {ber_length = 1}', (Match(b"0"), *ber_length(1))),
    ('{decimal = ":", max_digits = 9}, {add = 1}', (*decimal(b":", 9), Add(1))),
    (r"{find = '\r\n', limit = 100}", (Find(b"\r\n", 100),)),
    ("{leb128 = 1, max_bytes = 3}", leb128(1, 3)),
    (
        "{add = 2}, {times = 3}, {field = 2, size = 2, byteorder = 'little', mask = 0xFFF0, "
        "shift = 4, multiplier = 8}, {round_up = 4}, {divisible = 2}, {within = [8, 80]}",
        (
            Add(2),
            Times(3),
            Add(Field(2, 2, "little", 0xFFF0, 4), 8),
            RoundUp(4),
            Divisible(2),
            Within(8, 80),
        ),
    ),
    (
        "{switch = 1, mask = 3, cases = [{values = [1, [2, 3]], rule = [{add = 4}]}, "
        "{values = [0], rule = [{add = 9}]}]}",
        (
            Switch(
                Field(1, mask=3), (Case(((1, 1), (2, 3)), (Add(4),)), Case(((0, 0),), (Add(9),)))
            ),
        ),
    ),
]
FRAMING = LengthField(2, 2, "little", 4, magic=b"OK", max_length=4096)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit status and the line on standard error."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(["frame", *arguments])
    assert isinstance(exit_.value.code, int)
    out, err = capsys.readouterr()
    assert not (out and err)
    assert err.count("\n") == bool(err)
    return exit_.value.code, err or out


@pytest.mark.parametrize(
    ("arguments", "framing"),
    [
        (["DNS"], protocols.DNS),
        (["--framing", "thrift-framed"], protocols.THRIFT_FRAMED),
        (["KAFKA", "--max-length", "104857600"], protocols.KAFKA.replace(max_length=100 << 20)),
        (["--length-field", FIELDS], FRAMING),
        (["--length-field", ""], LengthField()),
        (["--fixed-length", "16"], FixedLength(16)),
        (["--varint", "max_bytes=2"], Varint(max_bytes=2)),
        (["--delimiter", r"\r\n"], Delimiter(b"\r\n")),
        (["--delimiter", r"delimiter=\x2c,max_length=100"], Delimiter(b",", 100)),
        (
            ["--layout", "{field = 1, size = 4}, {add = 5}", "--max-length", "99"],
            Layout("message", (Add(Field(1, 4)), Add(5)), max_length=99),
        ),
    ],
)
def test_a_framing_on_the_command_line(
    arguments: list[str], framing: Framing, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(capsys, *arguments) == (0, framing.assembly())


@pytest.mark.parametrize(
    ("text", "framing"),
    [
        ('protocol = "kafka"\nmax_length = 5000', protocols.KAFKA.replace(max_length=5000)),
        (
            'kind = "length-field"\noffset = 2\nsize = 2\nbyteorder = "little"\nadjustment = 4\n'
            'magic = "OK"\nmax_length = 4096',
            FRAMING,
        ),
        ('kind = "delimiter"\ndelimiter = "\\r\\n"', Delimiter(b"\r\n")),
        ("kind = 'delimiter'\ndelimiter = '\\x00'", Delimiter(b"\0")),
        (
            'kind = "assembly"\ntext = "r0 = SIZE; exit"\nmax_length = 8\nsymbols = {SIZE = 8}',
            CustomFraming("r0 = SIZE; exit", max_length=8, SIZE=8),
        ),
    ],
)
def test_a_framing_in_a_file(
    text: str, framing: Framing, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "framing.toml"
    file.write_text(text)
    assert _framings.from_file(str(file)) == framing
    assert told(capsys, "--framing-file", str(file)) == (0, framing.assembly())


@pytest.mark.parametrize(("text", "steps"), LAYOUTS)
def test_steps(
    text: str, steps: tuple[Step, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the command line and in a file; each step of the library can be written."""
    framing = Layout("of a file", steps, min_length=2, max_length=1000)
    file = tmp_path / "framing.toml"
    file.write_text(
        f"kind = 'layout'\ntitle = 'of a file'\nmin_length = 2\nmax_length = 1000\nrule = [{text}]"
    )
    assert _framings.from_file(str(file)) == framing
    same = framing.replace(title="message", min_length=1)
    assert told(capsys, "--layout", text, "--max-length", "1000") == (0, same.assembly())


def test_the_documents_files(tmp_path: Path) -> None:
    page = Path(__file__).parents[2].joinpath("docs/commands.md").read_text("utf-8")
    written = re.findall(r"^```toml\n(.*?)^```", page, re.M | re.S)
    assert len(written) == 4
    for number, text in enumerate(written):
        (tmp_path / f"{number}").write_text(text)
        made = _framings.from_file(str(tmp_path / f"{number}"))
        assert made.assembly()
    assert made.measure(b"\x12\0\0\1\0" + bytes(90)) == 264  # a version in it, and padding


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "which framing? name one of `kcm frame --list`"),
        (["DSN"], "there is no framing 'DSN'; did you mean 'DNS'?"),
        (["DNS", "--fixed-length", "4"], "one framing, please"),
        (["--length-field", "ofset=2"], "--length-field: there is no 'ofset'; did you mean 'offs"),
        (["--length-field", "size=x"], "--length-field: size: 'x' is not a number"),
        (["--length-field", "size=9"], "--length-field: size: must be 1 to 8, not 9"),
        (["--length-field", "2"], "--length-field: '2' is not NAME=VALUE"),
        (["--length-field", "size=2,size=2"], "--length-field: size is given twice"),
        (["--length-field", r"magic=\q"], r"--length-field: magic: '\q' is not \n, \r"),
        (["--delimiter", "max_length=9"], "--delimiter: delimiter is missing"),
        (["--layout", "{add = 3"], "--layout: '{add = 3' is not TOML's tables"),
        (["--layout", "{add = 3}]\nx = [1"], "--layout: '{add = 3}]\\nx = [1' is not TOML's tab"),
        (["--layout", "{ad = 3}"], "--layout: rule: step 1: which step is it?; did you mean 'add'"),
        (["--layout", "{add = 3, field = 1}"], "--layout: rule: step 1: which step is it?"),
        (["--layout", "{add = '3'}"], "--layout: rule: step 1: term: must be an integer, not '3'"),
        (["--layout", "{add = 3, sise = 1}"], "--layout: rule: step 1: there is no 'sise'"),
        (["--layout", "{add = 1}, {switch = 0}"], "--layout: rule: step 2: cases is missing"),
        (
            ["--layout", "{switch = 0, cases = [{values = [1], rule = [{leb128 = 'x'}]}]}"],
            "--layout: rule: step 1: case 1: step 1: leb128: must be an integer, not 'x'",
        ),
        (["--layout", "{within = [1, 2, 3]}"], "--layout: rule: step 1: within: must be [least"),
        (["--layout", ""], "--layout: min_length: no header can tell a length from 1 to"),
        (["DNS", "--max-length", "3"], "--max-length: min_length: 14 is over max_length, 3"),
        (["--framing-flie", "x"], "there is no option --framing-flie; did you mean '--framing-"),
    ],
)
def test_what_is_wrong_on_the_command_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, line = told(capsys, *arguments)
    assert status == 2
    assert line.startswith(f"kcm frame: {said}")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'kind = "length-field"\nofset = 2', "there is no 'ofset'; did you mean 'offset'?"),
        (b'knid = "varint"', "did you mean 'kind'?"),
        (b'kind = "varnit"', "there is no kind 'varnit'; did you mean 'varint'?"),
        (b'protocol = "DSN"', "there is no framing 'DSN'; did you mean 'DNS'?"),
        (b'protocol = "MQTT"\ntitle = "x"', "there is no 'title'"),
        (b'kind = "length-field"\nsize = "two"', "size: 'two' is not a number"),
        (b'kind = "length-field"\nsize = 2.5', "size: must be an integer, not 2.5"),
        (b'kind = "assembly"\nmax_length = 4', "text is missing"),
        (b'kind = "assembly"\ntext = "exit"\nsymbols = 3', "symbols: must be a table of numbers"),
        (b'kind = "assembly"\ntext = "exit"\nsymbols = {measure = 3}', "symbols: no 'measure'"),
        (b'kind = "layout"\nruel = []', "a layout: there is no 'ruel'; did you mean 'rule'?"),
        (b'kind = "layout"\nrule = 3', "rule: must be a list of tables, not 3"),
        (b"kind = ", "Invalid value"),
        (b"\x7fELF\x02\xff", "not TOML, which is text in UTF-8"),
    ],
)
def test_what_is_wrong_in_a_file(
    content: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "framing.toml"
    file.write_bytes(content)
    status, line = told(capsys, "--framing-file", str(file))
    assert status == 1
    assert line.startswith(f"kcm frame: {file}: ")
    assert said in line


def test_a_file_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "none.toml"
    assert told(capsys, "--framing-file", str(missing)) == (
        1,
        f"kcm frame: {missing}: No such file or directory\n",
    )
    assert told(capsys, "--framing-file", str(tmp_path)) == (
        1,
        f"kcm frame: {tmp_path}: Is a directory\n",
    )


@pytest.mark.parametrize("data", [bytes(range(256)), "héllo €\u202e".encode(), b"\xc3", b""])
def test_bytes_as_text_and_back(data: bytes) -> None:
    text = _escapes.to_text(data)
    assert text.isprintable()
    assert _escapes.to_bytes(text) == data
