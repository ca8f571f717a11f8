"""All that `voidbox setup` does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from voidbox.images.progress import OnProgress, ignore
from voidbox.setup.archive import ArchiveOptions, open_archive
from voidbox.setup.guest_image import build_guest_image
from voidbox.setup.host_copy import point
from voidbox.setup.kernel import fetch_kernel
from voidbox.setup.packages import check_name


class Made(NamedTuple):
    """Where it is.

    Attributes:
        kernel: the path of its vmlinuz.
        image: the path of the image's folder.
    """

    kernel: str
    image: str


def set_up(
    options: ArchiveOptions,
    flavour: str = "cloud",
    packages: Sequence[str] = (),
    report: OnProgress = ignore,
) -> Made:
    """Have the cache hold a kernel and its guest image, for `run` to take from now on.

    Args:
        flavour: "cloud" or "generic".
        packages: more of Debian's in the image. Their scripts are not run.
    Raises:
        SetupError: the archive cannot give it; says what to do.
        HostError: the cache cannot be written.
    """
    for name in packages:
        check_name(name)
    with open_archive(options, report) as archive:
        kernel = fetch_kernel(archive, flavour)
        image = build_guest_image(archive, kernel, packages, is_current=True, report=report)
    folder = os.path.dirname(kernel)
    point(f"{os.path.dirname(folder)}/current", os.path.basename(folder))
    return Made(kernel, image)
