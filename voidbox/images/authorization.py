"""How a registry wants to be asked: nothing, a password, or a token from somebody it names.

The CNCF distribution project's "Token Authentication Specification", and RFC 7235 for the header
that starts it.
"""

from __future__ import annotations

import json
import re
from urllib.parse import urlencode

from voidbox.images.credentials import Credentials, find_credentials
from voidbox.images.transport import RegistryError, Transport, parse_url
from voidbox.named_tuple import NamedTuple

_TOKEN_BYTES_MAX = 256 << 10
_CHALLENGE_CHARACTERS_MAX = 8192
_PARAMETER = re.compile(r'\s*,?\s*([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]+))')
_SCHEME = re.compile(r"\s*,?\s*([A-Za-z]+)(?=\s|$|,)")
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")  # b64token of RFC 6750


class Challenge(NamedTuple):
    """One way that a server offers: "bearer" with its parameters, say."""

    scheme: str
    parameters: dict[str, str]


def parse_challenges(header: str) -> list[Challenge]:
    """Read a WWW-Authenticate header. What makes no sense ends it."""
    header = header[:_CHALLENGE_CHARACTERS_MAX]
    found: list[Challenge] = []
    at = 0
    while True:
        parameter = _PARAMETER.match(header, at)
        if parameter is not None and found:
            value = parameter[3] if parameter[2] is None else re.sub(r"\\(.)", r"\1", parameter[2])
            found[-1].parameters.setdefault(parameter[1].lower(), value)
            at = parameter.end()
            continue
        scheme = _SCHEME.match(header, at)
        if scheme is None:
            return found
        found.append(Challenge(scheme[1].lower(), {}))
        at = scheme.end()


class Authorizer:
    """Gets what a registry wants to see. Thread: any.

    Args:
        registry: whom the credentials are for.
        repository: that is to be pulled, such as library/python.
        credentials: who asks; what the user has written down by default.
    """

    def __init__(
        self,
        transport: Transport,
        registry: str,
        repository: str,
        credentials: Credentials | None = None,
    ) -> None:
        self._transport = transport
        self._registry = registry
        self._repository = repository
        self._credentials = credentials

    def answer(self, header: str) -> str:
        """Return the value of the Authorization header that a challenge asks for.

        Raises:
            RegistryError: there is none, for the reason that the message says.
            ConfigError: the user's credentials cannot be read.
        """
        offers = {challenge.scheme: challenge.parameters for challenge in parse_challenges(header)}
        credentials = self._credentials or find_credentials(self._registry, self._repository)
        if "bearer" in offers:
            return f"Bearer {self._token(offers['bearer'], credentials)}"
        if "basic" not in offers:
            raise RegistryError(f"{self._registry} wants an authentication that is not known here")
        if credentials is None:
            raise RegistryError(self._advice("wants a user and a password"))
        return credentials.basic

    def _token(self, parameters: dict[str, str], credentials: Credentials | None) -> str:
        realm = parse_url(parameters.get("realm", ""))
        if realm.is_local and not parse_url(f"https://{self._registry}").is_local:
            raise RegistryError(f"{self._registry} sends us to this machine for a token: refused")
        query = {"scope": f"repository:{self._repository}:pull"}
        if "service" in parameters:
            query["service"] = parameters["service"]
        glue = "&" if "?" in realm.text else "?"
        url = f"{realm.text}{glue}{urlencode(query)}"
        with self._transport.get(
            url, authorization=credentials.basic if credentials else ""
        ) as answer:
            if answer.status in (400, 401, 403):
                said = "refuses your user and password" if credentials else "wants a login"
                raise RegistryError(self._advice(said))
            if answer.status != 200:
                raise RegistryError(f"{answer.host} gives no token: status {answer.status}")
            content = answer.read(_TOKEN_BYTES_MAX, "token")
        try:
            document = json.loads(content)
            token = document.get("token") or document.get("access_token")
        except (ValueError, RecursionError, AttributeError):
            token = None
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise RegistryError(f"{realm.host} gives no token that can be used")
        return token

    def _advice(self, said: str) -> str:
        return f"{self._registry} {said}: docker login {self._registry}, or podman login, tells it"
