"""What a build is asked for: a base, steps, and what is to run at the end."""

from __future__ import annotations

import json
import posixpath
import re
from typing import Any

from voidbox.images.credentials import Credentials
from voidbox.named_tuple import NamedTuple
from voidbox.serve import bodies
from voidbox.serve.bodies import Fields
from voidbox.serve.control.wishes import refuse_unknown
from voidbox.serve.errors import bad, not_supported
from voidbox.serve.templates import BASE

STEPS_MAX = 500
HASH = re.compile(r"[0-9A-Za-z_-]{1,128}")
_KNOWN = frozenset(
    ("fromImage", "fromTemplate", "fromImageRegistry", "steps", "startCmd", "readyCmd", "force")
)
_STEP_KNOWN = frozenset(("type", "args", "filesHash", "force", "forceUpload"))
# What SDKs call the images of E2B's cloud that have templates of their own here.
_CLOUDS = {"e2bdev/base": BASE, "e2bdev/code-interpreter": "code-interpreter-v1"}
_GCP_USER = "_json_key"  # who a service account's JSON is the password of
_PASSWORD_CHARACTERS_MAX = 16 << 10
_ARGUMENTS = {"RUN": (1, 2), "COPY": (2, 4), "WORKDIR": (1, 1), "USER": (1, 1), "ENV": (2, 1000)}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MODE = re.compile(r"[0-7]{1,5}")


class Step(NamedTuple):
    """One of RUN, COPY, ENV, WORKDIR, USER.

    Attributes:
        args: RUN: command, user; COPY: source, target, user, mode; ENV: names and values in turn.
        files_hash: which archive COPY takes; "" for the others.
        is_forced: it is run, whatever is known of an earlier time.
    """

    kind: str
    args: tuple[str, ...]
    files_hash: str = ""
    is_forced: bool = False


class Plan(NamedTuple):
    """A build.

    Attributes:
        image: of a registry or this machine; "" for a template.
        template: whose name goes on from; "" for an image.
        start, ready: commands; "" for none.
        credentials: who may pull the image; None: this host's user.
        is_forced: no step's result of an earlier time is taken.
    """

    image: str
    template: str
    steps: tuple[Step, ...]
    start: str
    ready: str
    credentials: Credentials | None = None
    is_forced: bool = False

    def last(self, kind: str) -> str:
        """Return the argument of the last step of a kind; "" for none."""
        found = [step.args[0] for step in self.steps if step.kind == kind]
        return found[-1] if found else ""

    def workdir(self) -> str:
        """Return where the template's commands begin: all WORKDIRs, one in the other."""
        path = ""
        for step in self.steps:
            if step.kind == "WORKDIR":
                path = posixpath.join(path, step.args[0])
        return path

    def envs(self) -> dict[str, str]:
        """Return the variables of all ENVs."""
        found: dict[str, str] = {}
        for step in self.steps:
            if step.kind == "ENV":
                found.update(zip(step.args[::2], step.args[1::2], strict=True))
        return found


def read(fields: Fields) -> Plan:
    """Return what a body asks for.

    Raises:
        ApiError: it makes no sense, or cannot be had.
    """
    refuse_unknown(fields, _KNOWN)
    credentials = _credentials(bodies.fields_of(fields, "fromImageRegistry"))
    image = bodies.text(fields, "fromImage", "")
    template = bodies.text(fields, "fromTemplate", "")
    if bool(image) == bool(template):
        raise bad("give fromImage or fromTemplate")
    if credentials is not None and not image:
        raise bad("fromImageRegistry is for an image: give fromImage")
    known = _CLOUDS.get(image.removesuffix(":latest"))
    if known is not None and credentials is None:
        image, template = "", known
    steps = [] if fields.get("steps") is None else fields["steps"]
    if not isinstance(steps, list) or len(steps) > STEPS_MAX:
        raise bad(f"steps: give a list of at most {STEPS_MAX}")
    return Plan(
        image,
        template,
        tuple(_step(step) for step in steps),
        bodies.text(fields, "startCmd", ""),
        bodies.text(fields, "readyCmd", ""),
        credentials,
        bodies.flag(fields, "force"),
    )


def _credentials(fields: Fields) -> Credentials | None:
    """Return who may pull, as the SDKs' from_image() and from_gcp_registry() say it."""
    if not fields:
        return None
    kind = bodies.text(fields, "type", "")
    if kind == "registry":
        refuse_unknown(fields, frozenset(("type", "username", "password")))
        found = Credentials(bodies.text(fields, "username"), bodies.text(fields, "password"))
    elif kind == "gcp":
        refuse_unknown(fields, frozenset(("type", "serviceAccountJson")))
        account = bodies.parse_fields(bodies.text(fields, "serviceAccountJson").encode())
        found = Credentials(_GCP_USER, json.dumps(account) if account else "")
    else:
        raise not_supported(
            f"fromImageRegistry of the type {kind[:40]!r}: from_image() with a user and a password "
            "does it, which the registry's own tools give"
        )
    if not found.user or not found.password or len(found.password) > _PASSWORD_CHARACTERS_MAX:
        raise bad("fromImageRegistry: give a user and a password")
    if ":" in found.user or not (found.user + found.password).isprintable():
        raise bad("fromImageRegistry: a user has no ':', and a password is one line")  # RFC 7617
    return found


def _step(fields: Any) -> Step:
    if not isinstance(fields, dict):
        raise bad("steps: each is an object")
    refuse_unknown(fields, _STEP_KNOWN)
    kind, args = bodies.text(fields, "type").upper(), bodies.texts(fields, "args")
    if kind not in _ARGUMENTS:
        raise not_supported(f"the step {kind[:40]!r}")
    least, most = _ARGUMENTS[kind]
    if not least <= len(args) <= most or not args[0] or any("\0" in text for text in args):
        raise bad(f"{kind}: these are no arguments for it: {str(args)[:200]}")
    files_hash, is_forced = bodies.text(fields, "filesHash", ""), bodies.flag(fields, "force")
    step = Step(kind, tuple(args), files_hash, is_forced)
    if kind == "ENV":
        names = args[::2]
        if len(args) % 2 or not all(map(_VARIABLE.fullmatch, names)):
            raise bad("ENV: give names and values in turn")
    if kind == "COPY":
        _check_copy(step)
    return step


def _check_copy(step: Step) -> None:
    source = posixpath.normpath(step.args[0])
    if source.startswith(("/", "../")) or source == "..":
        raise bad(f"COPY {step.args[0]!r}: a source is in the build's folder")
    if not HASH.fullmatch(step.files_hash):
        raise bad("COPY: filesHash is missing")
    if len(step.args) > 3 and step.args[3] and not _MODE.fullmatch(step.args[3]):
        raise bad(f"COPY: {step.args[3]!r} is no mode")
