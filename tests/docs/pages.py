"""What the pages for readers say: command lines, paths and make targets, taken out of their Markdown."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAM = "freehold"

# Where a page's short names of files are looked for: architecture.md says so in its first lines.
BASES = [ROOT, ROOT / "src/freehold", ROOT / "src/freehold/services/storage"]
SERVICE = "storage"  # the example that stands for <name>
# Names of files that exist while a network runs, or on its user's machine.
WRITTEN = re.compile(
    r"^((settings|price|accounts|gateway|(local/)?network|config)\.(json|toml)|(logs|processes|wallets|local)/.*)$"
)
FILE = re.compile(r"^[\w.<>*/-]+(\.(py|pyi|md|vy|json|sh|svg|txt|in|toml)|/)$|^(src|tests|docs|scripts)/[\w.<>*/-]+$")

SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


class CommandLine(NamedTuple):
    """`freehold ...` as a page has it. `is_whole`: a line of its own to be typed, not a mention in a sentence."""

    page: str
    arguments: tuple[str, ...]
    is_whole: bool


def get_block_lines(text: str) -> list[str]:
    """The lines of indented and fenced code blocks; in a fenced one, an indented line is no command but a part of one,
    or of what it prints."""
    fenced = [line for block in FENCED.findall(text) for line in block.splitlines()[1:-1]]
    indented = [line for line in FENCED.sub("", text).splitlines() if line.startswith("    ")]
    return [*fenced, *(line.strip() for line in indented)]


def get_command_lines(page: Path, section: str = "") -> Iterator[CommandLine]:
    """Those of a whole page, or of one section of it."""
    text = page.read_text(encoding="utf-8")
    if section:
        text = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    mentions = SPAN.findall(FENCED.sub("", text))
    for lines, is_whole in ((get_block_lines(text), True), (mentions, False)):
        for line in lines:
            words = shlex.split(line, comments=True) if line.startswith(f"{PROGRAM} ") else []
            if words:
                yield CommandLine(page.name, tuple(words[1:]), is_whole)


def get_story() -> list[list[str]]:
    """The arguments of the commands that README.md has newcomers type into their second terminal, in order."""
    return [list(line.arguments) for line in get_command_lines(ROOT / "README.md", "Start") if line.is_whole]


def get_paths(page: Path) -> Iterator[tuple[str, list[Path]]]:
    """(what the page names, where it may be) of each file or directory: links first, then code spans."""
    text = page.read_text(encoding="utf-8")
    for link in LINK.findall(text):
        if "://" not in link and not link.startswith("#"):
            yield link, [page.parent / link.partition("#")[0]]
    for span in SPAN.findall(FENCED.sub("", text)):
        name = span.replace("<name>", SERVICE)
        if FILE.match(name) and not WRITTEN.match(name):
            yield span, [base / name for base in BASES]


def get_targets(page: Path) -> set[str]:
    """The make targets that the page names."""
    text = page.read_text(encoding="utf-8")
    commands = [*get_block_lines(text), *SPAN.findall(FENCED.sub("", text))]
    return {
        word
        for command in commands
        if command.startswith("make ")
        for word in shlex.split(command, comments=True)[1:]
        if "=" not in word
    }


def exists(place: Path) -> bool:
    """Whether the path, or anything that its wildcards match, is there."""
    if "*" in place.name:
        return any(place.parent.glob(place.name))
    return place.exists()
