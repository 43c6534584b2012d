"""Writes docs/terminal.svg, the picture in README.md, from docs/terminal.txt: what real commands printed in one run.

    python scripts/terminal_picture.py [--check]

To make it anew, run the commands of the text on a local network and paste what they print. A line of `...` stands for
lines that were left out; a line that is too long is cut here and ends in an ellipsis. With --check nothing is written:
exit 1 where the picture is not the text's.

Invariant: the picture holds text only: no script, no font and nothing else that a page would have to fetch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
TEXT, PICTURE = DOCS / "terminal.txt", DOCS / "terminal.svg"

COLUMNS = 108
FONT, ADVANCE, LINE = 13, 7.83, 18  # pixels: size, width of a character (0.602 of the size), height of a line
MARGIN, TITLE = 18, 34
BLANK = 0.55  # of a line
BACKGROUND, BAR, DOTS = "#11161d", "#1b222c", ("#e5695e", "#e0b04a", "#6cb56a")
STYLES = {"o": "#c3ccd6", "d": "#7d8894", "c": "#f4f7fa", "p": "#6cb56a", "g": "#8fd18a"}
GOOD = ("equals the report", "this report equals", "claimed ", "same", "The network is up")


def get_style(line: str) -> str:
    """The class of a line of output: good news, left out, or output."""
    if any(line.strip().startswith(words) for words in GOOD):
        return "g"
    return "d" if line.strip() == "..." else "o"


def cut(line: str) -> str:
    return line if len(line) <= COLUMNS else line[: COLUMNS - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def draw_line(line: str, y: float) -> str:
    shown = escape(cut(line), quote=False)
    if line.startswith("$ "):
        command, comment, words = shown[2:].partition("  # ")
        tail = f'<tspan class="d">{comment}{words}</tspan>' if comment else ""
        return f'<text x="{MARGIN}" y="{y:g}" class="c"><tspan class="p">$ </tspan>{command}{tail}</text>'
    return f'<text x="{MARGIN}" y="{y:g}" class="{get_style(line)}">{shown}</text>'


def draw_lines(lines: list[str], top: float) -> Iterator[tuple[str, float]]:
    """(element, y) of each line that is not blank."""
    y = top
    for line in lines:
        y += LINE if line.strip() else LINE * BLANK
        if line.strip():
            yield draw_line(line, y), y


def build_picture(text: str) -> str:
    drawn = list(draw_lines(text.rstrip().splitlines(), TITLE + 4))
    width, height = round(2 * MARGIN + COLUMNS * ADVANCE), round(drawn[-1][1] + MARGIN)
    styles = "".join(f".{name}{{fill:{color}}}" for name, color in STYLES.items())
    font = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono','Liberation Mono',monospace"
    dots = "".join(f'<circle cx="{20 + 18 * i}" cy="17" r="5.5" fill="{color}"/>' for i, color in enumerate(DOTS))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img" aria-label="A terminal: a file is stored and fetched, operators are paid, an epoch is replayed">\n'
        f"<style>text{{font:{FONT}px {font};white-space:pre}}{styles}</style>\n"
        f'<rect width="{width}" height="{height}" rx="9" fill="{BACKGROUND}"/>\n'
        f'<path d="M0 {TITLE}V9a9 9 0 0 1 9-9h{width - 18}a9 9 0 0 1 9 9v{TITLE - 9}z" fill="{BAR}"/>{dots}\n'
    )
    return head + '<g xml:space="preserve">\n' + "\n".join(element for element, _ in drawn) + "\n</g>\n</svg>\n"


def main(arguments: list[str]) -> int:
    picture = build_picture(TEXT.read_text(encoding="utf-8"))
    if "--check" in arguments:
        if PICTURE.exists() and PICTURE.read_text(encoding="utf-8") == picture:
            return 0
        print(f"{PICTURE} is not the picture of {TEXT.name}: run `make docs`", file=sys.stderr)
        return 1
    PICTURE.write_text(picture, encoding="utf-8")
    print(f"wrote {PICTURE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
