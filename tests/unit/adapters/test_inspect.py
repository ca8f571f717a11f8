"""Inspect's own checks of a SandboxEnvironment, and a whole evaluation by it."""

from __future__ import annotations

import asyncio
import inspect
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("inspect_ai", reason="Inspect is not installed: make test-ray does that")

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.scorer import CORRECT, Score, Target, accuracy, scorer
from inspect_ai.solver import Generate, TaskState, solver
from inspect_ai.util import sandbox
from inspect_ai.util._sandbox import self_check

from voidbox.adapters.inspect import VoidboxConfig, VoidboxSandboxEnvironment, _pools
from voidbox.errors import AgentError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

# The stand-in's guest is this machine, where the tests' user may be root: it may do everything.
NEEDS_A_MACHINE = {
    "test_read_file_not_allowed",
    "test_write_text_file_without_permissions",
    "test_write_binary_file_without_permissions",
    "test_exec_as_user",  # it makes one
}
KNOWN = {"test_exec_large_command"}  # 1 MiB of arguments: the agent takes 1,000 KiB


def config(options: dict[str, Any], **others: Any) -> VoidboxConfig:
    own = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
    image, memory = own.pop("image"), own.pop("memory")
    return VoidboxConfig(image=image, memory=memory, options=own, size=2, **others)


def checks() -> dict[str, Callable[..., Any]]:
    return {
        name: check
        for name, check in vars(self_check).items()
        if name.startswith("test_") and inspect.iscoroutinefunction(check)
    }


def test_inspects_own_checks(options: dict[str, Any]) -> None:
    wanted = config(options)
    failed: dict[str, str] = {}

    async def test() -> None:
        await VoidboxSandboxEnvironment.task_init("task", wanted)
        made = await VoidboxSandboxEnvironment.sample_init("task", wanted, {})
        for name, check in checks().items():
            if name in NEEDS_A_MACHINE | KNOWN:
                continue
            try:
                async with asyncio.timeout(300):
                    await check(made["default"])
            except (Exception, AssertionError):
                failed[name] = traceback.format_exc(limit=-3)
        await VoidboxSandboxEnvironment.sample_cleanup("task", wanted, made, False)
        await VoidboxSandboxEnvironment.task_cleanup("task", wanted, True)

    assert len(checks()) > 20
    asyncio.run(test())
    assert not failed, "\n".join(f"{name}: {story}" for name, story in failed.items())
    assert not _pools


@solver
def writes() -> Any:
    async def solve(state: TaskState, generate: Generate) -> TaskState:
        done = await sandbox().exec(["sh", "-c", f"echo {state.input_text} >answer; cat answer"])
        state.output.completion = done.stdout.strip()
        return state

    return solve


@scorer(metrics=[accuracy()])
def read_back() -> Any:
    async def score(state: TaskState, target: Target) -> Score:
        answer = (await sandbox().read_file("answer")).strip()
        return Score(value=CORRECT if answer == target.text else "I", answer=answer)

    return score


@solver
def loses() -> Any:
    async def solve(state: TaskState, generate: Generate) -> TaskState:
        environment = sandbox().as_type(VoidboxSandboxEnvironment)
        await environment.sandbox.kill()
        await sandbox().exec(["true"])
        return state

    return solve


def evaluate(wanted: VoidboxConfig, solver: Any, tmp_path: Path) -> Any:
    task = Task(
        dataset=[Sample(input=word, target=word) for word in ("one", "two", "three")],
        solver=solver,
        scorer=read_back(),
        sandbox=("voidbox", wanted),
    )
    return eval(task, model="mockllm/model", log_dir=str(tmp_path / "logs"), display="none")[0]


def test_an_evaluation(options: dict[str, Any], tmp_path: Path) -> None:
    log = evaluate(config(options), writes(), tmp_path)
    assert log.status == "success", log.error
    assert log.results.scores[0].metrics["accuracy"].value == 1.0
    assert not _pools


def test_a_sandbox_that_is_lost_is_no_score(options: dict[str, Any], tmp_path: Path) -> None:
    log = evaluate(config(options), loses(), tmp_path)
    assert log.status == "error"
    assert AgentError.__name__ in log.error.traceback
