"""Port 49983 of a sandbox: everything that envd serves, by its path."""

from __future__ import annotations

import time

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from voidbox.agent.call import RequestFailed
from voidbox.errors import AgentError, VoidboxError
from voidbox.serve.bodies import parse_fields, read_bytes
from voidbox.serve.envd import access, files, filesystem, process, wire
from voidbox.serve.errors import ApiError, ConnectError, SandboxGone
from voidbox.serve.served import Served, is_lost

PORT = 49983
_PROCESS, _FILESYSTEM = "process.Process", "filesystem.Filesystem"
_STREAMS = {_PROCESS: process.STREAMS, _FILESYSTEM: filesystem.STREAMS}


async def answer(served: Served, request: Request) -> Response:
    """Answer a request to a sandbox that runs.

    Raises:
        ApiError: it is refused.
        SandboxGone: the sandbox has ended meanwhile.
    """
    service, _, method = request.url.path.strip("/").partition("/")
    try:
        if service in _STREAMS:
            access.check_token(served, request)
            return await _connect_call(served, request, service, method)
        return await _plain(served, request, service)
    except ConnectError as error:
        status = {"unauthenticated": 401}.get(error.code, 400)
        raise ApiError(status, str(error)) from error
    except RequestFailed as error:
        raise ApiError(400, str(error)) from error
    except AgentError as error:
        if is_lost(served, error):
            raise SandboxGone from error
        raise ApiError(503, str(error)) from error


async def _plain(served: Served, request: Request, path: str) -> Response:
    method = request.method
    if path == "health" and method in ("GET", "HEAD"):
        return Response(status_code=204)
    if path == "files" and method in ("GET", "HEAD", "POST"):
        access.check_files(served, request)
        transfer = files.upload if method == "POST" else files.download
        return await transfer(served, request)
    access.check_token(served, request)
    if path == "metrics" and method == "GET":
        return await _metrics(served)
    if path == "envs" and method == "GET":
        return JSONResponse(served.session.envs)
    raise ApiError(404, f"{method} /{path[:80]}: envd serves no such thing here")


async def _metrics(served: Served) -> Response:
    sample = await served.measure()
    if sample is None:
        raise ApiError(503, "the guest's agent does not answer")
    return JSONResponse(
        {
            "ts": int(time.time()),
            "cpu_count": sample.cpus,
            "cpu_used_pct": sample.cpu_percent,
            "mem_total": sample.memory_total,
            "mem_used": sample.memory_used,
            "mem_cache": sample.memory_cache,
            "disk_used": sample.disk_used,
            "disk_total": sample.disk_total,
        }
    )


async def _connect_call(served: Served, request: Request, service: str, method: str) -> Response:
    if request.method != "POST":
        raise ApiError(405, "Connect calls are POST", {"Allow": "POST"})
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    stream = _STREAMS[service].get(method)
    try:
        if stream is not None:
            _check_type(kind, wire.STREAM_TYPE)
            return await stream(served, request)
        _check_type(kind, "application/json")
        return await _call(served, request, service, method)
    except (ConnectError, VoidboxError, ApiError) as error:
        if is_lost(served, error):
            raise SandboxGone from error
        if isinstance(error, ApiError) and error.status not in (400, 413):
            raise
        failure = wire.failure_of(error)
        if stream is not None:
            return wire.StreamResponse(wire.failed_stream(failure))
        return wire.error_answer(failure)


def _check_type(given: str, wanted: str) -> None:
    if given != wanted:
        raise ApiError(415, f"send {wanted}: of Connect's codecs this server has JSON alone")


async def _call(served: Served, request: Request, service: str, method: str) -> Response:
    fields = parse_fields(await read_bytes(request, wire.MESSAGE_BYTES_MAX))
    if service == _PROCESS and method in process.CALLS:
        return JSONResponse(await process.CALLS[method](served, fields))
    if service == _FILESYSTEM and method in filesystem.CALLS:
        user = await access.acting_user(served, request)
        return JSONResponse(await filesystem.CALLS[method](served, user, fields))
    raise ConnectError("unimplemented", f"{service}/{method[:80]}")
