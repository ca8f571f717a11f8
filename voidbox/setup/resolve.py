"""Which packages it takes: those asked for, and all that they depend on.

As apt-get install --no-install-recommends on an empty system decides in all but odd cases: of a
package the newest version; of alternatives one that is taken already, else the first that there
is; for a name that several packages stand for, the most important, then the first by name. Nothing
is tried twice: what then does not go together is told, and the user says what to take instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from voidbox.setup import versions
from voidbox.setup.errors import SetupError
from voidbox.setup.packages import (
    PRIORITIES,
    Package,
    PackageList,
    Wanted,
    check_name,
    is_for_us,
)

_PACKAGES_MAX = 5000


class Universe:
    """All packages of some lists. Thread: one."""

    def __init__(self, lists: Sequence[PackageList]) -> None:
        self._lists = lists
        self._named: dict[str, list[Package]] = {}
        self._providing: dict[str, list[Package]] = {}

    def named(self, name: str) -> list[Package]:
        """Return the versions of a package, the newest first."""
        found = self._named.get(name)
        if found is None:
            every = [one for each in self._lists for one in each.named(name) if is_for_us(one)]
            every.sort(key=lambda one: versions.sort_key(one.version), reverse=True)
            self._named[name] = found = every
        return found

    def newest(self, name: str) -> Package | None:
        """Return a package's newest version, None if there is none."""
        return next(iter(self.named(name)), None)

    def providing(self, name: str) -> list[Package]:
        """Return the packages that stand for a name, the most important first."""
        found = self._providing.get(name)
        if found is None:
            every = {one.name for each in self._lists for one in each.providing(name)}
            newest = [one for one in map(self.newest, every) if one is not None]
            kept = [one for one in newest if any(name == has.name for has in one.provides)]
            kept.sort(key=lambda one: (_rank(one), one.name))
            self._providing[name] = found = kept
        return found

    def base(self) -> list[str]:
        """Return the names of what every Debian has: essential or required."""
        lines = (b"Essential: yes", b"Priority: required")
        names = {
            one.name
            for each in self._lists
            for line in lines
            for one in each.with_line(line)
            if is_for_us(one)
        }
        newest = [one for one in map(self.newest, names) if one is not None]
        return sorted(o.name for o in newest if o.is_essential or o.priority == "required")


def _rank(package: Package) -> int:
    known = package.priority in PRIORITIES
    return PRIORITIES.index(package.priority) if known else len(PRIORITIES)


def resolve(universe: Universe, names: Iterable[str]) -> list[Package]:
    """Return these packages and all that they depend on, each after most of what it needs.

    Raises:
        SetupError: there is no such package, something that one needs is not there, or two of
            them refuse each other.
    """
    taken = _Taken(universe)
    wanted = list(names)
    for name in wanted:
        check_name(name)
        package = universe.newest(name)
        if package is None:
            providers = universe.providing(name)
            hint = f"; {providers[0].name} stands for it" if providers else ""
            raise SetupError(f"the archive has no package {name}{hint}: is the name right?")
        taken.chosen[package.name] = package  # before alternatives are looked at
    for name in wanted:
        taken.visit(name)
    _check(taken.ordered)
    return taken.ordered


class _Taken:
    """What has been taken so far."""

    def __init__(self, universe: Universe) -> None:
        self._universe = universe
        self.chosen: dict[str, Package] = {}
        self._visited: set[str] = set()
        self.ordered: list[Package] = []

    def visit(self, name: str) -> None:
        """Take all that a chosen package needs, then itself."""
        pending = [(self.chosen[name], iter(self.chosen[name].needs))]
        if name in self._visited:
            return
        self._visited.add(name)
        while pending:
            package, groups = pending[-1]
            group = next(groups, None)
            if group is None:
                self.ordered.append(package)
                pending.pop()
                continue
            found = self._choose(group, package)
            if found.name not in self._visited:
                self._visited.add(found.name)
                pending.append((found, iter(found.needs)))
        if len(self.ordered) > _PACKAGES_MAX:
            raise SetupError(f"{name} needs more than {_PACKAGES_MAX} packages")

    def _choose(self, group: tuple[Wanted, ...], package: Package) -> Package:
        for wanted in group:
            for there in self._meeting(wanted, self.chosen.values()):
                return there
        for wanted in group:
            for found in (*self._named(wanted), *self._providers(wanted)):
                if found.name not in self.chosen:  # else another version of it is taken
                    self.chosen[found.name] = found
                    return found
        missing = " or ".join(map(str, group)) or "something"
        raise SetupError(
            f"{package.name} needs {missing}, which the archive does not have, or not in a version "
            "that goes with the rest: is the mirror whole, are its updates there?"
        )

    def _named(self, wanted: Wanted) -> list[Package]:
        found = self._universe.named(wanted.name)
        return [one for one in found if wanted.is_met_by(one.version)][:1]

    def _providers(self, wanted: Wanted) -> list[Package]:
        return list(self._meeting(wanted, self._universe.providing(wanted.name)))

    def _meeting(self, wanted: Wanted, among: Iterable[Package]) -> Iterable[Package]:
        if self.chosen is not None and wanted.name in self.chosen:
            there = self.chosen[wanted.name]
            if wanted.is_met_by(there.version):
                yield there
                return
        for one in among:
            for has in one.provides:
                if has.name == wanted.name and _is_provided(wanted, has.version):
                    yield one


def _is_provided(wanted: Wanted, version: str) -> bool:
    """Policy, 7.5: a name without a version meets only what asks for none."""
    return not wanted.relation or bool(version and wanted.is_met_by(version))


def _check(packages: Sequence[Package]) -> None:
    """Refuse what refuses each other."""
    by_name = {package.name: package for package in packages}
    providers: dict[str, list[tuple[Package, str]]] = {}
    for package in packages:
        for has in package.provides:
            providers.setdefault(has.name, []).append((package, has.version))
    for package in packages:
        for refused in package.refuses:
            there = by_name.get(refused.name)
            others = [
                one
                for one, version in providers.get(refused.name, ())
                if _is_provided(refused, version)
            ]
            if there is not None and refused.is_met_by(there.version):
                others.append(there)
            for other in others:
                if other.name != package.name:
                    raise SetupError(
                        f"{package.name} and {other.name} cannot be in one image: "
                        f"{package.name} refuses {refused}"
                    )
