"""README.md and docs/: their Python runs, what they quote is in the code, no page is left out."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from tests.documents import PAGES, ROOT, Block, all_blocks, blocks, text
from tests.unit.bpf_oracle import needs_bpf

BLOCKS = all_blocks()


def test_every_block_is_found() -> None:
    """A fence that is written differently would be passed over in silence."""
    fences = sum(len(re.findall(r"^ *[`~]{3,} *py", text(page), re.MULTILINE)) for page in PAGES)
    assert fences == len(BLOCKS) >= 15


def test_blocks_are_whole(tmp_path: Path) -> None:
    """Each compiles, imports what it uses, is typed, and is formatted as the code is."""
    places = {}
    for number, block in enumerate(BLOCKS):
        path = tmp_path / (block.file or f"block_{number}.py")
        path.write_text(block.text, "utf-8")
        places[str(path)] = places[path.name] = block.where
    settings = ["--config", "pyproject.toml", str(tmp_path)]
    cache = ["--cache-dir", str(tmp_path / "cache")]  # mypy's is not for several at a time
    for command in (
        ["ruff", "check", "--select", "F,E9,B", "--no-cache", *settings],
        ["ruff", "format", "--check", *settings],
        ["mypy", *cache, *[place for place in places if "/" in place]],
    ):
        result = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env={**os.environ, "MYPYPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        report = result.stdout + result.stderr
        for place, where in places.items():
            report = report.replace(place, where)
        assert result.returncode == 0, report


def run(block: Block) -> str:
    """What a block prints."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(block.text, block.where, "exec"), {"__name__": "block"})
    return output.getvalue()


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, id=block.where, marks=[needs_bpf] if block.needs == "BPF" else [])
        for block in BLOCKS
        if block.needs != "KCM" and not block.file
    ],
)
def test_block_runs(block: Block, files: None) -> None:
    run(block)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The tutorial's files, to be imported by its other blocks."""
    for block in blocks("docs/tutorial.md"):
        if block.file:
            (tmp_path / block.file).write_text(block.text, "utf-8")
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in set(sys.modules) - before:
        if (tmp_path / f"{name}.py").exists():
            del sys.modules[name]


def test_what_the_tutorial_prints(files: None) -> None:
    (block,) = (block for block in blocks("docs/tutorial.md") if not block.file)
    printed = run(block)
    assert "instead of" in printed
    assert f"\n    {printed}\n" in text("docs/tutorial.md")


def test_the_framing_of_the_tutorial_is_short() -> None:
    (module,) = (block.text for block in blocks("docs/tutorial.md") if block.file == "wire.py")
    (framing,) = re.findall(r"^FRAMING = .*?^\)$", module, re.MULTILINE | re.DOTALL)
    assert framing.count("\n") + 1 <= 10


# ---- docs/troubleshooting.md ----


def quoted() -> list[str]:
    """The errors' texts: headings in backticks, in which … stands for what differs."""
    return re.findall(r"^### `(.*)`$", text("docs/troubleshooting.md"), re.MULTILINE)


def sources() -> str:
    """The texts of all strings in pykcm, joined as Python joins them."""
    code = "\n".join(path.read_text("utf-8") for path in sorted(ROOT.glob("pykcm/**/*.py")))
    return re.sub(r'"\s*f?"', "", code)


def test_quoted_texts_are_in_the_code() -> None:
    code = sources()
    assert len(quoted()) >= 20
    for heading in quoted():
        parts = [re.escape(part) for part in heading.split("…")]
        # What differs is a name in braces.
        assert re.search(r"\{[^{}\n]*\}".join(parts), code), f"no error says: {heading}"


def test_an_unknown_text_is_noticed() -> None:
    assert not re.search(re.escape("the flux capacitor is empty"), sources())


# ---- what is public ----

MODULES = [
    "pykcm",
    "pykcm.bpf",
    "pykcm.doctor",
    "pykcm.errors",
    "pykcm.framing",
    "pykcm.framing.base",
    "pykcm.framing.code",
    "pykcm.framing.field",
    "pykcm.framing.search",
    "pykcm.framing.steps",
    "pykcm.protocols",
    "pykcm.statistics",
]


def undocumented(module: ModuleType) -> Iterator[str]:
    """The names of public functions, classes and their public members without a docstring."""
    if not module.__doc__:
        yield module.__name__
    exported = getattr(module, "__all__", None)
    for name in exported or vars(module):
        value = getattr(module, name)
        source = str(getattr(value, "__module__", ""))
        own = source.startswith("pykcm") if exported else source == module.__name__
        if name.startswith("_") or not own or not callable(value):
            continue
        if not inspect.isclass(value):
            if inspect.isroutine(value) and not value.__doc__:
                yield f"{module.__name__}.{name}"
            continue
        if not value.__doc__:
            yield f"{module.__name__}.{name}"
        yield from (f"{module.__name__}.{name}.{member}" for member in undocumented_members(value))


def undocumented_members(kind: type) -> Iterator[str]:
    for name in dir(kind):
        owner = next((base for base in kind.__mro__ if name in vars(base)), object)
        if name.startswith("_") or not owner.__module__.startswith("pykcm"):
            continue
        value = vars(owner)[name]
        is_member = isinstance(value, property | classmethod | staticmethod)
        if (is_member or inspect.isroutine(value)) and not inspect.getdoc(getattr(kind, name)):
            yield name


@pytest.mark.parametrize("name", MODULES)
def test_what_is_public_has_a_docstring(name: str) -> None:
    assert list(undocumented(import_module(name))) == []


def test_what_has_no_docstring_is_noticed() -> None:
    module = ModuleType("pykcm.example", "It has one.")
    source = "class Kind:\n    'It has one.'\n    def call(self): ...\ndef function(): ...\n"
    exec(source, {"__name__": "pykcm.example"}, vars(module))
    for value in (module.Kind, module.function):
        value.__module__ = "pykcm.example"
    assert list(undocumented(module)) == ["pykcm.example.Kind.call", "pykcm.example.function"]


# ---- the site ----


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8")
    for page in PAGES[1:]:
        assert f": {page.removeprefix('docs/')}" in navigation
