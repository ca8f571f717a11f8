"""One direction of dependency, walked over the imports of the source itself."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Each package may import these and what stands in its own folder; "" is the top level. All may
# import named_tuple, which is typing's to all that matters.
ALLOWED: dict[str, set[str]] = {
    "named_tuple": set(),
    "errors": set(),
    "version": set(),
    "memory": {"errors"},
    "buffers": set(),
    "kvm": {"errors"},
    "zstd": set(),
    "lz4": set(),
    "boot": {"errors", "memory", "zstd"},
    "devices": set(),
    "loop_api": set(),
    "signals": set(),
    "threads": {"signals"},
    "file_limit": {"errors"},
    "thread_stacks": set(),
    "net": {"errors", "buffers"},
    "vsock": {"errors", "memory", "buffers", "loop_api"},
    "nat": {"errors", "loop_api", "net"},
    "free_space": set(),
    "block": {"errors", "buffers", "free_space"},
    "fuse": {"errors", "free_space"},
    "virtio": {"errors", "memory", "buffers", "vsock", "block", "fuse"},
    "event_loop": {"errors"},
    "jail": set(),
    "secrets": {"errors", "net"},
    "storage": {"errors"},
    "images": {"errors", "storage", "version", "lz4", "zstd", "threads"},
    "setup": {"errors", "defaults", "storage", "images", "boot", "lz4", "sdk", "threads"},
    "agent": {"errors", "event_loop", "loop_api"},
    "snapshot": {"errors", "agent", "storage"},  # of the agent its packing alone
    "vmm": {
        "errors",
        "version",
        "net",
        "snapshot",
        "storage",
        "memory",
        "kvm",
        "boot",
        "devices",
        "virtio",
        "block",
        "vsock",
        "nat",
        "fuse",
        "event_loop",
        "loop_api",
    },
    "sandbox": {
        "errors",
        "vmm",
        "kvm",
        "vsock",
        "agent",
        "boot",
        "net",
        "nat",
        "fuse",
        "jail",
        "secrets",
        "event_loop",
        "loop_api",
        "signals",
        "file_limit",
        "thread_stacks",
        "defaults",
        "storage",
        "images",
        "snapshot",
        "version",
    },
    "remote": {"errors", "version"},
    "sdk": {
        "errors",
        "jail",
        "secrets",
        "remote",
        "vmm",
        "fuse",
        "agent",
        "defaults",
        "images",
        "sandbox",
        "signals",
    },
    "pool": {"errors", "sandbox", "sdk", "file_limit"},
    "ray": {"errors", "agent", "sandbox", "snapshot", "images", "sdk", "pool", "storage"},
    "adapters": {"errors", "agent", "images", "sdk", "pool", "ray"},
    "defaults": {"errors"},
    "cli": {
        "pool",
        "ray",
        "errors",
        "version",
        "vmm",
        "kvm",
        "jail",
        "secrets",
        "agent",
        "sandbox",
        "sdk",
        "event_loop",
        "signals",
        "file_limit",
        "defaults",
        "nat",
        "storage",
        "images",
        "snapshot",
        "mcp_server",
        "remote",
        "serve",
        "setup",
    },
    "mcp_server": {"errors", "version", "sandbox", "sdk", "cli"},  # the last in __main__ alone
    "serve": {"errors", "version", "agent", "vmm", "sandbox", "sdk", "pool", "images", "storage"},
    "__main__": {"cli"},
    "__init__": {
        "version",
        "errors",
        "agent",
        "sandbox",
        "sdk",
        "pool",
        "images",
        "secrets",
    },  # looked up when they are used
}
STANDARD_COMPUTATION = {"boot", "devices", "memory"}
FORBIDDEN_IN_PURE = {"socket", "threading.Thread", "select", "subprocess", "asyncio"}


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def _modules() -> list[tuple[str, Path]]:
    package = ROOT / "voidbox"
    return [
        (path.relative_to(package).parts[0].removesuffix(".py"), path)
        for path in sorted(package.rglob("*.py"))
    ]


def test_every_package_imports_only_what_lies_below_it() -> None:
    assert len(_modules()) > 20
    for layer, path in _modules():
        used = {name.split(".")[1] for name in _imports(path) if name.startswith("voidbox.")}
        wrong = used - ALLOWED[layer] - {layer, "named_tuple"}
        assert not wrong, f"{path.relative_to(ROOT)} imports voidbox.{', voidbox.'.join(wrong)}"


def test_pure_packages_do_no_io() -> None:
    for layer, path in _modules():
        if layer in STANDARD_COMPUTATION:
            wrong = _imports(path) & FORBIDDEN_IN_PURE
            assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_the_vsock_core_does_no_io() -> None:
    for name in ("packet", "connection", "link", "muxer"):
        wrong = _imports(ROOT / "voidbox" / "vsock" / f"{name}.py") & {
            *FORBIDDEN_IN_PURE, "os", "time", "threading", "fcntl",
        }  # fmt: skip
        assert not wrong, f"vsock/{name}.py imports {wrong}"


def test_the_network_stack_does_no_io() -> None:
    paths = [path for layer, path in _modules() if layer == "net"]
    assert paths
    for path in paths:
        used = {name.split(".")[0] for name in _imports(path)}
        wrong = used & {*FORBIDDEN_IN_PURE, "os", "time", "threading", "random", "signal"}
        assert not wrong, f"net/{path.name} imports {wrong}"


def test_the_guest_agent_never_imports_voidbox() -> None:
    for path in (ROOT / "guest_agent").rglob("*.py"):
        wrong = {name for name in _imports(path) if name.split(".")[0] == "voidbox"}
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_no_module_is_called_utils() -> None:
    assert not [path for _, path in _modules() if "util" in path.stem]
