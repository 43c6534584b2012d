"""Writes the table of operations in docs/s3.md from the gateway's own, so that the page cannot drift from the program.

    python scripts/s3_table.py [--check]

With --check nothing is written: exit 1 where the page differs from what the gateway does now.
"""

from __future__ import annotations

import sys
from pathlib import Path

from freehold.gateway.operations import OPERATIONS, Level, Operation

PAGE = Path(__file__).resolve().parent.parent / "docs" / "s3.md"
BEGIN, END = "<!-- operations -->\n", "<!-- end of operations -->\n"
TITLES = {Level.SERVICE: "The account", Level.BUCKET: "Buckets", Level.OBJECT: "Objects"}


def build_table() -> str:
    parts = []
    for level, title in TITLES.items():
        rows = [operation for operation in OPERATIONS if operation.level is level]
        parts.append(f"\n### {title}\n\n| operation | | |\n|---|---|---|\n")
        parts += [_row(operation) for operation in sorted(rows, key=lambda each: (not each.offered, each.name))]
    return "".join(parts) + "\n"


def _row(operation: Operation) -> str:
    state = "NotImplemented" if not operation.offered else "offered with limits" if operation.note else "offered"
    return f"| {operation.name} | {state} | {operation.note} |\n"


def build_page(text: str) -> str:
    """The page with the table of now."""
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}{build_table()}{END}{rest.partition(END)[2]}"


def main(arguments: list[str]) -> int:
    text = PAGE.read_text(encoding="utf-8")
    page = build_page(text)
    if "--check" in arguments:
        if page == text:
            return 0
        print(f"{PAGE} is not what the gateway does now: run `make docs`", file=sys.stderr)
        return 1
    PAGE.write_text(page, encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
