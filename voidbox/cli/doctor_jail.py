"""What `voidbox doctor` says of the jail: each layer is tried."""

from __future__ import annotations

from collections.abc import Collection

from voidbox.jail import cgroups, trial
from voidbox.named_tuple import NamedTuple
from voidbox.sandbox.process import control_group

_NAME, _LIMITS = "jail", "limits"
_WITHOUT = {  # a group's controller
    cgroups.CPU: "--cpu-limit holds the vCPUs alone",
    cgroups.MEMORY: "--host-memory is of what is mapped",
    cgroups.PIDS: "--pids needs user namespaces, and is none of root's",
}


class Finding(NamedTuple):
    """One line; see doctor.Check.

    Attributes:
        is_well: whether nothing is missing.
        is_fatal: whether sandboxes do not start because of it.
    """

    name: str
    is_well: bool
    is_fatal: bool
    found: str
    todo: str = ""


def findings(trials: list[trial.Trial] | None = None) -> list[Finding]:
    """Return what is to be said, one line for each thing that is missing, or one for all."""
    by_layer = {one.layer: one for one in (trial.run_all() if trials is None else trials)}
    lost = {layer: one.problem for layer, one in by_layer.items() if one.problem}
    found = []
    if trial.SECCOMP in lost:
        found.append(
            Finding(
                _NAME, False, True, f"no seccomp ({lost[trial.SECCOMP]}): sandboxes do not start",
                "use a kernel with CONFIG_SECCOMP_FILTER, or insist: --jail off",
            )
        )  # fmt: skip
    has_root = trial.MOUNT not in lost
    if trial.LANDLOCK in lost and not has_root:
        found.append(
            Finding(
                _NAME, False, False,
                "neither Landlock nor a mount namespace: an escape could open your files",
                "boot with lsm=landlock,… or allow user namespaces: "
                f"{lost[trial.MOUNT]}",
            )
        )  # fmt: skip
    elif trial.LANDLOCK in lost:
        found.append(Finding(_NAME, True, False, "no Landlock; the mount namespace does for it"))
    elif trial.NAMESPACES in lost or not has_root:
        found.append(
            Finding(
                _NAME, False, False,
                f"no user namespaces ({lost[trial.MOUNT]}): an escape could see the names and "
                "sizes of your files",
                "allow them, or leave it so",
            )
        )  # fmt: skip
    elif trial.PID in lost:
        found.append(
            Finding(
                _NAME, False, False,
                f"no pid namespace ({lost[trial.PID]}): an escape could see the numbers of other "
                "processes",
                "allow it, or leave it so",
            )
        )  # fmt: skip
    works = [f"{layer} {one.detail}".rstrip() for layer, one in by_layer.items() if not one.problem]
    if works:
        found.insert(0, Finding(_NAME, True, False, f"{', '.join(works)}: tried"))
    return found


def limits(controllers: Collection[str] | None = None) -> Finding:
    """Return what is to be said of --cpu-limit, --host-memory and --pids.

    Args:
        controllers: what a control group of ours can limit; None: one is tried.
    """
    has = control_group.attempt() if controllers is None else controllers
    words = [f"control group v2 ({', '.join(sorted(has))}): tried"] if has else []
    words += [text for controller, text in _WITHOUT.items() if controller not in has]
    return Finding(_LIMITS, True, False, "; ".join(words))
