"""Images for levels of the CPU: which one is taken, from a registry or an archive."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.images.fake_registry import FakeRegistry
from tests.unit.images.made import StoreFolder
from tests.unit.images.oci import OciImage, descriptor, make_image
from tests.unit.images.test_import import oci_layout, write_tar
from voidbox.images import cpu_level, manifest
from voidbox.images.errors import ImageError
from voidbox.images.importing import import_
from voidbox.images.manifest import OCI_INDEX, Descriptor, Index, Platform, parse_platform
from voidbox.images.pulling import pull

V2 = "fpu lahf_lm pni ssse3 sse4_1 sse4_2 popcnt cx16"
V3 = V2 + " abm avx avx2 bmi1 bmi2 f16c fma movbe xsave"


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        ("", 1),
        ("fpu sse2", 1),
        (V2, 2),
        (V2.replace("cx16", ""), 1),
        (V3, 3),
        (V3.replace("movbe", "avx512f"), 2),
        (V3.replace("sse4_2", ""), 1),
        (V3 + " avx512f avx512bw avx512cd avx512dq avx512vl", 4),
    ],
)
def test_levels_of_cpus(tmp_path: Path, flags: str, level: int) -> None:
    assert cpu_level.level_of(flags) == level
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: a\n")
    assert cpu_level.host_level(str(tmp_path / "cpuinfo")) == level
    assert cpu_level.host_level(str(tmp_path / "none")) == 1
    assert 1 <= cpu_level.host_level() <= 4


def index_of(*variants: str, architecture: str = "amd64") -> Index:
    return Index(tuple(
        Descriptor("", f"sha256:{variant}", 1, Platform("linux", architecture, variant))
        for variant in variants
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("variants", "wanted", "level", "chosen"),
    [
        (["", "v2", "v3", "v4"], "", 3, "v3"),
        (["v4", "v3", "v2", ""], "", 2, "v2"),
        (["v3", "v4", ""], "", 2, ""),
        (["v3", "v1"], "", 1, "v1"),
        (["", "v9"], "", 4, ""),
        (["v9", "v2", "unknown"], "", 4, "v2"),
        (["", "v2", "v3"], "v2", 1, "v2"),  # asked for: whatever this CPU is
        (["", "v3", "v2"], "v4", 1, "v3"),
        (["", "v3"], "v2", 4, ""),
        (["v2", ""], "v1", 4, ""),
    ],
)
def test_the_best_that_the_cpu_runs(
    variants: list[str], wanted: str, level: int, chosen: str
) -> None:
    platform = Platform(variant=wanted)
    found = manifest.choose(index_of(*variants), platform, level)
    assert found.platform is not None and found.platform.variant == chosen


def test_of_equals_the_first_is_taken() -> None:
    index = Index((*index_of("v2").manifests, Descriptor("", "sha256:x", 1, Platform())))
    doubled = Index((*index.manifests, Descriptor("", "sha256:y", 1, Platform())))
    assert manifest.choose(doubled, Platform(), 1).digest == "sha256:x"


def test_what_the_cpu_cannot_run_is_told() -> None:
    with pytest.raises(ImageError, match="made for linux/amd64/v3, linux/amd64/v4, which this CPU"):
        manifest.choose(index_of("v3", "v4"), Platform(), 2)
    with pytest.raises(ImageError, match="not made for linux/amd64/v2, but for linux/amd64/v3"):
        manifest.choose(index_of("v3"), Platform(variant="v2"), 4)
    with pytest.raises(ImageError, match="variants v1, v2, v3 and v4"):
        parse_platform("linux/amd64/v5")


def test_variants_of_others_are_theirs_alone() -> None:
    index = index_of("v6", "v7", architecture="arm")
    assert manifest.choose(index, Platform("linux", "arm", "v7"), 1).digest == "sha256:v7"
    assert manifest.choose(index, Platform("linux", "arm"), 1).digest == "sha256:v6"
    with pytest.raises(ImageError, match="not made for linux/arm/v8"):
        manifest.choose(index, Platform("linux", "arm", "v8"), 1)


IMAGES = {variant: make_image({"level": variant.encode()}) for variant in ("", "v2", "v4")}


def levels_index() -> bytes:
    def entry(image: OciImage, variant: str) -> dict[str, object]:
        platform = {"os": "linux", "architecture": "amd64"}
        if variant:
            platform["variant"] = variant
        return descriptor(image.media_type, image.manifest, platform=platform)

    entries = [entry(image, variant) for variant, image in IMAGES.items()]
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()


@pytest.mark.parametrize(
    ("platform", "level", "variant"),
    [
        ("linux/amd64", 1, ""),
        ("linux/amd64", 3, "v2"),
        ("linux/amd64", 4, "v4"),
        ("linux/amd64/v2", 4, "v2"),
        ("linux/amd64/v3", 1, "v2"),
        ("linux/amd64/v4", 1, "v4"),
        ("linux/amd64/v1", 4, ""),
    ],
)
def test_pull_and_import_take_levels(
    registry: FakeRegistry, stored: StoreFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    platform: str, level: int, variant: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(manifest, "host_level", lambda: level)
    for image in IMAGES.values():
        registry.add(image, index=levels_index())
    pulled = pull(registry.name(), store=stored.store, platform=platform)
    assert pulled.id == IMAGES[variant].id
    assert pulled.record.platform == "/".join(filter(None, ("linux/amd64", variant)))
    files = oci_layout(*((image, "") for image in IMAGES.values()), index=levels_index())
    saved = write_tar(tmp_path / "saved.tar", files)
    stored.store.remove(registry.name())
    imported = import_("app", saved, store=stored.store, platform=platform)
    assert (imported.id, imported.record.platform) == (pulled.id, pulled.record.platform)


def test_an_image_without_an_index_that_the_cpu_cannot_run(
    registry: FakeRegistry, stored: StoreFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "host_level", lambda: 2)
    image = make_image({"a": b"a"}, variant="v3")
    registry.add(image)
    with pytest.raises(ImageError, match="of level v2, cannot run: ask for it by --platform"):
        pull(registry.name(), store=stored.store)
    saved = write_tar(tmp_path / "saved.tar", oci_layout((image, "")))
    with pytest.raises(ImageError, match="of level v2, cannot run"):
        import_("app", saved, store=stored.store)
    made = import_("app", saved, store=stored.store, platform="linux/amd64/v3")
    assert made.record.platform == "linux/amd64/v3"
    assert pull(registry.name(), store=stored.store, platform="linux/amd64/v4").id == made.id
