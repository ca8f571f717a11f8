"""What E2B's Python SDK does with the server, run by the SDK's own interpreter.

    SDK_PYTHON checks.py FOLDER

The settings are in the environment, as users have them. Prints {name of a check: "" or what went
wrong} as JSON. Only what all supported versions have; `only` says since when something is there.
"""

import asyncio
import sys
import threading
import time
import urllib.request

import building  # noqa: F401 - it has checks
import e2b
from checking import check, only, raises, run_all
from e2b import AsyncSandbox, CommandExitException, FileType, Sandbox

FOLDER = sys.argv[1]
DEADLINE_S = 60


def wait_until(condition, what):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


# Commands.


@check
def commands_run(box):
    result = box.commands.run("echo out; echo err >&2; echo $A", envs={"A": "1"}, cwd=FOLDER)
    assert (result.stdout, result.stderr, result.exit_code) == ("out\n1\n", "err\n", 0)
    error = raises(CommandExitException, box.commands.run, "echo no; exit 7")
    assert error.exit_code == 7 and error.stdout == "no\n"
    assert box.commands.run("printf 'ü 漢\\n'").stdout == "ü 漢\n"


@check
def commands_callbacks(box):
    seen = []
    box.commands.run("echo one; echo two >&2", on_stdout=seen.append, on_stderr=seen.append)
    assert sorted(str(one).strip() for one in seen) == ["one", "two"]


@check
def commands_missing_folder(box):
    raises(Exception, box.commands.run, "true", cwd="/no/such/folder")


@check
def commands_time_limit(box):
    raises(e2b.TimeoutException, box.commands.run, "sleep 1000", timeout=2)


@check
def commands_background_and_kill(box):
    handle = box.commands.run("sleep 1000", background=True)
    assert handle.pid in [one.pid for one in box.commands.list()]
    assert handle.kill() is True
    wait_until(lambda: box.commands.kill(handle.pid) is False, "it is gone")


@check
def commands_stdin(box):
    handle = box.commands.run("read line; echo got $line", background=True, stdin=True)
    box.commands.send_stdin(handle.pid, "this\n")
    assert handle.wait().stdout == "got this\n"


@check
def commands_connect(box):
    first = box.commands.run("read line; echo got $line", background=True, stdin=True)
    again = box.commands.connect(first.pid)
    box.commands.send_stdin(first.pid, "that\n")
    assert again.wait().stdout == "got that\n"
    raises(Exception, lambda: box.commands.connect(999999).wait())


@check
def commands_much_output(box):
    assert len(box.commands.run("head -c 3000000 /dev/zero | tr '\\0' x").stdout) == 3_000_000


@check
def pty(box):
    seen = []
    handle = box.pty.create(e2b.PtySize(rows=33, cols=99) if hasattr(e2b, "PtySize") else None)

    def read():
        for _, _, data in handle:
            if data is not None:
                seen.append(data)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    box.pty.send_stdin(handle.pid, b"stty size; echo do''ne\n")
    wait_until(lambda: b"done" in b"".join(seen), "the shell answers")
    assert b"33 99" in b"".join(seen)
    box.pty.resize(handle.pid, e2b.PtySize(rows=44, cols=111))
    box.pty.send_stdin(handle.pid, b"stty size\n")
    wait_until(lambda: b"44 111" in b"".join(seen), "the size has changed")
    assert box.pty.kill(handle.pid) is True
    thread.join(DEADLINE_S)


# Files.


@check
def files_write_and_read(box):
    path = f"{FOLDER}/a/ü b.txt"
    info = box.files.write(path, "hello")
    assert info.path == path and info.name == "ü b.txt"
    assert box.files.read(path) == "hello"
    data = bytes(range(256)) * 4000
    box.files.write(path, data)
    assert bytes(box.files.read(path, format="bytes")) == data
    assert b"".join(box.files.read(path, format="stream")) == data
    box.files.write(path, "")
    assert box.files.read(path) == ""
    raises(e2b.NotFoundException, box.files.read, f"{FOLDER}/none")


@check
def files_list_and_change(box):
    folder = f"{FOLDER}/list"
    assert box.files.make_dir(folder) is True
    assert box.files.make_dir(folder) is False
    box.files.write(f"{folder}/f", "x")
    box.files.make_dir(f"{folder}/d")
    found = {one.name: one.type for one in box.files.list(folder)}
    assert found == {"f": FileType.FILE, "d": FileType.DIR}
    assert box.files.exists(f"{folder}/f") and not box.files.exists(f"{folder}/g")
    assert box.files.rename(f"{folder}/f", f"{folder}/g").path == f"{folder}/g"
    box.files.remove(f"{folder}/g")
    box.files.remove(folder)
    assert not box.files.exists(folder)
    raises(e2b.NotFoundException, box.files.list, folder)


@check
def files_info(box):
    path = f"{FOLDER}/info"
    box.files.write(path, "12345")
    box.commands.run(f"ln -sfn {path} {path}.link")
    info = box.files.get_info(path)
    assert info.size == 5 and info.permissions.startswith("-rw") and info.owner
    assert box.files.get_info(f"{path}.link").symlink_target == path


@check
def files_watch(box):
    folder = f"{FOLDER}/watched"
    box.files.make_dir(folder)
    watch = box.files.watch_dir(folder)
    box.files.write(f"{folder}/new", "x")
    seen = []

    def poll():
        seen.extend(watch.get_new_events())
        return any(event.name == "new" for event in seen)

    wait_until(poll, "the event comes")
    watch.stop()


@check
def files_by_signed_urls(box):
    path = f"{FOLDER}/signed"
    box.files.write(path, "signed")
    url = box.download_url(path, use_signature_expiration=600)
    with urllib.request.urlopen(url, timeout=DEADLINE_S) as answer:
        assert answer.read() == b"signed"


@only(2, 45)
def files_metadata(box):
    path = f"{FOLDER}/meta"
    try:
        box.files.write(path, "x", metadata={"a": "b"})
    except TypeError:
        return  # a version without it
    except e2b.InvalidArgumentException as error:
        assert "no metadata" in str(error)  # this file system keeps none
        return
    assert box.files.get_info(path).metadata == {"a": "b"}


@check
def git(box):
    has_git = box.commands.run("command -v git || true").stdout
    if not hasattr(box, "git") or not has_git:
        return  # an old version, or a small image
    folder = f"{FOLDER}/repository"
    box.commands.run(f"git init -q -b main {folder}")
    box.files.write(f"{folder}/f", "x")
    status = box.git.status(folder)
    assert not status.is_clean


# Sandboxes.


@check
def the_same_by_connect(box):
    again = Sandbox.connect(box.sandbox_id)
    assert again.commands.run("echo again").stdout == "again\n"
    assert box.is_running()


@check
def info_and_lists(box):
    info = box.get_info()
    assert info.metadata == {"check": "a & b=ü"} and info.template_id == "base"
    query = e2b.SandboxQuery(metadata={"check": "a & b=ü"})
    found = Sandbox.list(query=query).next_items()
    assert box.sandbox_id in [one.sandbox_id for one in found]
    other = e2b.SandboxQuery(metadata={"check": "other"})
    assert Sandbox.list(query=other).next_items() == []


@check
def timeouts(box):
    before = box.get_info().end_at
    box.set_timeout(900)
    assert box.get_info().end_at > before


@check
def metrics(box):
    found = []

    def measured():
        found[:] = box.get_metrics()
        return bool(found)

    wait_until(measured, "there are metrics")
    assert found[-1].mem_total > 0 and found[-1].cpu_count > 0


@check
def unknown_template_and_key(box):
    raises(Exception, Sandbox.create, "no-such-template")
    wrong = "e2b_" + "0" * 40
    raises(e2b.AuthenticationException, Sandbox.create, api_key=wrong)


@check
def kill(box):
    other = Sandbox.create(timeout=60)
    assert other.is_running() and other.kill() is True
    assert other.is_running() is False and other.kill() is False
    raises(Exception, other.commands.run, "true")
    assert Sandbox.kill("nosuchsandbox") is False


@check
def pause_and_connect(box):
    pause = getattr(Sandbox, "pause", None) or Sandbox.beta_pause
    other = Sandbox.create(timeout=60)
    pause(other.sandbox_id)
    assert not other.is_running()
    back = Sandbox.connect(other.sandbox_id)
    assert back.commands.run("echo back").stdout == "back\n"
    back.kill()


@only(2, 45)
def snapshots_and_forks(box):
    if not hasattr(box, "create_snapshot"):
        return
    made = box.create_snapshot()
    copy = Sandbox.create(made.snapshot_id, timeout=60)
    assert copy.commands.run("echo copy").stdout == "copy\n"
    copy.kill()
    assert Sandbox.delete_snapshot(made.snapshot_id) is True
    if hasattr(box, "fork"):
        for fork in box.fork():
            sandbox = getattr(fork, "sandbox", fork)
            assert sandbox.sandbox_id != box.sandbox_id
            sandbox.kill()


@check
def asynchronous(box):
    async def run():
        other = await AsyncSandbox.create(timeout=60)
        try:
            results = await asyncio.gather(*(other.commands.run(f"echo {n}") for n in range(5)))
            assert [one.stdout for one in results] == [f"{n}\n" for n in range(5)]
            await other.files.write(f"{FOLDER}/async", "x")
            seen = []
            watch = await other.files.watch_dir(FOLDER, on_event=lambda e: seen.append(e.name))
            await other.files.write(f"{FOLDER}/async-new", "x")
            deadline = time.monotonic() + DEADLINE_S
            while "async-new" not in seen:
                assert time.monotonic() < deadline, "the event comes"
                await asyncio.sleep(0.05)
            await watch.stop()
            handle = await other.commands.run("read x; echo $x", background=True, stdin=True)
            await other.commands.send_stdin(handle.pid, "in\n")
            assert (await handle.wait()).stdout == "in\n"
        finally:
            assert await other.kill() is True

    asyncio.run(run())


box = Sandbox.create(timeout=600, metadata={"check": "a & b=ü"})
box.files.make_dir(FOLDER)
run_all(box)
