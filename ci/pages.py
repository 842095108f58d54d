"""Pages of the site whose text is not in docs/: README, the changes, files that are linked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]
PAGES = {"index.md": "README.md", "changes.md": "CHANGELOG.md"}
UNMEASURED = "# Performance\n\n`make bench` measures what a message costs, and writes this page.\n"

# A link to a file of the project: what stands before its path, the path, and an anchor.
_LINK = re.compile(r"(\]\()((?:\.\./)*[\w./-]+)((?:#[\w-]*)?\))")
_LANGUAGES = {".py": "python", ".yml": "yaml", ".yaml": "yaml"}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages that are made of files outside docs/."""
    from mkdocs.structure.files import File, InclusionLevel

    made = {page: (ROOT / source).read_text("utf-8") for page, source in PAGES.items()}
    if files.get_file_from_path("performance.md") is None:
        made["performance.md"] = UNMEASURED
    sources = [(Path(source), made[page]) for page, source in PAGES.items()]
    sources += [
        (Path("docs", file.src_uri), file.content_string) for file in files.documentation_pages()
    ]
    for source, text in sources:
        for _, target, _ in _LINK.findall(text):
            path = _inside(source.parent / target)
            if path is not None and path.parts[0] != "docs" and str(path) not in PAGES.values():
                made[f"files/{path}.md"] = _shown(path)
    for page, text in made.items():
        file = File.generated(config, page, content=text)
        if page.startswith("files/"):
            file.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(file)
    return files


def on_page_markdown(markdown: str, *, page: object, config: object, files: object) -> str:
    """Turns links between the project's files into links between pages."""
    uri: str = page.file.src_uri  # type: ignore[attr-defined]
    source = Path(PAGES.get(uri, f"docs/{uri}"))
    up = "../" * uri.count("/")

    def link(match: re.Match[str]) -> str:
        before, target, after = match.groups()
        path = _inside(source.parent / target)
        if path is None:
            return match[0]
        pages = {source: page for page, source in PAGES.items()}
        name = pages.get(str(path))
        if name is None and path.parts[0] == "docs":
            name = str(path.relative_to("docs"))
        return f"{before}{up}{name or f'files/{path}.md'}{after}"

    return _LINK.sub(link, markdown)


def _inside(path: Path) -> Path | None:
    """The path from the project's root, if there is such a file, or will be."""
    full = (ROOT / path).resolve()
    if not full.is_relative_to(ROOT):
        return None
    known = full.is_file() or full == ROOT / "docs" / "performance.md"
    return full.relative_to(ROOT) if known else None


def _shown(path: Path) -> str:
    """A page that shows a file."""
    text = (ROOT / path).read_text("utf-8")
    language = _LANGUAGES.get(path.suffix, "text")
    return f"---\ntitle: {path.name}\n---\n\n# {path}\n\n````{language}\n{text}````\n"
