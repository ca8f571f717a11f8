"""The images of a user, on the disk: added, found and removed by any process of theirs.

    STATE/images/lock              held while anything below changes its name
    STATE/images/refs/HASH.json    a name and the image that it stands for; HASH is the name's
    STATE/images/sha256-HEX/       an image
        rootfs.erofs               its file system; flock'ed shared by whatever runs it
        config.json                all else that is known of it; see Image
    STATE/images/blobs/sha256/HEX  layers as registries have them, to be shared by images
    STATE/images/partial/HEX       such a layer while it is on its way; flock'ed by its loader
    STATE/images/.new-…            half made, flock'ed by its maker: without one, it is deleted

Everything is made beside its place, brought to the disk and renamed: what has a name is whole.
"""

from __future__ import annotations

import builtins
import hashlib
import os
import re
import time
from contextlib import suppress

from voidbox.errors import ConfigError, HostError, VoidboxError
from voidbox.images import pins
from voidbox.images.config import ImageConfig
from voidbox.images.draft import CONFIG, NEW, REMOVED, ROOTFS, Draft
from voidbox.images.errors import ImageError
from voidbox.images.flock import try_lock
from voidbox.images.record import VERSION, ImageRecord
from voidbox.images.reference import Reference, is_digest, parse_reference
from voidbox.named_tuple import NamedTuple
from voidbox.storage import durable
from voidbox.storage.durable import Corrupted
from voidbox.storage.locking import FileLock
from voidbox.storage.place import make_state_folder

PARTIAL, BLOBS, REFS = "partial", "blobs/sha256", "refs"
ID_PREFIX_DIGITS_MIN = 4

_ENTRY = re.compile("sha256-[0-9a-f]{64}")
_ID = re.compile("(?:sha256:)?([0-9a-f]{4,64})")


class Image(NamedTuple):
    """An image in the store.

    Attributes:
        id: "sha256:…", of its configuration.
        names: by which the store knows it, complete; see Reference.name.
        path: of its file system, an erofs image, never written again.
        config: how its commands want to be run.
        record: all else that is known of it.
    """

    id: str
    names: tuple[str, ...]
    path: str
    config: ImageConfig
    record: ImageRecord


class _Ref(NamedTuple):
    """A name and what it stands for."""

    name: str
    id: str
    named_at: float


class ImageStore:
    """The images in a state folder. Thread: any; processes: any number.

    Args:
        folder: the state folder, made if it does not exist; None for $VOIDBOX_STATE, else the
            user's own.

    Raises:
        ConfigError: it cannot be made, or is somebody else's.

    Attributes:
        path: of the folder of images, absolute.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.path = f"{make_state_folder(folder, 'images')}/images"
        try:
            for part in (BLOBS, PARTIAL, REFS):
                os.makedirs(f"{self.path}/{part}", 0o700, exist_ok=True)
        except OSError as error:
            raise durable.failure("make", f"{self.path}/{part}", error) from error

    # Looking.

    def find(self, name: str) -> Image:
        """Return the image that a name, or the first digits of an ID, stands for.

        Raises:
            ConfigError: there is none, or a newer voidbox made it.
            ImageError: it is damaged.
        """
        return self._load(self.resolve(name))

    def resolve(self, name: str) -> str:
        """Return the ID of the image that a name or the first digits of an ID stands for.

        Raises:
            ConfigError: there is none.
        """
        prefix = _ID.fullmatch(name)
        try:
            reference = parse_reference(name)
        except ConfigError:
            if prefix is None:
                raise
        else:
            id = self.look_up(reference)
            if id is not None:
                return id
        found = [id for id in self.ids() if prefix and id[7:].startswith(prefix[1])]
        if len(found) > 1:
            raise ConfigError(f"several images' IDs begin with {name}: give more digits of it")
        if not found:
            raise ConfigError(
                f"no image {name}: voidbox image pull {name} brings it from a registry, "
                "voidbox image ls lists those there are"
            )
        return found[0]

    def look_up(self, reference: Reference, since: float = 0) -> str | None:
        """Return the ID of the image that has a name; None if there is none.

        Args:
            since: None too if it has had the name since before then, in seconds since 1970.

        Raises:
            ConfigError: a newer voidbox wrote the name down.
            ImageError: it is damaged.
        """
        try:
            ref = self._read_ref(self._ref_path(reference.name))
        except FileNotFoundError:
            return None
        except Corrupted as error:
            raise ImageError(f"{self._ref_path(reference.name)} is damaged: {error}") from error
        if ref.name != reference.name or ref.named_at < since or not self.has(ref.id):
            return None
        return ref.id

    def list(self) -> tuple[builtins.list[Image], builtins.list[VoidboxError]]:
        """Return all images, named and nameless, the newest first; and what is wrong with others.

        Raises:
            HostError: the folder cannot be read.
        """
        found = []
        names, wrong = self._names()
        for id in self.ids():
            try:
                found.append(self._load(id, tuple(sorted(names.get(id, ())))))
            except VoidboxError as error:
                wrong.append(error)
        found.sort(key=lambda image: (-image.record.added_at, image.names))
        return found, wrong

    def ids(self) -> builtins.list[str]:
        """Return the IDs of all images, damaged ones too."""
        entries = sorted(filter(_ENTRY.fullmatch, self.entries("")))
        return [entry.replace("-", ":", 1) for entry in entries]

    def has(self, id: str) -> bool:
        """Whether there is an image with an ID."""
        return os.path.isdir(self._folder(id))

    # Adding.

    def lock(self) -> FileLock:
        """Return a context in which no name and no image comes or goes."""
        return FileLock(f"{self.path}/lock")

    def draft(self) -> Draft:
        """Return a folder in which an image can be made; see Draft. Use as a context manager."""
        with self.lock():
            self.tidy()
            return Draft(self.path)

    def add(self, draft: Draft, reference: Reference, record: ImageRecord) -> Image:
        """Have what was made in a draft be an image, and a name stand for it.

        Raises:
            HostError: the disk is full, say; nothing has changed.
        """
        draft.seal()
        durable.write_json(f"{draft.path}/{CONFIG}", record.to_json())
        with self.lock():
            if not self.has(record.id):
                draft.publish(self._folder(record.id))
            self._write_ref(reference, record.id)
        return self._load(record.id)

    def name(self, reference: Reference, id: str) -> bool:
        """Have a name stand for an image; returns whether there is that image.

        Raises:
            HostError: it cannot be written down.
        """
        with self.lock():
            if not self.has(id):
                return False
            self._write_ref(reference, id)
        return True

    # Removing.

    def remove(self, name: str, *, force: bool = False) -> tuple[str, bool]:
        """Remove a name, and the image with it if it has no other.

        Args:
            name: an ID's first digits remove the image with all its names.
            force: also while a sandbox runs it, which keeps what it has open.

        Returns:
            The image's ID, and whether it is gone.

        Raises:
            ConfigError: there is none, or a sandbox runs it, or a snapshot needs it.
            HostError: it cannot be deleted.
        """
        with self.lock():
            id = self.resolve(name)
            names = self._names()[0].get(id, set())
            is_id = not self._is_name_of(name, id)
            if not is_id and len(names) > 1:
                self._unlink_ref(parse_reference(name).name)
                return id, False
            if not self.remove_image(id, force=force):
                if needed := pins.holders(self._folder(id)):
                    raise ConfigError(
                        f"{name} is needed by {', '.join(needed)}: remove that first, with voidbox "
                        "snapshot rm or voidbox rm, or give --force, and it cannot be restored"
                    )
                raise ConfigError(
                    f"a sandbox runs {name}: stop it first, or give --force, and the sandbox keeps "
                    "what it has open"
                )
        return id, True

    def remove_image(self, id: str, *, force: bool = False) -> bool:
        """Delete an image and its names; returns False for one in use, or pinned. Lock: held.

        Raises:
            HostError: it cannot be deleted.
        """
        folder = self._folder(id)
        if not force and pins.holders(folder):
            return False
        try:
            fd = try_lock(f"{folder}/{ROOTFS}")
        except BlockingIOError:
            if not force:
                return False
            fd = None
        try:
            # Names first: killed in between, it leaves an image without a name, not the reverse.
            for name in self._names()[0].get(id, ()):
                self._unlink_ref(name)
            gone = f"{self.path}/{REMOVED}{os.urandom(8).hex()}"
            os.rename(folder, gone)
        except OSError as error:
            raise durable.failure("delete", folder, error) from error
        finally:
            if fd is not None:
                os.close(fd)
        durable.remove_tree(gone)
        return True

    def tidy(self) -> None:
        """Delete what killed makers have left. Lock: held."""
        for name in self.entries(""):
            if not name.startswith((NEW, REMOVED)):
                continue
            path = f"{self.path}/{name}"
            try:
                fd = try_lock(path)
            except BlockingIOError:
                continue  # its maker lives
            if fd is None:
                continue
            with suppress(HostError):  # nobody is kept from working by it
                durable.remove_tree(path)
            os.close(fd)
        for name in self.entries(REFS):
            if name.endswith(".new"):  # whoever wrote it was killed: the lock is ours
                with suppress(OSError):
                    os.unlink(f"{self.path}/{REFS}/{name}")

    def entries(self, part: str) -> builtins.list[str]:
        """Return the names in a folder of the store.

        Raises:
            HostError: it cannot be read.
        """
        try:
            return sorted(os.listdir(f"{self.path}/{part}"))
        except OSError as error:
            raise durable.failure("read", f"{self.path}/{part}", error) from error

    # Files.

    def _folder(self, id: str) -> str:
        if not is_digest(id):
            raise ConfigError(f"{id!r} is no image's ID")
        return f"{self.path}/{id.replace(':', '-')}"

    def _load(self, id: str, names: tuple[str, ...] | None = None) -> Image:
        path = f"{self._folder(id)}/{CONFIG}"
        try:
            record = ImageRecord.from_json(durable.read_json(path, VERSION))
            if record.id != id:
                raise Corrupted("it is another image's")
            if not os.path.isfile(f"{self._folder(id)}/{ROOTFS}"):
                raise Corrupted("its file system is missing")
        except (Corrupted, FileNotFoundError) as error:
            why = "it is missing" if isinstance(error, FileNotFoundError) else error
            raise ImageError(
                f"{path} is damaged: {why}; voidbox image rm {id[7:19]} removes the image, pull or "
                "import it again"
            ) from error
        if names is None:
            names = tuple(sorted(self._names()[0].get(id, ())))
        return Image(id, names, f"{self._folder(id)}/{ROOTFS}", record.config, record)

    def _is_name_of(self, name: str, id: str) -> bool:
        try:
            return self.look_up(parse_reference(name)) == id
        except ConfigError:
            return False

    def _ref_path(self, name: str) -> str:
        return f"{self.path}/{REFS}/{hashlib.sha256(name.encode()).hexdigest()}.json"

    def _unlink_ref(self, name: str) -> None:
        try:
            os.unlink(self._ref_path(name))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise durable.failure("delete", self._ref_path(name), error) from error

    def _write_ref(self, reference: Reference, id: str) -> None:
        values = {"version": VERSION, "name": reference.name, "id": id, "named_at": time.time()}
        durable.write_json(self._ref_path(reference.name), values)

    def _read_ref(self, path: str) -> _Ref:
        values = durable.read_json(path, VERSION)
        ref = _Ref(*map(values.get, _Ref._fields))  # type: ignore[arg-type]  # checked next
        if not (
            isinstance(ref.name, str)
            and isinstance(ref.id, str)
            and is_digest(ref.id)
            and isinstance(ref.named_at, int | float)
        ):
            raise Corrupted("it is no image's name")
        return ref

    def _names(self) -> tuple[dict[str, set[str]], builtins.list[VoidboxError]]:
        """Return the names of each image, and what is wrong with other names' files."""
        names: dict[str, set[str]] = {}
        wrong: builtins.list[VoidboxError] = []
        for entry in self.entries(REFS):
            path = f"{self.path}/{REFS}/{entry}"
            if not entry.endswith(".json"):
                continue
            try:
                ref = self._read_ref(path)
            except Corrupted as error:
                wrong.append(ImageError(f"{path} is damaged: {error}; delete it"))
            except FileNotFoundError:
                continue  # just removed
            except VoidboxError as error:
                wrong.append(error)
            else:
                names.setdefault(ref.id, set()).add(ref.name)
        return names, wrong
