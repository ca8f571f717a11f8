"""A folder of the host in a guest, beside QEMU with virtiofsd: the same kernel, image and programs.

Contenders: voidbox (cache=auto), and QEMU microvm with virtiofsd (cache=auto). The folder is in the
host's memory. What is timed runs in the guest, on its clock: bulk data, many small files, git.
Rounds are interleaved; medians are quoted, and their ratios. The image needs git.

    python benchmarks/workspace.py [--rounds N] [--files N] [--output FILE.json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import contenders

from voidbox.agent.client import AgentClient
from voidbox.sandbox.mounts import WORKSPACE_PATH, WORKSPACE_TAG, mount_files
from voidbox.vmm.config import MachineConfig, ShareConfig

MEGABYTES = 64
# The targets: ours as a part of theirs in throughput, as a multiple in time.
TARGETS = {"write": 0.5, "read": 0.5, "git status": 2.0, "rm -rf": 2.0}

# Runs in the guest, as root.
PROGRAM = """
import json, os, shutil, subprocess, time
os.chdir("/workspace")
os.environ.update(GIT_CONFIG_COUNT="2", GIT_CONFIG_KEY_0="safe.directory", GIT_CONFIG_VALUE_0="*")
# The host's index has the host's owner in it, the guest sees its own: git would read every file.
os.environ.update(GIT_CONFIG_KEY_1="core.checkStat", GIT_CONFIG_VALUE_1="minimal")
block, blocks = bytes(1 << 20), MEGABYTES
seconds = {}

def timed(name, work):
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")
    begun = time.monotonic()
    work()
    seconds[name] = time.monotonic() - begun

def write():
    with open("big", "wb", buffering=0) as file:
        for _ in range(blocks):
            file.write(block)
        os.fsync(file.fileno())

def read():
    with open("big", "rb", buffering=0) as file:
        while file.read(1 << 20):
            pass

def make():
    os.mkdir("made")
    for number in range(200):
        with open(f"made/{number}", "w") as file:
            file.write("x")

def status():
    subprocess.run(["git", "status", "--short"], cwd="repository", check=True)

timed("write", write)
timed("read", read)
timed("make 200 files", make)
timed("git status", status)
timed("rm -rf", lambda: shutil.rmtree("repository/files"))
print(json.dumps(seconds))
""".replace("MEGABYTES", str(MEGABYTES))


@contextlib.contextmanager
def make_folder(files: int) -> Iterator[Path]:
    """A folder with a repository of so many files, in folders of a hundred."""
    with tempfile.TemporaryDirectory(prefix="vb-", dir="/dev/shm") as name:
        repository = Path(name, "repository")
        for number in range(files):
            path = repository / "files" / str(number // 100) / f"file-{number}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{number}\n")
        git = ["git", "-c", "user.name=n", "-c", "user.email=e"]
        for arguments in (["init", "-q", "--template="], ["add", "."], ["commit", "-qm", "all"]):
            subprocess.run([*git, *arguments], cwd=repository, check=True)
        yield Path(name)


def run_program(client: AgentClient) -> dict[str, float]:
    """Run the program in a guest; return its seconds."""
    process = client.exec(["python3", "-c", PROGRAM], user="root")
    output = b"".join(data for _, data in process.output())
    assert process.wait().exit_code == 0, output.decode(errors="replace")
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    return found


@contextlib.contextmanager
def run_virtiofsd(folder: Path, socket: Path) -> Iterator[None]:
    """Run virtiofsd on a folder: the one in Rust, or QEMU's before 8.0."""
    program = next(
        path
        for path in ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd")
        if shutil.which(path) is not None
    )
    if "libexec" in program:
        options = ["--shared-dir", str(folder), "--cache", "auto", "--sandbox", "chroot"]
    else:
        options = ["-o", f"source={folder}", "-o", "cache=auto", "-o", "sandbox=chroot"]
    process = subprocess.Popen([program, f"--socket-path={socket}", *options])
    try:
        while not socket.exists():
            assert process.poll() is None, "virtiofsd ended"
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


def run_qemu(config: MachineConfig, folder: Path) -> dict[str, float]:
    """Measure QEMU microvm with virtiofsd."""
    with tempfile.TemporaryDirectory(prefix="vb-") as name:
        socket = Path(name, "fs.sock")
        options = [
            *("-object", f"memory-backend-memfd,id=ram,size={config.memory_bytes},share=on"),
            *("-machine", "memory-backend=ram"),
            *("-chardev", f"socket,id=fs,path={socket}"),
            *("-device", f"vhost-user-fs-device,chardev=fs,tag={WORKSPACE_TAG}"),
        ]
        files = mount_files(config)
        with (
            run_virtiofsd(folder, socket),
            contenders.run_qemu(config, Path(name), options, files) as (client, _),
        ):
            return run_program(client)


def main() -> None:
    """Measure, print a table, and write it as JSON if that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    plain = contenders.find_config("git")
    samples: dict[str, list[dict[str, float]]] = {"voidbox": [], "QEMU/virtiofsd": []}
    for _ in range(options.rounds):
        for contender, found in samples.items():
            with make_folder(options.files) as folder:
                share = ShareConfig(str(folder), WORKSPACE_TAG, target=WORKSPACE_PATH)
                config = plain._replace(shares=(share,))
                if contender == "voidbox":
                    found.append(contenders.run_voidbox(config, run_program))
                else:
                    found.append(run_qemu(config, folder))
            print(f"{contender}: {found[-1]}", file=sys.stderr)
    names = list(samples["voidbox"][0])
    medians = {
        contender: {name: statistics.median(one[name] for one in found) for name in names}
        for contender, found in samples.items()
    }
    print("| | voidbox | QEMU/virtiofsd | voidbox / QEMU | target |\n|---|---|---|---|---|")
    for name in names:
        ours, theirs = (medians[contender][name] for contender in samples)
        is_throughput = name in ("read", "write")
        ratio = theirs / ours if is_throughput else ours / theirs
        target = f"{'≥' if is_throughput else '≤'} {TARGETS[name]}" if name in TARGETS else ""
        print(f"| {name} | {ours:.2f} s | {theirs:.2f} s | {ratio:.2f} | {target} |")
    if options.output:
        options.output.write_text(json.dumps(samples, indent=1))


if __name__ == "__main__":
    main()
