"""How much a stranger's archive may ask for."""

from __future__ import annotations

from voidbox.named_tuple import NamedTuple

GIB = 1 << 30


class Limits(NamedTuple):
    """Bounds of one image, over all of its layers together. None of them is met by real images.

    Attributes:
        entries: how many entries its archives hold.
        total_bytes: of its archives unpacked; and of its files, with their holes.
        ratio: unpacked to packed bytes of a layer; above `ratio_from_bytes` only, for a short
            archive may well consist of zeros.
        ratio_from_bytes: see there.
        header_bytes: of one entry's headers (PAX, GNU): long names, xattrs, maps of holes.
        global_bytes: of one archive's headers (PAX) that tell of all entries after them.
        xattr_bytes: of one file's extended attributes together.
        metadata_bytes: what memory holds of the entries: names, links, extended attributes and
            maps of holes, with what Python adds to the last two.
    """

    entries: int = 1_000_000
    total_bytes: int = 64 * GIB
    ratio: int = 400
    ratio_from_bytes: int = GIB // 4
    header_bytes: int = 1 << 20
    global_bytes: int = 64 << 10
    xattr_bytes: int = 128 << 10
    metadata_bytes: int = GIB // 4


DEPTH_MAX = 256  # of folders in each other; what walks a tree may count on it
PATH_BYTES_MAX = 4095  # PATH_MAX less its NUL (limits.h)
NAME_BYTES_MAX = 255  # NAME_MAX (limits.h), EROFS_NAME_LEN
LINK_BYTES_MAX = 4095
ID_MAX = (1 << 32) - 2  # (uid_t)-1 means "leave it" to chown(2)
MAJOR_MAX = (1 << 12) - 1  # new_encode_dev() (kdev_t.h)
MINOR_MAX = (1 << 20) - 1
XATTR_NAME_BYTES_MAX = 255  # XATTR_NAME_MAX (limits.h)
XATTR_VALUE_BYTES_MAX = (1 << 16) - 1  # XATTR_SIZE_MAX less one, what erofs has room to say

DEFAULT_LIMITS = Limits()
