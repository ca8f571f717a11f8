"""SWE-ReX's own requests, against a deployment to stand-ins of virtual machines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("swerex", reason="SWE-ReX is not installed: make test-ray does that")

from swerex.exceptions import (
    BashIncorrectSyntaxError,
    CommandTimeoutError,
    DeploymentNotStartedError,
    NonZeroExitCodeError,
    SessionDoesNotExistError,
    SessionExistsError,
)
from swerex.runtime.abstract import (
    BashAction,
    BashInterruptAction,
    CloseBashSessionRequest,
    Command,
    CreateBashSessionRequest,
    ReadFileRequest,
    UploadRequest,
    WriteFileRequest,
)

from tests.unit.sandbox.conftest import in_event_loop
from voidbox.adapters.swerex import VoidboxDeployment
from voidbox.pool.aio import AsyncPool

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


def own(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != "host_memory"}


@in_event_loop
async def test_a_deployment(options: dict[str, Any], tmp_path: Path) -> None:
    deployment = VoidboxDeployment(**own(options))
    with pytest.raises(DeploymentNotStartedError):
        await deployment.is_alive()
    await deployment.start()
    try:
        runtime = deployment.runtime
        assert await deployment.is_alive()
        done = await runtime.execute(Command(command="echo out; echo err >&2; exit 3", shell=True))
        assert (done.stdout, done.stderr, done.exit_code) == ("out\n", "err\n", 3)
        done = await runtime.execute(
            Command(command=["sh", "-c", "echo 1; echo 2 >&2"], merge_output_streams=True)
        )
        assert (done.stdout, done.stderr) == ("1\n2\n", "")
        with pytest.raises(NonZeroExitCodeError, match="why"):
            await runtime.execute(Command(command=["false"], check=True, error_msg="why"))
        with pytest.raises(CommandTimeoutError):
            await runtime.execute(Command(command=["sleep", "1000"], timeout=0.5))
        path = str(tmp_path / "file")
        await runtime.write_file(WriteFileRequest(path=path, content="é"))
        assert (await runtime.read_file(ReadFileRequest(path=path))).content == "é"
        with pytest.raises(FileNotFoundError):
            await runtime.read_file(ReadFileRequest(path=f"{path}-not"))
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "x").write_text("there")
        await runtime.upload(
            UploadRequest(source_path=str(tmp_path / "folder"), target_path=str(tmp_path / "up"))
        )
        assert (tmp_path / "up" / "x").read_text() == "there"
    finally:
        await deployment.stop()
    with pytest.raises(DeploymentNotStartedError):
        _ = deployment.runtime


@in_event_loop
async def test_sessions(options: dict[str, Any], tmp_path: Path) -> None:
    async with AsyncPool(1, **options) as pool:
        deployment = VoidboxDeployment(pool=pool)
        await deployment.start()
        runtime = deployment.runtime
        (tmp_path / "rc").write_text("export FROM_RC=yes; echo sourced")
        made = await runtime.create_session(
            CreateBashSessionRequest(startup_source=[str(tmp_path / "rc")])
        )
        assert "sourced" in made.output
        with pytest.raises(SessionExistsError):
            await runtime.create_session(CreateBashSessionRequest())

        async def run(command: str, **values: Any) -> tuple[str, int | None]:
            found = await runtime.run_in_session(BashAction(command=command, **values))
            return found.output, found.exit_code

        assert await run("echo $FROM_RC") == ("yes", 0)
        assert await run("cd /; x=5") == ("", 0)
        assert await run("pwd; echo $x") == ("/\n5", 0)
        assert await run("false", check="silent") == ("", 1)
        assert await run("false", check="ignore") == ("", None)
        with pytest.raises(NonZeroExitCodeError):
            await run("ls /there/is/none")
        assert await run("for i in 1 2; do\n  echo $i\ndone") == ("1\n2", 0)
        assert await run("cat <<'EOF'\n$a 'b'\nEOF") == ("$a 'b'", 0)
        output, _ = await run("seq 20000")
        assert output.split() == [str(number) for number in range(1, 20001)]
        with pytest.raises(BashIncorrectSyntaxError):
            await run("echo 'open")
        with pytest.raises(CommandTimeoutError):
            await run("sleep 1000", timeout=0.5)
        await runtime.run_in_session(BashInterruptAction(timeout=10))
        assert await run("echo on") == ("on", 0)
        found = await runtime.run_in_session(
            BashAction(command="python3 -i -q", is_interactive_command=True, expect=[">>> "])
        )
        assert found.expect_string == ">>> "
        found = await runtime.run_in_session(
            BashAction(command="print(6 * 7)", is_interactive_command=True, expect=[">>> "])
        )
        assert "42" in found.output
        await runtime.run_in_session(BashAction(command="exit()", is_interactive_quit=True))
        assert await run("echo back") == ("back", 0)
        await runtime.close_session(CloseBashSessionRequest())
        with pytest.raises(SessionDoesNotExistError):
            await run("true")
        await deployment.stop()
        assert pool.stats().given == 0
