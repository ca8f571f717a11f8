"""All that `voidbox setup` does."""

from __future__ import annotations

import os
from collections.abc import Sequence

from voidbox.images.progress import OnProgress, ignore
from voidbox.named_tuple import NamedTuple
from voidbox.setup.archive import ArchiveOptions, open_archive
from voidbox.setup.default_image import IMAGE, build_default_image
from voidbox.setup.guest_image import build_guest_image
from voidbox.setup.host_copy import point
from voidbox.setup.kernel import fetch_kernel
from voidbox.setup.packages import check_name

DEFAULT, TINY = "default", "tiny"


class Made(NamedTuple):
    """Where it is.

    Attributes:
        kernel: the path of its vmlinuz.
        image: the path of the default image; None where the tiny one was all that was asked for.
        tiny: the folder of the tiny one, with what brings the agent to all images.
    """

    kernel: str
    image: str | None
    tiny: str


def set_up(
    options: ArchiveOptions,
    flavour: str = "cloud",
    packages: Sequence[str] = (),
    image: str = DEFAULT,
    report: OnProgress = ignore,
) -> Made:
    """Have the cache hold a kernel and its images, for `run` to take from now on.

    Args:
        flavour: "cloud" or "generic".
        packages: more of Debian's in the image. Their scripts are not run.
        image: DEFAULT, or TINY for that one alone.
    Raises:
        SetupError: the archive cannot give it; says what to do.
        HostError: the cache cannot be written.
    """
    for name in packages:
        check_name(name)
    is_tiny = image == TINY
    with open_archive(options, report) as archive:
        kernel = fetch_kernel(archive, flavour)
        tiny = build_guest_image(
            archive, kernel, packages if is_tiny else (), is_current=True, report=report
        )
        path = None
        if not is_tiny:
            path = f"{build_default_image(archive, packages, report=report)}/{IMAGE}"
    folder = os.path.dirname(kernel)
    point(f"{os.path.dirname(folder)}/current", os.path.basename(folder))
    return Made(kernel, path, tiny)
