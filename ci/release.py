"""Whether a tag may be released: what a person has to do before is done. Needs Python alone.

python3 -m ci.release v0.1.0
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def faults(tag: str, root: Path = ROOT) -> list[str]:
    """What is to be put right before the tag is released, a line each."""
    package, changes, project = (
        (root / name).read_text(encoding="utf-8")
        for name in ("pykcm/__init__.py", "CHANGELOG.md", "pyproject.toml")
    )
    found = re.search(r'^__version__ = "(.+)"$', package, re.MULTILINE)
    version = found[1] if found else "not there"
    wrong = []
    if tag != f"v{version}":
        wrong.append(f"the tag is {tag}, but pykcm.__version__ is {version}")
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changes, re.MULTILINE):
        wrong.append(f"CHANGELOG.md lacks `## [{version}] - YYYY-MM-DD`")
    if "https://example.org/" in project:
        wrong.append("[project.urls] in pyproject.toml is still the placeholder")
    return wrong


def main() -> int:
    (tag,) = sys.argv[1:]
    wrong = faults(tag)
    for fault in wrong:
        print(f"release: {fault}", file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
