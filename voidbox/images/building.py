"""An image of Debian packages, into the store."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence

from voidbox.errors import ConfigError
from voidbox.images import progress
from voidbox.images.assemble import add_tree
from voidbox.images.config import DEFAULT_ENV, ImageConfig
from voidbox.images.config_change import ConfigChange
from voidbox.images.debian import DEFAULT_SUITE, build_debian
from voidbox.images.progress import INSTALL, ImageProgress, OnProgress
from voidbox.images.record import ImageRecord
from voidbox.images.reference import parse_new_name
from voidbox.images.store import Image, ImageStore
from voidbox.images.tree import Tree
from voidbox.storage import durable

_MIRROR = re.compile(r"https?://[^\s\x00-\x1f]+")


def build(
    name: str,
    packages: Sequence[str] = (),
    *,
    debian: str = DEFAULT_SUITE,
    mirror: str | None = None,
    env: Mapping[str, str] | None = None,
    workdir: str | None = None,
    user: str | None = None,
    entrypoint: Sequence[str] | None = None,
    cmd: Sequence[str] | None = None,
    store: ImageStore | None = None,
    progress: OnProgress = progress.ignore,
) -> Image:
    """Have the store hold a minimal Debian with some packages. Thread: the caller's.

    Args:
        name: what it is to be called.
        packages: beside the essential ones and apt.
        debian: a release's code name.
        mirror: an address that packages come from; the host's own sources if None.
        env: variables for all commands; so `workdir`, `user`, `entrypoint` and `cmd`.
        store: the user's own if None.
        progress: called with each step, from several threads.

    Raises:
        ConfigError: a name is none.
        ImageError: there is no program to do it, or it failed: with what it said.
        HostError: the disk is full, say; nothing has changed.
    """
    reference = parse_new_name(name)
    if mirror is not None and not _MIRROR.fullmatch(mirror):
        raise ConfigError(f"the mirror {mirror!r} is no address: write it as http://HOST/debian")
    change = ConfigChange(env, workdir, user, entrypoint, cmd)
    record = ImageRecord(
        id="",
        config=change.apply(ImageConfig(env=DEFAULT_ENV, cmd=("bash",))),
        size_bytes=0,
        created_at=None,
        added_at=time.time(),
        source=f"built from Debian {debian}: {' '.join(packages) or 'no further packages'}",
    )

    def tell(line: str) -> None:
        progress(ImageProgress(INSTALL, line, 0, 0))

    store = store or ImageStore()
    with store.draft() as draft, Tree(draft.spool) as tree:
        try:
            build_debian(
                tree, packages, suite=debian,
                sources=None if mirror is None else [f"deb {mirror} {debian} main"],
                on_line=tell,
            )  # fmt: skip
        except OSError as error:
            raise durable.failure("build in", draft.path, error) from error
        return add_tree(store, draft, reference, record, tree, progress)
