"""What a sandbox's record says of its secrets and of its rules for HTTP: everything but values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from voidbox.errors import ConfigError
from voidbox.named_tuple import NamedTuple
from voidbox.secrets.authority import check_extra
from voidbox.secrets.guard import check_open, places_of
from voidbox.secrets.guest_paths import BUNDLE_PATH, CERTIFICATE_PATH
from voidbox.secrets.spec import Kept, Place, Secret, resolve

# Programs with a trust store of their own are told by variables: these want all certificates,
_BUNDLE_VARIABLES = (
    *("SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "GIT_SSL_CAINFO"),
    *("AWS_CA_BUNDLE", "CARGO_HTTP_CAINFO"),
)
# and these add one to what they have.
_ADDED_VARIABLES = ("NODE_EXTRA_CA_CERTS", "DENO_CERT")


class Guarded(NamedTuple):
    """See above.

    Attributes:
        http: rules, see http_rules.
    """

    secrets: tuple[Kept, ...] = ()
    http: tuple[str, ...] = ()

    def places(self) -> list[Place]:
        """Return the hosts whose connections are looked at."""
        return places_of(self.secrets, self.http)

    def envs(self) -> dict[str, str]:
        """Return the variables that the guest's commands have."""
        return {
            **dict.fromkeys(_BUNDLE_VARIABLES, BUNDLE_PATH),
            **dict.fromkeys(_ADDED_VARIABLES, CERTIFICATE_PATH),
            **{secret.name: secret.placeholder for secret in self.secrets},
        }

    def to_json(self) -> dict[str, object]:
        """Return it as JSON has it."""
        secrets = [secret.to_json() for secret in self.secrets]
        return {"secrets": secrets, "http": list(self.http)}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Guarded:
        """Return what to_json() described.

        Raises:
            ConfigError: it is nothing of the kind.
        """
        try:
            secrets = tuple(map(Kept.from_json, values["secrets"]))
            return Guarded(secrets, tuple(map(str, values["http"])))
        except (KeyError, TypeError) as error:
            raise ConfigError(f"the record's secrets make no sense: {error!r}") from error


def prepare(
    secrets: Iterable[Secret], http: Sequence[str], net: Mapping[str, Any] | None
) -> tuple[Guarded | None, dict[str, str]]:
    """Return what a record is to say, None for nothing, and the values by name.

    Args:
        net: the record's network.
    Raises:
        ConfigError: one of them cannot be, a host is closed, or what is needed is not installed.
    """
    if isinstance(http, str):
        raise ConfigError(f"http={http!r}: a list of rules, such as [{http!r}]")
    kept, values = resolve(secrets)
    guarded = Guarded(tuple(kept), tuple(http))
    if guarded == Guarded():
        return None, {}
    check_open(guarded.places(), net)
    check_extra()
    return guarded, values
