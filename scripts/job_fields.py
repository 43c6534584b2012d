"""Writes the tables of docs/jobs.md from the definitions of a job's parts.

    python scripts/job_fields.py [--check]

With --check nothing is written: exit 1 where the page differs from what the definitions say now.
"""

from __future__ import annotations

import sys
from pathlib import Path

from freehold.client.jobs_schema import write_tables

PAGE = Path(__file__).resolve().parent.parent / "docs" / "jobs.md"
FIRST = "### Job\n"


def main(arguments: list[str]) -> int:
    text = PAGE.read_text(encoding="utf-8")
    page = text[: text.index(FIRST)] + write_tables()
    if "--check" in arguments:
        if page == text:
            return 0
        print(f"{PAGE} is not what a job's parts say now: run `make docs`", file=sys.stderr)
        return 1
    PAGE.write_text(page, encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
