"""An image of Debian packages, into the store."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from voidbox.images import progress
from voidbox.images.assemble import add_tree
from voidbox.images.config import DEFAULT_ENV, ImageConfig
from voidbox.images.config_change import ConfigChange
from voidbox.images.progress import INSTALL, ImageProgress, OnProgress
from voidbox.images.record import ImageRecord
from voidbox.images.reference import parse_new_name
from voidbox.images.store import Image, ImageStore
from voidbox.images.tree import Tree
from voidbox.setup.archive import ArchiveOptions, open_archive
from voidbox.setup.debian_root import Runner, build_debian
from voidbox.setup.new_user import add_user, check_user_name
from voidbox.setup.sources import DEFAULT_SUITE
from voidbox.storage import durable


def build(
    name: str,
    packages: Sequence[str] = (),
    *,
    debian: str = DEFAULT_SUITE,
    mirror: str | None = None,
    env: Mapping[str, str] | None = None,
    workdir: str | None = None,
    user: str | None = None,
    new_user: str | None = None,
    entrypoint: Sequence[str] | None = None,
    cmd: Sequence[str] | None = None,
    store: ImageStore | None = None,
    run: Runner | None = None,
    archive: ArchiveOptions | None = None,
    progress: OnProgress = progress.ignore,
) -> Image:
    """Have the store hold a minimal Debian with some packages. Thread: the caller's.

    Args:
        name: what it is to be called.
        packages: beside the essential and required ones and apt.
        debian: a release's code name.
        mirror: an address that packages come from; see ArchiveOptions.
        env: variables for all commands; so `workdir`, `user`, `entrypoint` and `cmd`.
        new_user: add this user, with a home, and sudo's rights if there is sudo.
        store: the user's own if None.
        run: what runs the packages' scripts; a guest if None.
        archive: more of what tells where packages come from; in place of `debian` and `mirror`.
        progress: called with each step, from several threads.

    Raises:
        ConfigError: a name is none.
        SetupError: the archive cannot give it, or the installation failed: with what it said.
        VoidboxError: there is no guest to run the packages' scripts.
        HostError: the disk is full, say; nothing has changed.
    """
    reference = parse_new_name(name)
    if new_user is not None:
        check_user_name(new_user)
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

    if run is None:
        from voidbox.setup.guest_runner import run_in_guest  # sandboxes take long to import

        run = run_in_guest
    store = store or ImageStore()
    options = archive or ArchiveOptions(suite=debian, mirror=mirror)
    with (
        open_archive(options, progress) as opened,
        store.draft() as draft,
        Tree(draft.spool) as tree,
    ):
        try:
            build_debian(tree, opened, packages, run, work=draft.spool, on_line=tell)
            if new_user is not None:
                add_user(tree, new_user)
        except OSError as error:
            raise durable.failure("build in", draft.path, error) from error
        return add_tree(store, draft, reference, record, tree, progress)
