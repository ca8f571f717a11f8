"""uvicorn, set up: what listens, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import sys

import uvicorn

from voidbox.errors import ConfigError
from voidbox.serve.app import make_app
from voidbox.serve.config import ServeConfig
from voidbox.serve.registry import Registry
from voidbox.serve.telemetry import Telemetry

_HEADERS_BYTES_MAX = 64 << 10
_GRACE_S = 5  # for requests that are under way when the server ends
_BACKLOG = 2048
# What uvicorn says when we break an answer off on purpose: the sandbox is gone.
_ON_PURPOSE = "ASGI callable returned without completing response."


class _Quiet(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is to be logged."""
        return record.getMessage() != _ON_PURPOSE


class Server(uvicorn.Server):
    """A server that says where it listens, once it does."""

    def __init__(self, config: uvicorn.Config, scheme: str) -> None:
        super().__init__(config)
        self._scheme = scheme

    async def startup(self, sockets: object = None) -> None:
        """Listen."""
        await super().startup(sockets)  # type: ignore[arg-type]
        for server in self.servers if self.started else ():
            for sock in server.sockets:
                host, port = sock.getsockname()[:2]
                shown = f"[{host}]" if ":" in host else host
                print(f"voidbox serve: {self._scheme}://{shown}:{port}", flush=True)


def _telemetry(config: ServeConfig) -> Telemetry:
    if config.otlp is None:
        return Telemetry()
    if not config.otlp.startswith(("http://", "https://")):
        raise ConfigError(f"--otlp {config.otlp}: give the URL of a collector")
    try:
        from voidbox.serve.otlp import Otlp
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        raise ConfigError(
            f"the package {error.name} is missing: pip install 'voidbox-kvm[otel]'"
        ) from error
    return Otlp(config.otlp)


def serve(config: ServeConfig) -> int:
    """Serve until a signal ends it; return the exit status.

    Raises:
        ConfigError: the settings make no sense, or the address cannot be listened on.
    """
    config.check()
    registry = Registry(config, _telemetry(config))
    if registry.waiting is not None:
        asyncio.run(registry.waiting.check())
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    logging.getLogger("uvicorn.error").addFilter(_Quiet())
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    settings = uvicorn.Config(
        make_app(registry),
        host=config.host,
        port=config.port,
        http="h11",
        ws="wsproto",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        lifespan="on",
        backlog=_BACKLOG,
        h11_max_incomplete_event_size=_HEADERS_BYTES_MAX,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=_GRACE_S,
        ssl_certfile=config.tls_cert,
        ssl_keyfile=config.tls_key,
    )
    server = Server(settings, "https" if config.tls_cert else "http")
    try:
        server.run()
    except SystemExit:  # uvicorn's, with the reason in the log
        raise ConfigError(f"cannot listen on {config.host}:{config.port}: see above") from None
    return 0 if server.started else 125
