"""Images: trees of files from layers, archives and folders, packed as one read-only file system.

    from voidbox import images

    image = images.pull("python:3.12")
    print(image.config.cmd)

Names are looked up when they are first used (PEP 562): most of voidbox needs few of them.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers know it; importing typing would cost more than all of this
if TYPE_CHECKING:
    from voidbox.images.config import ImageConfig
    from voidbox.images.errors import ImageError
    from voidbox.images.importing import import_
    from voidbox.images.listing import find, list, remove
    from voidbox.images.progress import ImageProgress
    from voidbox.images.pruning import prune
    from voidbox.images.pulling import pull
    from voidbox.images.store import Image, ImageStore

# Name to the module that it is in.
_MODULES = {
    "Image": "store",
    "ImageConfig": "config",
    "ImageError": "errors",
    "ImageProgress": "progress",
    "ImageStore": "store",
    "find": "listing",
    "import_": "importing",
    "list": "listing",
    "prune": "pruning",
    "pull": "pulling",
    "remove": "listing",
}

__all__ = [
    "Image",
    "ImageConfig",
    "ImageError",
    "ImageProgress",
    "ImageStore",
    "find",
    "import_",
    "list",
    "prune",
    "pull",
    "remove",
]


def __getattr__(name: str) -> object:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"voidbox.images.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> object:
    return sorted({*globals(), *_MODULES})
