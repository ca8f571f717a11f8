"""HTML in small pieces. Everything that is not a piece itself is escaped."""

from __future__ import annotations

import html
import time
from collections.abc import Iterable, Sequence

from starlette.responses import HTMLResponse

from voidbox.serve.keys import Key

_PAGES = {
    "Sandboxes": "/dashboard",
    "Snapshots": "/dashboard/snapshots",
    "Images": "/dashboard/images",
    "Keys": "/dashboard/keys",
    "Audit": "/dashboard/audit",
}
# xterm.js writes its own styles into the page; scripts come from files of ours alone.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_UNITS = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


class Html(str):
    """Text that is HTML already."""


def esc(value: object) -> Html:
    """Return a value as HTML."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def join(parts: Iterable[str]) -> Html:
    """Return pieces, one after the other."""
    return Html("".join(esc(part) for part in parts))


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], nothing: str) -> Html:
    """Return a table, which a phone shows as cards."""
    body = join(_row(heads, row) for row in rows)
    if not body:
        return Html(f'<p class="soft">{esc(nothing)}</p>')
    head = join(Html(f"<th>{esc(one)}</th>") for one in heads)
    return Html(f'<table class="cards"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>')


def _row(heads: Sequence[str], cells: Sequence[object]) -> Html:
    pairs = zip(heads, cells, strict=True)
    return Html(
        "<tr>"
        + join(Html(f'<td data-name="{esc(h)}">{esc(cell)}</td>') for h, cell in pairs)
        + "</tr>"
    )


def button(action: str, text: str, *, kind: str = "", confirm: str = "") -> Html:
    """Return a form with one button."""
    asking = f' data-confirm="{esc(confirm)}"' if confirm else ""
    return Html(
        f'<form class="inline" method="post" action="{esc(action)}"{asking}>'
        f'<button class="{esc(kind)}">{esc(text)}</button></form> '
    )


def live(path: str, content: str, seconds: int = 2) -> Html:
    """Return a part of a page that is asked for anew."""
    trigger = f'hx-get="{esc(path)}" hx-trigger="every {seconds}s" hx-swap="innerHTML"'
    return Html(f'<div class="card" {trigger}>{esc(content)}</div>')


def meter(value: float, highest: float) -> Html:
    """Return a bar."""
    share = min(1.0, value / highest) if highest > 0 else 0.0
    return Html(f'<meter min="0" max="1" value="{share:.3f}"></meter>')


def size(count: float) -> str:
    """Return bytes for people."""
    for unit, factor in _UNITS:
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} B"


def age(since: float | None) -> str:
    """Return how long ago something was."""
    if since is None:
        return "never"
    seconds = max(0, int(time.time() - since))
    for unit, factor in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= factor:
            return f"{seconds // factor} {unit}"
    return f"{seconds} s"


def page(title: str, body: str, key: Key | None, *, scripts: Sequence[str] = ()) -> HTMLResponse:
    """Return a whole page."""
    links = join(
        Html(f'<a href="{path}"{" aria-current=page" if name == title else ""}>{name}</a>')
        for name, path in _PAGES.items()
        if name not in ("Keys", "Audit") or (key is not None and key.may("admin"))
    )
    head = join(
        Html(f'<script src="/dashboard/static/{name}" defer></script>')
        for name in ("htmx.min.js", *scripts, "dashboard.js")
    )
    header = ""
    if key is not None:
        leave = button("/dashboard/logout", "Leave")
        header = (
            f"<header><strong>voidbox</strong><nav>{links}</nav>"
            f'<span class="soft">{esc(key.name)}</span>{leave}</header>'
        )
    return HTMLResponse(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{esc(title)} · voidbox'
        '</title><meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<meta name="htmx-config" content=\'{"includeIndicatorStyles": false}\'>'
        '<link rel="icon" href="data:,">'
        '<link rel="stylesheet" href="/dashboard/static/xterm.css">'
        '<link rel="stylesheet" href="/dashboard/static/dashboard.css">'
        f"{head}</head><body>{header}<main>{esc(Html(body))}</main></body></html>",
        headers=HEADERS,
    )


def part(content: str) -> HTMLResponse:
    """Return a part of a page."""
    return HTMLResponse(str(content), headers=HEADERS)
