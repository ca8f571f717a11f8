"""Images from folders and archives: docker's, OCI's and plain ones, good and hostile."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.images.made import StoreFolder, digest_of
from tests.unit.images.oci import OCI_INDEX, OciImage, descriptor, make_image, make_index, tar_of
from voidbox.errors import ConfigError, VoidboxError
from voidbox.images import archive as archive_module
from voidbox.images.boxes import FolderBox
from voidbox.images.errors import ImageError
from voidbox.images.importing import import_
from voidbox.setup.building import build

FILES = ({"bin/": b"", "bin/sh": b"#!" * 500}, {"etc/": b"", "etc/motd": b"hello"})


def docker_archive(*images: tuple[OciImage, list[str]], links: bool = False) -> dict[str, bytes]:
    """Return the files of a `docker save`, before version 25."""
    files: dict[str, bytes] = {}
    manifest = []
    for image, tags in images:
        layers = []
        for digest in image.layers:
            name = f"{digest[7:]}/layer.tar"
            files[f"{digest[7:]}/"] = b""
            files[name] = image.blobs[digest]
            layers.append(name)
        files[f"{image.id[7:]}.json"] = image.config
        manifest.append({"Config": f"{image.id[7:]}.json", "RepoTags": tags, "Layers": layers})
    files["manifest.json"] = json.dumps(manifest).encode()
    files["repositories"] = b"{}"
    return files


def oci_layout(*images: tuple[OciImage, str], index: bytes = b"") -> dict[str, bytes]:
    """Return the files of an OCI layout."""
    files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "blobs/": b"", "blobs/sha256/": b""}
    entries = []
    for image, name in images:
        blobs = {**image.blobs, image.digest: image.manifest}
        files |= {f"blobs/sha256/{digest[7:]}": content for digest, content in blobs.items()}
        more = {"annotations": {"org.opencontainers.image.ref.name": name}} if name else {}
        entries.append(descriptor(image.media_type, image.manifest, **more))
    top = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    files["index.json"] = index or json.dumps(top).encode()
    return files


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        if name.endswith("/"):
            (path / name).mkdir(parents=True, exist_ok=True)
        else:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    return path


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    path.write_bytes(tar_of(files))
    return path


RAW = make_image(*FILES, raw=True)
GZIP = make_image(*FILES)


@pytest.mark.parametrize("write", [write_tar, write_folder])
@pytest.mark.parametrize(
    "files",
    [
        docker_archive((RAW, ["app:1"])),
        docker_archive((GZIP, [])),
        oci_layout((GZIP, "latest")),
        oci_layout((GZIP, "")),
        {**oci_layout((RAW, "1")), **docker_archive((RAW, ["app:1"]))},  # as new dockers do
    ],
    ids=["docker", "unnamed", "oci", "oci-unnamed", "both"],
)
def test_archives_of_one_image(
    stored: StoreFolder, tmp_path: Path, write: Callable[..., Path], files: dict[str, bytes]
) -> None:
    image = import_("app", write(tmp_path / "saved", files), store=stored.store)
    assert image.id in (RAW.id, GZIP.id) and image.config.cmd == ("sh",)
    assert image.record.created_at == pytest.approx(1714979289.123, abs=0.01)
    assert b"hello" in Path(image.path).read_bytes()
    assert not stored.leftovers()
    assert import_("app", tmp_path / "saved", store=stored.store) == image  # at once


@pytest.mark.parametrize("write", [write_tar, write_folder])
def test_archives_whose_files_are_named_otherwise(
    stored: StoreFolder, tmp_path: Path, write: Callable[..., Path]
) -> None:
    config, layer = f"sha256:{GZIP.id[7:]}", "l.tar.gz"  # as crane and kaniko have it
    image = make_image(FILES[0])
    entry = {"Config": config, "RepoTags": ["app:1"], "Layers": [layer]}
    files = {config: image.config, layer: image.blobs[image.layers[0]], "READ.ME": b"",
             "manifest.json": json.dumps([entry]).encode()}  # fmt: skip
    assert import_("app", write(tmp_path / "saved", files), store=stored.store).id == image.id
    files = {"READ.ME": b"", **oci_layout((GZIP, ""))}
    assert import_("oci", write(tmp_path / "oci", files), store=stored.store).id == GZIP.id


@pytest.mark.parametrize("write", [write_tar, write_folder])
def test_a_root_folder_with_a_manifest_of_its_own(
    stored: StoreFolder, tmp_path: Path, write: Callable[..., Path]
) -> None:
    for name in ("manifest.json", "index.json"):
        for content in (b'[{"Config": 1}]', b"{}", b"a"):
            files = {name: content, "etc/": b"", "etc/motd": b"hello"}
            image = import_("app", write(tmp_path / f"{name}{content!r}", files),
                            store=stored.store)  # fmt: skip
            assert b"hello" in Path(image.path).read_bytes()


def test_links_between_layers(stored: StoreFolder, tmp_path: Path) -> None:
    image = make_image(FILES[0], FILES[0], raw=True)
    file = io.BytesIO(tar_of(docker_archive((image, []))))
    with tarfile.open(fileobj=file, mode="a") as archive:
        info = tarfile.TarInfo("a" * 64 + "/layer.tar")
        info.type, info.linkname = tarfile.SYMTYPE, f"../{image.layers[0][7:]}/layer.tar"
        archive.addfile(info)
        names = [f"{image.layers[0][7:]}/layer.tar", info.name]
        entry = [{"Config": f"{image.id[7:]}.json", "RepoTags": None, "Layers": names}]
        info = tarfile.TarInfo("manifest.json")
        content = json.dumps(entry).encode()
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))  # the last one of a name counts
    (tmp_path / "saved").write_bytes(file.getvalue())
    assert import_("app", tmp_path / "saved", store=stored.store).id == image.id


PACKERS: list[Any] = [gzip.compress, lzma.compress, bz2.compress]


@pytest.mark.parametrize("pack", PACKERS)
def test_packed_archives(stored: StoreFolder, tmp_path: Path, pack: Any) -> None:
    (tmp_path / "saved").write_bytes(pack(tar_of(docker_archive((RAW, [])))))
    assert import_("app", tmp_path / "saved", store=stored.store).id == RAW.id
    (tmp_path / "root").write_bytes(pack(tar_of({"./": b"", "./hello": b"in the root"})))
    image = import_("root", tmp_path / "root", store=stored.store)
    assert b"in the root" in Path(image.path).read_bytes()
    assert image.config.env == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    }
    for cut in (10, 30):
        (tmp_path / "cut").write_bytes((tmp_path / "saved").read_bytes()[:-cut])
        with pytest.raises(ImageError, match="cut: .*(too early|damaged|Compressed file ended)"):
            import_("cut", tmp_path / "cut", store=stored.store)
    assert not stored.leftovers()


def test_several_images_in_an_archive(stored: StoreFolder, tmp_path: Path) -> None:
    other = make_image({"a": b"other"}, raw=True)
    both = docker_archive((RAW, ["a\x1b[2J"]), (other, ["b\n"]))
    with pytest.raises(ConfigError, match=r"one with --tag: a \[2J, b $"):
        import_("name", write_tar(tmp_path / "saved", both), store=stored.store)
    saved = write_tar(tmp_path / "saved", docker_archive((RAW, ["app:1", "app:2"]), (other, ["b"])))
    with pytest.raises(ConfigError, match="2 images in it: choose one with --tag: app:1, app:2, b"):
        import_("name", saved, store=stored.store)
    with pytest.raises(ConfigError, match="there is no c in it, but: app:1, app:2, b"):
        import_("name", saved, tag="c", store=stored.store)
    assert import_("name", saved, tag="app:2", store=stored.store).id == RAW.id
    assert import_("name", saved, tag="docker.io/library/b", store=stored.store).id == other.id
    assert import_("b", saved, store=stored.store).id == other.id  # the one of that name
    folder = write_folder(tmp_path / "oci", oci_layout((GZIP, "one"), (other, "The Other")))
    assert import_("name", folder, tag="The Other", store=stored.store).id == other.id


@pytest.mark.parametrize("kind", ["docker", "oci"])
def test_what_many_images_share_is_parsed_once(
    stored: StoreFolder, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_module, "_DOCUMENTS_BYTES_MAX", 400_000)
    image = make_image(FILES[0], config={"Labels": {"a": "x" * 100_000}}, raw=True)
    names = [f"n{index}" for index in range(100)]
    files = docker_archive(*((image, [name]) for name in names))
    if kind == "oci":
        files = oci_layout(*((image, name) for name in names))
    saved = write_tar(tmp_path / "saved", files)
    assert import_("app", saved, tag="n7", store=stored.store).id == image.id
    others = [
        make_image(FILES[0], config={"Labels": {"a": letter * 100_000}}, raw=True)
        for letter in "abcde"
    ]
    files = docker_archive(*((image, [image.id[7:12]]) for image in others))
    if kind == "oci":
        files = oci_layout(*((image, image.id[7:12]) for image in others))
    with pytest.raises(ImageError, match="configurations have more than 400,000 bytes"):
        import_("app", write_tar(saved, files), tag="n7", store=stored.store)


def test_an_archive_for_several_platforms(stored: StoreFolder, tmp_path: Path) -> None:
    arm = make_image({"a": b"arm"}, architecture="arm64")
    index = make_index((arm, "linux", "arm64"), (GZIP, "linux", "amd64"))
    files = oci_layout((arm, ""), (GZIP, ""), index=index)
    saved = write_tar(tmp_path / "saved", files)
    assert import_("app", saved, store=stored.store).id == GZIP.id
    assert import_("app", saved, platform="linux/arm64", store=stored.store).id == arm.id
    with pytest.raises(ImageError, match="not made for linux/s390x"):
        import_("app", saved, platform="linux/s390x", store=stored.store)
    nested = json.dumps({"schemaVersion": 2, "manifests": [descriptor(OCI_INDEX, index)]}).encode()
    files |= {"index.json": nested, f"blobs/sha256/{digest_of(index)[7:]}": index}
    assert import_("app", write_tar(saved, files), store=stored.store).id == GZIP.id


def test_a_folder(stored: StoreFolder, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "root", {"etc/motd": b"hello from a folder", "empty/": b""})
    (root / "link").symlink_to("/etc/passwd")
    image = import_(
        "app", root, env={"A": "1"}, workdir="/srv", user="me", entrypoint=["/a", "b"], cmd=["c"],
        store=stored.store,
    )  # fmt: skip
    content = Path(image.path).read_bytes()
    assert b"hello from a folder" in content and b"root:x:0:0" not in content
    config = stored.store.find("app").config
    assert (config.workdir, config.user, config.command()) == ("/srv", "me", ("/a", "b", "c"))
    assert config.env["A"] == "1" and "PATH" in config.env
    assert import_("other", root, store=stored.store).id != image.id
    again = import_(
        "again", root, env={"A": "1"}, workdir="/srv", user="me", entrypoint=["/a", "b"],
        cmd=["c"], store=stored.store,
    )  # fmt: skip
    assert again.id == image.id


def test_changes_of_an_images_configuration(stored: StoreFolder, tmp_path: Path) -> None:
    saved = write_tar(tmp_path / "saved", docker_archive((RAW, [])))
    changed = import_("app", saved, entrypoint=["/x"], env={"B": "2"}, store=stored.store)
    assert changed.id != RAW.id and changed.config.command() == ("/x",)  # docker drops cmd, too
    assert changed.config.env == {"PATH": "/bin", "A": "b=c", "B": "2"}
    for wrong in ({"env": {"": "x"}}, {"env": {"a=b": "x"}}, {"env": {"a": "\0"}},
                  {"workdir": "srv"}, {"cmd": ["\0"]}, {"user": "x" * (1 << 20)}):  # fmt: skip
        with pytest.raises(ConfigError):
            import_("app", saved, store=stored.store, **wrong)


def test_standard_input(stored: StoreFolder, tmp_path: Path) -> None:
    code = "from voidbox.images import import_; print(import_('app', '-').id)"
    for content in (
        tar_of(docker_archive((RAW, []))),
        gzip.compress(tar_of(oci_layout((RAW, "")))),
    ):
        result = subprocess.run(
            [sys.executable, "-c", code], input=content, capture_output=True, check=True,
            cwd=Path(__file__).parents[3], env={**os.environ, "VOIDBOX_STATE": str(stored.path)},
        )  # fmt: skip
        assert result.stdout.decode() == f"{RAW.id}\n"
    assert not stored.leftovers()


def test_what_is_made_here_has_no_digest(tmp_path: Path) -> None:
    for make in (lambda name: import_(name, tmp_path), build):
        with pytest.raises(ConfigError, match="a digest comes from a registry"):
            make(f"a@{RAW.id}")


@pytest.mark.parametrize("pack", [*PACKERS, bytes])
def test_a_pipe_that_begins_slowly(
    stored: StoreFolder, pack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = pack(tar_of(docker_archive((RAW, []))))
    reader, writer = os.pipe()

    def write() -> None:
        with open(writer, "wb", buffering=0) as file:
            for piece in (content[:1], content[1:4], content[4:]):
                file.write(piece)
                time.sleep(0.02)

    thread = threading.Thread(target=write)
    with open(reader, "rb") as file:
        monkeypatch.setattr(sys, "stdin", file)
        thread.start()
        assert import_("app", "-", store=stored.store).id == RAW.id
    thread.join()


# --- bad input ------------------------------------------------------------------------------------


def refuse(stored: StoreFolder, source: Path, why: str, **more: Any) -> None:
    with pytest.raises(VoidboxError, match=why) as error:
        import_("bad", source, store=stored.store, **more)
    assert "\n" not in str(error.value) and len(str(error.value)) < 800
    assert stored.store.list() == ([], []) and not stored.leftovers()


def test_what_is_no_source(stored: StoreFolder, tmp_path: Path) -> None:
    refuse(stored, tmp_path / "none", "cannot read .*none: No such file")
    for content in (b"", b"\0" * 10240, b"hello", os.urandom(5000), b"PK\3\4" + bytes(600)):
        (tmp_path / "bad").write_bytes(content)
        refuse(stored, tmp_path / "bad", "no tar archive|damaged|cut short|packed by zip")


def _changed(files: dict[str, bytes], **changes: Any) -> dict[str, bytes]:
    (entry,) = json.loads(files["manifest.json"])
    return {**files, "manifest.json": json.dumps([{**entry, **changes}]).encode()}


SAVED = docker_archive((RAW, []))


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({**SAVED, "manifest.json": b"{"}, "its manifest.json is no JSON"),
        ({**SAVED, "manifest.json": b"{}"}, "is no list of images"),
        ({**SAVED, "manifest.json": b"[]"}, "there is no image in it"),
        ({**SAVED, "manifest.json": b"[" * 100_000}, "its manifest.json is no JSON"),
        (
            {**SAVED, "manifest.json": b" " * (5 << 20)},
            "bytes, which is too much",
        ),
        (_changed(SAVED, Config="none.json"), "it has no 'none.json'"),
        (_changed(SAVED, Config="/etc/passwd"), "has no '/etc/passwd'|configuration is no JSON"),
        (_changed(SAVED, Config="../../../../../../etc/passwd"), "has no|leads out of it"),
        (_changed(SAVED, Config="a\0b"), "has no|is no file's name"),
        (_changed(SAVED, Config=7), "names no configuration"),
        (_changed(SAVED, Layers=["../../etc/passwd"] * 2), "has no|leads out of it"),
        (_changed(SAVED, Layers={"a": 1}), "manifest.json is wrong: Layers"),
        (_changed(SAVED, Layers=[]), "tells of 2 layers, its manifest of 0"),
        (_changed(SAVED, Layers=["manifest.json"] * 2), "the layer sha256:.* (tar|damaged|cut)"),
        (
            _changed(SAVED, Layers=[f"{RAW.layers[1][7:]}/layer.tar"] * 2),
            f"holds {RAW.layers[1]} instead of {RAW.layers[0]}",
        ),
        ({**SAVED, f"{RAW.id[7:]}.json": b"[]"}, "its configuration is no object"),
        ({**oci_layout((GZIP, "")), f"blobs/sha256/{GZIP.id[7:]}": b"{}"}, "it is damaged"),
        (oci_layout((make_image(*FILES, diff_ids=[]), "")), "of 0 layers, its manifest of 2"),
        *(
            (oci_layout((make_image(config={key: value}), "")), f"wrong: {key}")
            for key in ("ExposedPorts", "Volumes")
            for value in (5, True, ["80/tcp"])
        ),
        ({**oci_layout((GZIP, "")), f"blobs/sha256/{GZIP.digest[7:]}": b"{}"}, "it is damaged"),
        ({**oci_layout((GZIP, "")), "index.json": GZIP.manifest}, "its index.json is no index"),
        (
            {**oci_layout((GZIP, "")), f"blobs/sha256/{GZIP.layers[0][7:]}": b"x"},
            "the layer sha256",
        ),
    ],
)
@pytest.mark.parametrize("write", [write_tar, write_folder])
def test_archives_that_are_wrong(
    stored: StoreFolder, tmp_path: Path, write: Callable[..., Path], files: Any, why: str
) -> None:
    refuse(stored, write(tmp_path / "bad", files), why)


def test_archives_that_are_cut_short(stored: StoreFolder, tmp_path: Path) -> None:
    content = tar_of(SAVED)
    for size in (*range(1, len(content), 997), 511, 512, 513, 1024):
        (tmp_path / "bad").write_bytes(content[:size])
        if size < content.index(b"manifest.json"):
            refuse(stored, tmp_path / "bad", "cut short|it has no|no tar archive|damaged")


def test_a_folder_shows_nothing_outside_of_it(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", {"a": b"a"})
    (tmp_path / "secret").write_bytes(b"s")
    (folder / "link").symlink_to("../secret")
    (folder / "absolute").symlink_to("/etc/passwd")
    (folder / "fine").symlink_to("a")
    os.mkfifo(folder / "fifo")
    box = FolderBox(str(folder))
    with box.open("fine") as file:
        assert file.read() == b"a"
    for name in ("link", "absolute", "../secret", "..", "", "/etc/passwd"):
        with pytest.raises(ImageError, match="leads out of it|it has no"):
            box.open(name)
    for name in ("fifo", "."):
        with pytest.raises(ImageError, match="is no file|leads out"):
            box.open(name)


def test_a_root_folder_with_escapes_is_refused(stored: StoreFolder, tmp_path: Path) -> None:
    for name in ("../x", "/../x", "a/../../x"):
        write_tar(tmp_path / "bad", {"etc/": b"", name: b"x"})
        refuse(stored, tmp_path / "bad", "layer entry")
