"""An agent of LangChain's deepagents does a task in a sandbox; the model is a stand-in.

    PYTHON_WITH_LANGCHAIN deepagent.py FOLDER

Prints {"answer": the agent's last words}.
"""

import json
import sys

from deepagents import create_deep_agent
from e2b import Sandbox
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_e2b import E2BSandbox

FOLDER = sys.argv[1]
CALLS = [
    ("write_file", {"file_path": f"{FOLDER}/job.sh", "content": "echo $((6 * 7)) > answer\n"}),
    ("execute", {"command": f"cd {FOLDER} && sh job.sh && cat answer && echo $E2B_SANDBOX"}),
    ("read_file", {"file_path": f"{FOLDER}/answer"}),
]


class StandIn(BaseChatModel):
    """Calls one tool after the other, then says what they answered."""

    @property
    def _llm_type(self):
        return "stand-in"

    def bind_tools(self, tools, **_):
        return self

    def _generate(self, messages, stop=None, run_manager=None, **_):
        answers = [str(one.content) for one in messages if one.type == "tool"]
        if len(answers) == len(CALLS):
            message = AIMessage(content=json.dumps(answers))
        else:
            name, args = CALLS[len(answers)]
            call = {"name": name, "args": args, "id": f"call-{len(answers)}"}
            message = AIMessage(content="", tool_calls=[call])
        return ChatResult(generations=[ChatGeneration(message=message)])


def main():
    box = Sandbox.create(timeout=600)
    try:
        agent = create_deep_agent(model=StandIn(), backend=E2BSandbox(sandbox=box, workdir=FOLDER))
        task = {"messages": [{"role": "user", "content": "Find the answer."}]}
        print(json.dumps({"answer": agent.invoke(task)["messages"][-1].content}))
    finally:
        box.kill()


main()
