"""The HTML that whoever opens a shared link sees: a folder, or why there is nothing to see. Pure: text in, text out.

Invariants: every name is escaped, in text and in attributes; the pages have no scripts, and load nothing from anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from typing import NamedTuple

STYLE = """
:root { color-scheme: light dark; --line: #8883; --quiet: #777; --link: #1660b8; }
@media (prefers-color-scheme: dark) { :root { --link: #7db4f5; --quiet: #999; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 54rem; margin: 2.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.35rem; font-weight: 600; overflow-wrap: anywhere; }
a { color: var(--link); text-decoration: none; } a:hover { text-decoration: underline; }
table { width: 100%; border-collapse: collapse; }
th { text-align: left; font-weight: 500; font-size: .85rem; color: var(--quiet); }
th, td { padding: .45rem .5rem; border-bottom: 1px solid var(--line); }
td:first-child { overflow-wrap: anywhere; }
th + th, td + td { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
p, footer { color: var(--quiet); } footer { margin-top: 2rem; font-size: .85rem; }
form { margin: 1.5rem 0; padding: 1rem; border: 1px dashed var(--line); border-radius: .5rem; }
"""
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


class Row(NamedTuple):
    """A line of a folder. `size` in bytes and `modified` in unix ms; None for a folder within it."""

    name: str
    link: str
    size: int | None = None
    modified: int | None = None


def write_folder(
    title: str,
    rows: Sequence[Row],
    *,
    up: str | None = None,
    next_page: str | None = None,
    upload: bool = False,
    may_list: bool = True,
    expires: int | None = None,
) -> str:
    """A folder's page: links to what is in it, one up and one to the next page, and a form where writing is granted."""
    parts = []
    if up is not None:
        parts.append(f'<p><a href="{escape(up)}">&larr; up</a></p>')
    if rows:
        parts.append("<table><thead><tr><th>Name</th><th>Size</th><th>Modified (UTC)</th></tr></thead><tbody>")
        parts += map(_row, rows)
        parts.append("</tbody></table>")
    elif may_list:
        parts.append("<p>There is nothing here.</p>")
    if next_page is not None:
        parts.append(f'<p><a rel="next" href="{escape(next_page)}">Next page &rarr;</a></p>')
    if upload:
        parts.append(
            '<form method="post" enctype="multipart/form-data"><label>Add files: '
            '<input type="file" name="file" multiple required></label> <button>Upload</button></form>'
        )
    until = "" if expires is None else f" until {datetime.fromtimestamp(expires, UTC):%Y-%m-%d %H:%M} UTC"
    parts.append(f"<footer>Shared with you{until}.</footer>")
    return _page(title, "".join(parts))


def write_error(title: str, message: str, hint: str = "") -> str:
    """A page that says why there is nothing to see."""
    return _page(title, f"<p>{escape(message)}</p>" + (f"<p>{escape(hint)}</p>" if hint else ""))


def _row(row: Row) -> str:
    size = "" if row.size is None else _format_size(row.size)
    when = "" if row.modified is None else f"{datetime.fromtimestamp(row.modified // 1000, UTC):%Y-%m-%d %H:%M}"
    name = escape(row.name) or "<i>(no name)</i>"
    return f'<tr><td><a href="{escape(row.link)}">{name}</a></td><td>{size}</td><td>{when}</td></tr>'


def _format_size(size: int) -> str:
    power = min(len(_UNITS) - 1, max(0, size.bit_length() - 1) // 10)
    return f"{size} B" if power == 0 else f"{size / 1024**power:.1f} {_UNITS[power]}"


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>"
    )
