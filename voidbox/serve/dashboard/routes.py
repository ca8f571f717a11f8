"""What the dashboard answers: pages, and what its buttons do."""

from __future__ import annotations

import posixpath
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles

from voidbox.errors import VoidboxError
from voidbox.serve.bodies import read_bytes
from voidbox.serve.dashboard.html import HEADERS
from voidbox.serve.dashboard.pages import Pages
from voidbox.serve.dashboard.sessions import Sessions, check_origin
from voidbox.serve.dashboard.terminal import Terminal
from voidbox.serve.envd import files
from voidbox.serve.errors import ApiError, ConnectError, as_api_error
from voidbox.serve.keys import Key
from voidbox.serve.marks import Mark
from voidbox.serve.registry import Registry

_FORM_BYTES_MAX = 4096
_LIFE_S = 3600.0  # of a sandbox that is made here
_HOME, _LOGIN = "/dashboard", "/dashboard/login"

Handler = Callable[[Request, Key], Awaitable[Response]]


class Dashboard:
    """All of it."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._pages = Pages(registry)
        self._sessions = Sessions(registry.keys, registry.database.secret())

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        pages = self._pages
        static = StaticFiles(packages=[("voidbox.serve.dashboard", "static")])
        terminal = Terminal(self._registry, self._sessions)
        return [
            Route("/", self._home, methods=["GET"]),
            Route(_LOGIN, self._show_login, methods=["GET"]),
            Route(_LOGIN, self._login, methods=["POST"]),
            Route("/dashboard/logout", self._logout, methods=["POST"]),
            Mount("/dashboard/static", static),
            self._get("", pages.sandboxes),
            self._get("/part/sandboxes", pages.sandboxes_part),
            self._get("/part/sandboxes/{id}/facts", pages.facts_part),
            self._get("/part/sandboxes/{id}/log", pages.log_part),
            self._get("/sandboxes/{id}", pages.sandbox),
            self._get("/sandboxes/{id}/file", self._file),
            self._get("/snapshots", pages.snapshots),
            self._get("/images", pages.images),
            self._get("/keys", pages.keys, "admin"),
            self._get("/audit", pages.audit, "admin"),
            self._post("/sandboxes", self._create),
            self._post("/sandboxes/{id}/{action}", self._act),
            self._post("/snapshots/{id}/remove", self._remove_snapshot),
            self._post("/keys", self._add_key, "admin"),
            self._post("/keys/{id}/remove", self._remove_key, "admin"),
            WebSocketRoute("/dashboard/sandboxes/{id}/terminal", terminal.serve),
        ]

    def _get(self, path: str, handler: Handler, scope: str = "read") -> Route:
        return Route(f"/dashboard{path}", self._guarded(handler, scope), methods=["GET"])

    def _post(self, path: str, handler: Handler, scope: str = "run") -> Route:
        return Route(f"/dashboard{path}", self._guarded(handler, scope), methods=["POST"])

    def _guarded(self, handler: Handler, scope: str) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            key = self._sessions.key_of(request)
            if key is None:
                answer: Response = RedirectResponse(_LOGIN, 303)
                answer.headers["HX-Redirect"] = _LOGIN  # of a page whose session is over
                return answer
            request.scope["voidbox.key"] = key.name
            try:
                if request.method == "POST":
                    check_origin(request)
                if not key.may(scope):
                    raise ApiError(403, f"the key {key.name} has no scope {scope!r}")
                return await handler(request, key)
            except ConnectError as error:
                return self._pages.failed(ApiError(400, str(error)), key)
            except VoidboxError as error:
                return self._pages.failed(as_api_error(error), key)
            except ApiError as error:
                return self._pages.failed(error, key)

        return endpoint

    async def _home(self, request: Request) -> Response:
        return RedirectResponse(_HOME, 303)

    # Who looks.

    async def _show_login(self, request: Request) -> Response:
        return self._pages.login()

    async def _login(self, request: Request) -> Response:
        try:
            check_origin(request)
        except ApiError as error:
            return self._pages.failed(error, None)
        key = self._registry.keys.find((await _form(request)).get("key", "").strip())
        if key is None:
            response = self._pages.login("There is no such key.")
            response.status_code = 401
            return response
        response = RedirectResponse(_HOME, 303)
        self._sessions.begin(response, key, request.url.scheme == "https")
        self._registry.database.audit(key.name, "enter the dashboard")
        return response

    async def _logout(self, request: Request) -> Response:
        check_origin(request)
        response = RedirectResponse(_LOGIN, 303)
        self._sessions.end(response)
        return response

    # What is done.

    async def _create(self, request: Request, key: Key) -> Response:
        template = (await _form(request)).get("template", "base")
        mark = Mark(key.id, template)
        options = {"timeout": _LIFE_S, "metadata": mark.to_metadata()}
        served = await self._registry.create(key, template, mark, options)
        return RedirectResponse(f"/dashboard/sandboxes/{served.id}", 303)

    async def _act(self, request: Request, key: Key) -> Response:
        served = self._registry.find(request.path_params["id"], key)
        action = request.path_params["action"]
        if action == "kill":
            await self._registry.kill(served, key.name)
        elif action == "pause":
            await self._registry.pause(served, key.name)
        elif action == "resume":
            await self._registry.resume(served, None, key.name)
        elif action == "fork":
            await self._registry.fork(served, 1, key.name)
        elif action == "snapshot":
            await self._registry.snapshot(served, None, key.name)
            return RedirectResponse("/dashboard/snapshots", 303)
        else:
            raise ApiError(404, f"there is no button {action[:40]!r}")
        return RedirectResponse(_HOME, 303)

    async def _remove_snapshot(self, request: Request, key: Key) -> Response:
        name = request.path_params["id"]
        if not await self._registry.templates.remove(name, key):
            raise ApiError(404, "there is no such snapshot")
        self._registry.database.audit(key.name, "remove snapshot", "", name)
        return RedirectResponse("/dashboard/snapshots", 303)

    async def _add_key(self, request: Request, key: Key) -> Response:
        form = await _form(request)
        new, secret = self._registry.keys.add(form.get("name", ""), [form.get("scope", "run")])
        self._registry.database.audit(key.name, "add key", "", new.name)
        return await self._pages.keys(request, key, secret)

    async def _remove_key(self, request: Request, key: Key) -> Response:
        found = self._registry.keys.by_id(request.path_params["id"])
        if found is None:
            raise ApiError(404, "there is no such key")
        self._registry.keys.remove(found.name)
        self._registry.database.audit(key.name, "remove key", "", found.name)
        return RedirectResponse("/dashboard/keys", 303)

    async def _file(self, request: Request, key: Key) -> Response:
        """Send a file as a download: a guest's page must not run here."""
        served = self._registry.find(request.path_params["id"], key)
        response = await files.download(served, request)
        name = posixpath.basename(request.query_params.get("path", "")) or "file"
        plain = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name)
        response.headers["Content-Disposition"] = f'attachment; filename="{plain}"'
        response.headers.update(HEADERS)
        return response


async def _form(request: Request) -> dict[str, str]:
    text = (await read_bytes(request, _FORM_BYTES_MAX)).decode("utf-8", "replace")
    return {name: values[0] for name, values in parse_qs(text, max_num_fields=20).items()}
