"""The pages, and the parts of them that are live."""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
import time
from collections import deque
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from voidbox.errors import VoidboxError
from voidbox.serve.control.shapes import started_at, state_of
from voidbox.serve.dashboard.html import (
    Html,
    age,
    button,
    esc,
    join,
    live,
    meter,
    page,
    part,
    size,
    table,
)
from voidbox.serve.envd.entries import entries_in
from voidbox.serve.errors import ApiError, ConnectError
from voidbox.serve.keys import SCOPES, Key
from voidbox.serve.registry import Registry
from voidbox.serve.served import Served

_LINES_MAX = 200
_ENTRIES_MAX = 500
_AUDIT_MAX = 200


class Pages:
    """What is shown."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    # All sandboxes.

    async def sandboxes(self, request: Request, key: Key) -> Response:
        """Show all that the key sees."""
        names = await self._names(key)
        options = join(Html(f"<option>{esc(name)}</option>") for name in names)
        form = Html("")
        if key.may("run"):
            form = Html(
                '<form class="row" method="post" action="/dashboard/sandboxes">'
                f'<select name="template" aria-label="template">{options}</select>'
                '<button class="main">New sandbox</button></form>'
            )
        body = live("/dashboard/part/sandboxes", self._table(key))
        return page("Sandboxes", f"<h1>Sandboxes</h1>{body}<h2>Another one</h2>{form}", key)

    async def _names(self, key: Key) -> list[str]:
        """Return the names of all templates that the key may use."""
        templates = self._registry.templates
        names = await asyncio.to_thread(templates.names)
        return [*names, *(tag.title for tag, _ in await templates.built(key))]

    async def sandboxes_part(self, request: Request, key: Key) -> Response:
        """The table alone."""
        return part(self._table(key))

    def _table(self, key: Key) -> Html:
        mine = [one for one in self._registry if key.sees(one.mark.key_id)]
        rows = []
        for served in mine:
            try:
                record = served.record
            except VoidboxError:
                continue
            rows.append(
                (
                    Html(f'<a href="/dashboard/sandboxes/{served.id}">{esc(record.name)}</a>'),
                    _state(served),
                    served.mark.template,
                    *_usage(served),
                    age(started_at(served, record)),
                    self._registry.keys.name_of(served.mark.key_id),
                    _actions(served, key),
                )
            )
        heads = ("Name", "State", "Template", "CPU", "Memory", "Network", "Age", "Key", "")
        return join([table(heads, rows, "No sandbox runs."), self._waiting()])

    def _waiting(self) -> Html:
        waiting = self._registry.waiting
        if waiting is None:
            return Html("")
        stats = waiting.stats()
        short = ": the host has no memory for more" if stats.is_short_of_memory else ""
        return Html(f'<p class="soft">{stats.warm} of {stats.size} wait for a client{short}</p>')

    # One sandbox.

    async def sandbox(self, request: Request, key: Key) -> Response:
        """Show one of them."""
        served = self._registry.find(request.path_params["id"], key)
        base = f"/dashboard/part/sandboxes/{served.id}"
        terminal = Html("")
        if served.is_running and key.may("run"):
            terminal = Html(
                '<h2>Terminal</h2><button data-terminal="1">Open a terminal</button>'
                '<div id="terminal" hidden'
                f' data-path="/dashboard/sandboxes/{served.id}/terminal"></div>'
            )
        body = join(
            [
                Html(f"<h1>{esc(served.record.name)}</h1>"),
                live(f"{base}/facts", self._facts(served, key)),
                terminal,
                Html("<h2>Files</h2><div class='card'>"),
                await self._files(served, request.query_params.get("path", "")),
                Html("</div><h2>Console</h2>"),
                live(f"{base}/log", await self._log(served), 5),
            ]
        )
        return page(served.record.name, body, key, scripts=("xterm.js", "addon-fit.js"))

    async def facts_part(self, request: Request, key: Key) -> Response:
        """Its state and figures alone."""
        served = self._registry.find(request.path_params["id"], key)
        return part(self._facts(served, key))

    async def log_part(self, request: Request, key: Key) -> Response:
        """Its console's last lines alone."""
        return part(await self._log(self._registry.find(request.path_params["id"], key)))

    def _facts(self, served: Served, key: Key) -> Html:
        record = served.record
        left_s = self._registry.end_at(served, record) - time.time()
        disk = served.samples[-1] if served.samples else None
        cpu, memory, network = _usage(served)
        facts = {
            "ID": served.id,
            "State": _state(served),
            "Template": served.mark.template,
            "CPU": cpu,
            "Memory": memory,
            "Disk": size(disk.disk_used) if disk else "-",
            "Network": network,
            "Age": age(started_at(served, record)),
            "Ends": f"in {max(0, int(left_s))} s" if served.is_running else "-",
            "Key": self._registry.keys.name_of(served.mark.key_id),
        }
        cells = join(
            Html(f"<div><span>{esc(name)}</span>{esc(value)}</div>")
            for name, value in facts.items()
        )
        return Html(f'<div class="facts">{cells}</div><p class="row">{_actions(served, key)}</p>')

    async def _log(self, served: Served) -> Html:
        lines: deque[str] = deque(maxlen=_LINES_MAX)
        with contextlib.suppress(VoidboxError):
            box = await served.box()
            async with contextlib.aclosing(box.logs()) as source:
                async for line in source:
                    lines.append(line.rstrip("\r\n"))
            await box.close()
        text = "\n".join(lines) or "Nothing was shown."
        return Html(f"<pre>{esc(text)}</pre>")

    async def _files(self, served: Served, path: str) -> Html:
        if not served.is_running:
            return Html('<p class="soft">It is paused.</p>')
        try:
            user = await served.users.find("")
            folder = user.path(path)
            entries = await entries_in(served, user, folder, 1)
        except (VoidboxError, ConnectError) as error:
            return Html(f'<p class="error">{esc(error)}</p>')
        base = f"/dashboard/sandboxes/{served.id}"
        rows = []
        for entry in sorted(entries, key=lambda one: (one["type"], one["name"]))[:_ENTRIES_MAX]:
            target = quote(entry["path"])
            is_folder = entry["type"] == "FILE_TYPE_DIRECTORY"
            way = f"{base}?path={target}" if is_folder else f"{base}/file?path={target}"
            name = entry["name"] + ("/" if is_folder else "")
            rows.append(
                (
                    Html(f'<a href="{way}">{esc(name)}</a>'),
                    "" if is_folder else size(entry["size"]),
                    entry["permissions"],
                    entry["owner"],
                )
            )
        above = quote(posixpath.dirname(folder))
        up = Html(f'<p>{esc(folder)} <a href="{base}?path={above}">up</a></p>')
        more = f"<p class='soft'>and {len(entries) - _ENTRIES_MAX} more</p>"
        rest = Html(more if len(entries) > _ENTRIES_MAX else "")
        return join([up, table(("Name", "Size", "Mode", "Owner"), rows, "It is empty."), rest])

    # What else there is.

    async def snapshots(self, request: Request, key: Key) -> Response:
        """Show the key's snapshots."""
        found = await self._registry.templates.snapshots(key)
        rows = [
            (
                one.record.name or one.record.id,
                one.record.sandbox.name,
                size(one.sizes.disk_bytes),
                age(one.record.created_at),
                button(
                    f"/dashboard/snapshots/{one.record.id}/remove", "Remove",
                    kind="danger", confirm="Remove this snapshot?",
                ) if key.may("run") else "",
            )
            for one in found
        ]  # fmt: skip
        shown = table(("Name", "Of", "Size", "Age", ""), rows, "There is no snapshot.")
        return page("Snapshots", f'<h1>Snapshots</h1><div class="card">{shown}</div>', key)

    async def images(self, request: Request, key: Key) -> Response:
        """Show what sandboxes can be made from."""
        names = await self._names(key)
        shown = table(("Template",), [(name,) for name in names], "There is none.")
        return page("Images", f'<h1>Images</h1><div class="card">{shown}</div>', key)

    async def keys(self, request: Request, key: Key, secret: str = "") -> Response:
        """Show all keys; with `secret` one that was just made."""
        rows = [
            (
                one.name,
                ", ".join(one.scopes),
                age(one.created_at),
                age(one.last_used_at),
                button(
                    f"/dashboard/keys/{one.id}/remove", "Remove",
                    kind="danger", confirm=f"Remove the key {one.name}?",
                ) if one.id != key.id else "",
            )
            for one in self._registry.keys.list()
        ]  # fmt: skip
        notice = Html("")
        if secret:
            notice = Html(
                f'<p class="card">Copy it now, it is shown once: <code>{esc(secret)}</code></p>'
            )
        choices = join(Html(f"<option>{scope}</option>") for scope in SCOPES)
        form = (
            '<form class="row" method="post" action="/dashboard/keys"><input name="name" required '
            'aria-label="name" placeholder="name"><select name="scope" aria-label="scope">'
            f'{choices}</select><button class="main">New key</button></form>'
        )
        shown = table(("Name", "Scopes", "Age", "Last used", ""), rows, "There is none.")
        body = f'<h1>Keys</h1>{notice}<div class="card">{shown}</div><h2>Another one</h2>{form}'
        return page("Keys", body, key)

    async def audit(self, request: Request, key: Key) -> Response:
        """Show who did what."""
        lines = self._registry.database.audit_lines(_AUDIT_MAX)
        rows = [(f"{age(at)} ago", who, what, box, more) for at, who, what, box, more in lines]
        shown = table(("When", "Key", "What", "Sandbox", ""), rows, "Nothing has happened.")
        return page("Audit", f'<h1>Audit</h1><div class="card">{shown}</div>', key)

    def login(self, error: str = "") -> Response:
        """Ask for a key."""
        notice = f'<p class="error" role="alert">{esc(error)}</p>' if error else ""
        body = (
            f'<div class="card login"><h1>voidbox</h1>{notice}<form method="post" '
            'action="/dashboard/login"><label for="key">API key</label><input id="key" name="key" '
            'type="password" autocomplete="current-password" required autofocus>'
            '<button class="main">Enter</button></form><p class="soft">voidbox serve key add NAME '
            "makes one.</p></div>"
        )
        return page("Enter", body, None)

    def failed(self, error: ApiError, key: Key | None) -> Response:
        """Say what went wrong."""
        body = f'<h1>That did not work</h1><p class="card error" role="alert">{esc(error)}</p>'
        response = page("Error", body, key)
        response.status_code = error.status
        return response


def _state(served: Served) -> Html:
    state = state_of(served)
    return Html(f'<span class="{state}">● {state}</span>')


def _usage(served: Served) -> tuple[Html, Html, Html]:
    """Return processor and memory, as bars with numbers, and what came and went by the network."""
    if not served.samples or not served.is_running:
        return Html("-"), Html("-"), Html("-")
    last = served.samples[-1]
    memory = join([meter(last.memory_used, last.memory_total), f" {size(last.memory_used)}"])
    cpu = join([meter(last.cpu_percent, 100), f" {last.cpu_percent:.0f} %"])
    return cpu, memory, Html(f"↓ {size(last.received)} ↑ {size(last.sent)}")


def _actions(served: Served, key: Key) -> Html:
    if not key.may("run"):
        return Html("")
    base = f"/dashboard/sandboxes/{served.id}"
    end = button(f"{base}/kill", "Kill", kind="danger", confirm="Kill this sandbox?")
    if not served.is_running:
        return join([button(f"{base}/resume", "Resume"), end])
    doing = ("pause", "fork", "snapshot")
    return join([*(button(f"{base}/{word}", word.capitalize()) for word in doing), end])
