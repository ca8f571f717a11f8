"""What becomes of one request: refused, or passed on with the secrets that its host may have."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from voidbox.named_tuple import NamedTuple
from voidbox.secrets.audit import AuditLog, Entry
from voidbox.secrets.http_rules import HttpRules, Refused
from voidbox.secrets.masking import Finder, Masker
from voidbox.secrets.put_in import Headers, found_in, into_body, into_headers, into_query
from voidbox.secrets.spec import Place
from voidbox.secrets.vault import Held, Vault

BODY_BYTES_MAX = 4 << 20  # of a body into which a secret may have to be put


class Rules(NamedTuple):
    """What holds for a sandbox; shared by its connections.

    Attributes:
        say: takes a line for the sandbox's log.
    """

    vault: Vault
    http: HttpRules
    audit: AuditLog
    say: Callable[[str], None]


class Passed:
    """A request that goes on.

    Attributes:
        target, headers: as they go on.
        needs_body: whether the whole of its body has to be there before it can go on.
    """

    def __init__(
        self, rules: Rules, entry: Entry, place: Place | None, rule: int | None, held: list[Held]
    ) -> None:
        self.entry = entry
        self.target = b""
        self.headers: Headers = []
        self._rules, self._rule = rules, rule
        self._in_body = [one for one in held if one.in_body]
        self.needs_body = bool(self._in_body)
        self._masker = Masker(rules.vault.masks(place) if held else ())
        known = {one.name for one in held}
        others = [one for one in rules.vault.all() if one.name not in known]
        self._names = {one.placeholder: one.name for one in others}
        self._finder = Finder(list(self._names))

    def pause_s(self, size: int) -> float:
        """Note that bytes have passed; return for how long no more should."""
        return self._rules.http.count(self._rule, size, time.monotonic())

    def look_at_body(self, data: bytes) -> None:
        """See whether a body carries a placeholder to whom it is not for."""
        self.entry.sent += len(data)
        for text in self._finder.feed(data):
            self._note_leak(self._names[text])

    def _note_leak(self, name: str) -> None:
        self.entry.leaks.append(name)
        self._rules.say(f"secret {name}: its placeholder was on the way to {self.entry.host}")

    def fill_body(self, body: bytes, content_type: bytes) -> bytes:
        """Return a whole body with the secrets that belong in it."""
        filled = into_body(body, content_type, self._in_body)
        if filled != body:
            self.entry.secrets += [
                one.name
                for one in self._in_body
                if one.placeholder in body and one.name not in self.entry.secrets
            ]
        return filled

    def response_headers(self, headers: Sequence[tuple[bytes, bytes]]) -> Headers:
        """Return a response's headers without secrets."""
        return [(name, self._masker.whole(value)) for name, value in headers]

    def response_body(self, data: bytes) -> bytes:
        """Return what may go to the guest of a response's body."""
        self.entry.received += len(data)
        return self._masker.feed(data)

    def response_end(self) -> bytes:
        """Return what was held back of a response's body."""
        return self._masker.end()

    def finish(self, error: str = "") -> None:
        """Write down that it is over."""
        self.entry.error = error
        self._rules.audit.add(self.entry)


class Judge:
    """Judges the requests of one connection. Thread: the connection's.

    Args:
        place: whom the connection's TLS is for; None for one without TLS.
        broken: why that host cannot be talked to; "" if it can.
    """

    def __init__(self, rules: Rules, place: Place | None, broken: str = "") -> None:
        self._rules = rules
        self._place = place
        self._broken = broken

    @property
    def is_secure(self) -> bool:
        """Whether the connection is TLS on both sides."""
        return self._place is not None

    def request(
        self, method: bytes, target: bytes, authorities: Sequence[bytes], headers: Headers
    ) -> Passed | Refused:
        """Judge a request; a refused one is written down.

        Args:
            authorities: what says whom it is for: Host, :authority.
            headers: without those that are of the connection alone.
        """
        host = self._place.host if self._place is not None else _host_of(authorities)
        entry = Entry(host, method, target.partition(b"?")[0])
        found = self._judge(entry, method, target, authorities, headers)
        if isinstance(found, Refused):
            entry.status, entry.refused = found.status, found.why
            self._rules.audit.add(entry)
            self._rules.say(f"refused {method[:32].decode('latin-1')} to {host}: {found.why}")
        return found

    def _judge(
        self,
        entry: Entry,
        method: bytes,
        target: bytes,
        authorities: Sequence[bytes],
        headers: Headers,
    ) -> Passed | Refused:
        if self._broken:
            return Refused(502, self._broken)
        if not self._is_for_place(authorities):
            return Refused(421, f"this connection is for {entry.host}, and the request is not")
        if method in (b"CONNECT", b"TRACE"):
            return Refused(403, f"{method.decode()} does not pass")
        origin = self._origin_form(method, target, authorities[0])
        if origin is None:
            return Refused(400, f"its target is not one of {entry.host}'s")
        path = entry.path = origin.partition(b"?")[0]
        rule = self._rules.http.admit(entry.host, method, path, time.monotonic())
        if isinstance(rule, Refused):
            return rule
        held = self._rules.vault.at(self._place)
        passed = Passed(self._rules, entry, self._place, rule, held)
        for name in sorted(found_in(origin, headers, self._rules.vault.all())):
            if any(one.name == name for one in held):
                entry.secrets.append(name)
            else:
                passed._note_leak(name)
        if held:
            # Of what is compressed nobody could see whether it tells the secret.
            headers = [pair for pair in headers if pair[0].lower() != b"accept-encoding"]
            headers.append((b"accept-encoding", b"identity"))
        passed.target = into_query(origin, held)
        passed.headers = into_headers(headers, held)
        return passed

    def _is_for_place(self, authorities: Sequence[bytes]) -> bool:
        if self._place is None:
            return len(set(authorities)) == 1
        found = {_authority(text, self._place.port) for text in authorities}
        return found == {(self._place.host.encode(), self._place.port)}

    def _origin_form(self, method: bytes, target: bytes, authority: bytes) -> bytes | None:
        """Return a target without scheme and host (RFC 9112 §3.2); None for somebody else's."""
        if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
            return target
        scheme, separator, rest = target.partition(b"://")
        if not separator or scheme.lower() != (b"https" if self.is_secure else b"http"):
            return None
        end = min(rest.find(sign) % (len(rest) + 1) for sign in (b"/", b"?", b"#"))
        port = self._place.port if self._place is not None else 80
        if _authority(rest[:end], port) != _authority(authority, port):
            return None
        rest = rest[end:]
        return rest if rest.startswith(b"/") else b"/" + rest


def _authority(text: bytes, port: int) -> tuple[bytes, int]:
    """Return the host, folded, and the port of "HOST[:PORT]"; port -1 if it is none."""
    host, colon, digits = text.partition(b":")
    if colon:
        port = int(digits) if digits.isdigit() and len(digits) <= 5 else -1
    return host.lower().removesuffix(b"."), port


def _host_of(authorities: Sequence[bytes]) -> str:
    host, _ = _authority(authorities[0] if authorities else b"", 80)
    return host[:255].decode("latin-1")
