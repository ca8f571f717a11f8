"""/templates/tags: other names of a template's builds, as the SDKs assign and remove them."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from voidbox.serve import bodies
from voidbox.serve.control.routes import Routes
from voidbox.serve.control.shapes import time_text
from voidbox.serve.control.wishes import refuse_unknown
from voidbox.serve.errors import ApiError, bad
from voidbox.serve.keys import Key
from voidbox.serve.tags import Tag, is_tag, split_tag

_TAGS_MAX = 100  # of one template


def checked(tags: list[str]) -> list[str]:
    """Return tags as they are kept, each once.

    Raises:
        ApiError: one of them is none, or they are too many.
    """
    found = list(dict.fromkeys(tag.lower() for tag in tags))
    if not all(map(is_tag, found)) or not 0 < len(found) <= _TAGS_MAX:
        raise bad(f"tags: 1 to {_TAGS_MAX}, each of letters, digits, '_', '.' and '-', at most 128")
    return found


class TagRoutes(Routes):
    """Tags of templates that were built."""

    def routes(self) -> list[Route]:
        """See Routes."""
        route = self._route
        return [
            route("POST", "/templates/tags", self._assign),
            route("DELETE", "/templates/tags", self._remove),
            route("GET", "/templates/{id}/tags", self._list),
        ]

    def _of(self, key: Key, name: str) -> list[Tag]:
        found = self._registry.templates.tags.of(key.id, name)
        if not found:
            raise ApiError(404, f"template {name[:80]!r} not found among those that were built")
        return found

    async def _assign(self, request: Request, key: Key) -> Response:
        fields = await bodies.read_fields(request)
        refuse_unknown(fields, frozenset(("target", "tags")))
        name, tag = split_tag(bodies.text(fields, "target"))
        tags = checked(bodies.texts(fields, "tags"))
        there = self._of(key, name)
        if len({*tags, *(one.tag for one in there)}) > _TAGS_MAX:
            raise bad(f"{name} would have more than {_TAGS_MAX} tags")
        found = next((one for one in there if one.tag == tag.lower()), None)
        if found is None:
            raise ApiError(404, f"template {name} has no tag {tag[:80]!r}")
        await self._registry.templates.assign(name, tags, found.snapshot, found.build, key)
        self._registry.database.audit(key.name, "tag", "", f"{name}:{tag} {' '.join(tags)}")
        return JSONResponse({"tags": tags, "buildID": found.build}, 201)

    async def _remove(self, request: Request, key: Key) -> Response:
        fields = await bodies.read_fields(request)
        refuse_unknown(fields, frozenset(("name", "tags")))
        name = bodies.text(fields, "name")
        tags = checked(bodies.texts(fields, "tags"))
        missing = set(tags) - {one.tag for one in self._of(key, name)}
        if missing:
            raise ApiError(404, f"template {name} has no tag {', '.join(sorted(missing))}")
        await self._registry.templates.unassign(name, tags, key)
        self._registry.database.audit(key.name, "untag", "", f"{name} {' '.join(tags)}")
        return Response(status_code=204)

    async def _list(self, request: Request, key: Key) -> Response:
        name, _ = split_tag(request.path_params["id"])
        return JSONResponse(
            [
                {"tag": one.tag, "buildID": one.build, "createdAt": time_text(one.assigned_at)}
                for one in self._of(key, name)
            ]
        )
