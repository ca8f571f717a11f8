"""docs/serve.md says which SDKs work: those that the checks are run with, and no others."""

from __future__ import annotations

import pytest

from tests.unit.serve import sdk_versions


def test_the_table_has_what_is_fetched_and_tested() -> None:
    assert sdk_versions.in_document() == sdk_versions.table(), "make sdk-table writes it anew"


@pytest.mark.parametrize(("language", "package"), sdk_versions.NAMES)
def test_of_each_sdk_several_versions_are_tested(language: str, package: str) -> None:
    found = sdk_versions.with_package(language, package)
    versions = [one.versions[package] for one in found]
    assert len(versions) >= 2 and len(set(versions)) == len(versions), versions


def test_frameworks_and_programs_of_tests_are_no_sdks() -> None:
    names = [one.name for one in sdk_versions.fetched()]
    assert "py-smolagents" not in names and "py-interpreter" not in names
    assert len(set(names)) == len(names)
