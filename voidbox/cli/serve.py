"""`voidbox serve`: sandboxes over HTTP, for E2B's SDKs; and its keys."""

from __future__ import annotations

import argparse
import time

from voidbox.cli import exit_status
from voidbox.cli.parser import make_parser, parse_duration, parse_number
from voidbox.errors import ConfigError

_LISTEN = "127.0.0.1:3000"
_MAX, _LIFE, _CACHE = "100", "24h", "10G"
_PACKAGES = ("starlette", "uvicorn", "wsproto", "h11", "anyio")
_EPILOG = """\
Programs that use E2B's SDKs work with it unchanged, by E2B_API_KEY, and E2B_API_URL and
E2B_SANDBOX_URL, both http://127.0.0.1:3000. A template is the name of an image (voidbox image ls)
or of a snapshot; "base" is voidbox's own image, unless there is another one of this name. It needs
packages: pip install 'voidbox-kvm[serve]'. docs/serve.md tells more.

examples:
  voidbox serve key add laptop
  voidbox serve key ls
  voidbox serve key rm laptop
  voidbox serve
  voidbox serve --listen 127.0.0.1:8000 --memory 1G --template base=python:3.12
"""


def make_options() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = make_parser("serve", "Offer sandboxes over HTTP, as E2B's SDKs want them.", _EPILOG)
    parser.add_argument("what", nargs="*", metavar="key ACTION …", help="see below")
    parser.add_argument("--listen", metavar="HOST:PORT", default=_LISTEN, help=_LISTEN)
    parser.add_argument("--domain", metavar="D", help="ports are also at https://PORT-ID.D")
    parser.add_argument("--tls-cert", metavar="FILE", help="a certificate in PEM, with its chain")
    parser.add_argument("--tls-key", metavar="FILE", help="its key")
    parser.add_argument(
        "--insecure", action="store_true", help="plain HTTP on addresses other than loopback"
    )
    parser.add_argument(
        "--max-sandboxes", metavar="N", default=_MAX, help=f"that run at a time; {_MAX}"
    )
    parser.add_argument(
        "--pool", metavar="N", help="so many of the template base wait for clients; none"
    )
    parser.add_argument(
        "--max-timeout", metavar="TIME", default=_LIFE, help=f"that clients may ask for; {_LIFE}"
    )
    parser.add_argument(
        "--template",
        action="append",
        default=[],
        metavar="NAME=IMAGE",
        help="what a template's name stands for; repeatable",
    )
    parser.add_argument(
        "--build-cache",
        metavar="SIZE",
        default=_CACHE,
        help=f"of the disk for what steps of template builds leave; 0: none; {_CACHE}",
    )
    parser.add_argument("--memory", metavar="SIZE", help="of each sandbox: 512M (default), 4G")
    parser.add_argument("--cpus", metavar="N", default="1", help="of each sandbox; 1")
    parser.add_argument("--jail", metavar="LEVEL", help="default, strict or off; see run --help")
    parser.add_argument(
        "--otlp", metavar="URL", help="tell a collector of OpenTelemetry's, http://127.0.0.1:4318"
    )
    parser.add_argument("--scope", metavar="S", default="run", help="of a new key; run")
    return parser


def main(argv: list[str]) -> int:
    """Serve until a signal comes, or see to keys; returns the exit status."""
    options = make_options().parse_args(argv)
    if options.what:
        return _keys(options.what, options.scope)
    try:
        from voidbox.serve.config import ServeConfig, parse_listen
        from voidbox.serve.server import serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _PACKAGES:
            raise
        raise ConfigError(
            f"the package {error.name} is missing: pip install 'voidbox-kvm[serve]'"
        ) from error
    host, port = parse_listen(options.listen)
    given = {"memory": options.memory, "jail": options.jail}
    return serve(
        ServeConfig(
            host=host,
            port=port,
            domain=options.domain,
            tls_cert=options.tls_cert,
            tls_key=options.tls_key,
            is_insecure=options.insecure,
            sandboxes_max=parse_number(options.max_sandboxes, "--max-sandboxes"),
            waiting=parse_number(options.pool, "--pool") if options.pool else 0,
            life_s_max=parse_duration(options.max_timeout, "--max-timeout"),
            build_cache_bytes=_cache_bytes(options.build_cache),
            otlp=options.otlp,
            templates=dict(_template(text) for text in options.template),
            options={
                **{name: value for name, value in given.items() if value is not None},
                "cpus": parse_number(options.cpus, "--cpus"),
            },
        )
    )


def _template(text: str) -> tuple[str, str]:
    name, equals, image = text.partition("=")
    if not name or not equals or not image:
        raise ConfigError(f"--template {text}: write NAME=IMAGE")
    return name, image


def _cache_bytes(text: str) -> int:
    from voidbox.vmm.config import parse_memory

    try:
        return parse_memory(text)
    except ConfigError as error:
        raise ConfigError(f"--build-cache {text}: {error}") from None


def _keys(words: list[str], scope: str) -> int:
    from voidbox.sandbox.state.store import Store
    from voidbox.serve.database import Database
    from voidbox.serve.keys import Keys

    keys = Keys(Database(Store().folder))
    match words:
        case ["key", "add", name]:
            _, secret = keys.add(name, scope.split(","))
            print(secret)  # the only time
        case ["key", "ls"]:
            for key in keys.list():
                used = "never used" if key.last_used_at is None else _day(key.last_used_at)
                print(f"{key.name:20} {','.join(key.scopes):16} {_day(key.created_at)} {used}")
        case ["key", "rm", name]:
            keys.remove(name)
        case _:
            raise ConfigError("serve key: add NAME, ls, or rm NAME")
    return exit_status.OK


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
