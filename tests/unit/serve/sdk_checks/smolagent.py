"""An agent of smolagents does a task, its code run by the server; the model is a stand-in.

    PYTHON_WITH_SMOLAGENTS smolagent.py PYTHON

PYTHON is what has ipykernel, in the sandbox. Prints {"answer": what the agent gave}.
"""

import json
import sys

from smolagents import CodeAgent
from smolagents.models import ChatMessage, MessageRole, Model

STEPS = [
    "Thought: I count.\n<code>\nimport os\nnumbers = [n * n for n in range(5)]\n"
    "print(sum(numbers))\n</code>",
    "Thought: the state is kept, and it is another machine.\n<code>\n"
    "final_answer([sum(numbers), os.environ['E2B_SANDBOX']])\n</code>",
]


class StandIn(Model):
    """Says its lines, whatever it is told; and notes what it was told."""

    def __init__(self):
        super().__init__(model_id="stand-in")
        self.told = []

    def generate(self, messages, **_):
        self.told.append(str(messages[-1].content))
        return ChatMessage(role=MessageRole.ASSISTANT, content=STEPS[len(self.told) - 1])


def main():
    model = StandIn()
    with CodeAgent(
        tools=[],
        model=model,
        executor_type="e2b",
        executor_kwargs={"envs": {"VOIDBOX_INTERPRETER": sys.argv[1]}},
        additional_authorized_imports=[],
        verbosity_level=0,
    ) as agent:
        answer = agent.run("Add the squares below five.", max_steps=3)
    assert "30" in model.told[1], model.told
    print(json.dumps({"answer": answer}))


main()
