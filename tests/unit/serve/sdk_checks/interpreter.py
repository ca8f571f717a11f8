"""What e2b-code-interpreter does with the server, run by the SDK's own interpreter.

    SDK_PYTHON interpreter.py PYTHON

PYTHON is what has ipykernel, in the sandbox. Prints {name of a check: "" or what went wrong}.
"""

import asyncio
import base64
import sys
import threading
import time

from checking import check, raises, run_all
from e2b import NotFoundException, SandboxException, TimeoutException
from e2b_code_interpreter import AsyncSandbox, Sandbox

ENVS = {"VOIDBOX_INTERPRETER": sys.argv[1], "OF_THE_SANDBOX": "yes"}
DEADLINE_S = 120


@check
def basic(box):
    execution = box.run_code("x = 1; x + 1")
    assert execution.text == "2" and execution.error is None
    assert box.run_code("x").text == "1"  # it is the same kernel
    assert box.run_code("'text'").text == "text"


@check
def streams(box):
    out, err = [], []
    code = "import sys, time\nprint('one'); sys.stdout.flush(); time.sleep(0.3)\nprint('two')"
    code += "\nprint('bad', file=sys.stderr)"
    execution = box.run_code(
        code, on_stdout=lambda m: out.append(m.line), on_stderr=lambda m: err.append(m.line)
    )
    assert execution.logs.stdout == out == ["one\n", "two\n"], out
    assert execution.logs.stderr == err == ["bad\n"]


@check
def errors(box):
    found = []
    execution = box.run_code("1/0", on_error=found.append)
    assert execution.error.name == "ZeroDivisionError" and found == [execution.error]
    assert "division by zero" in execution.error.traceback
    assert box.run_code("x = = 1").error.name == "SyntaxError"


@check
def ipython(box):
    assert box.run_code("!echo shell").logs.stdout == ["shell\r\n"]
    assert box.run_code("import asyncio; await asyncio.sleep(0.01); 'awaited'").text == "awaited"
    box.run_code("%cd /")
    assert box.run_code("import os; os.getcwd()").text == "/"


@check
def execution_counts(box):
    context = box.create_code_context()
    assert [box.run_code("1", context=context).execution_count for _ in range(2)] == [1, 2]
    box.remove_code_context(context)


@check
def forms(box):
    code = """
from IPython.display import display, HTML, Markdown, JSON, Latex, Javascript, SVG
display(HTML("<b>h</b>")); display(Markdown("*m*")); display(JSON({"a": 1}))
display(Latex("$x$")); display(Javascript("1")); display(SVG("<svg xmlns='http://www.w3.org/2000/svg'/>"))
display({"application/x-own": "mine"}, raw=True)
42
"""
    results = box.run_code(code).results
    assert results[0].html == "<b>h</b>" and results[1].markdown == "*m*"
    assert results[2].json == {"a": 1} and results[3].latex == "$x$"
    assert results[4].javascript == "1" and "<svg" in results[5].svg
    assert results[6].extra == {"application/x-own": "mine"}
    assert results[7].is_main_result and results[7].text == "42"
    assert not any(one.is_main_result for one in results[:7])


@check
def charts(box):
    code = """
import matplotlib.pyplot as plt
plt.plot([1, 2], [3, 4], label="rise"); plt.title("T"); plt.xlabel("time (s)"); plt.show()
plt.bar(["a", "b"], [1, 2]); plt.show()
plt.pie([1, 3], labels=["p", "q"]); plt.show()
plt.scatter([1, 2], [3, 4]); plt.show()
plt.boxplot([[1, 2, 3, 4, 5, 50]]); plt.show()
figure, (left, right) = plt.subplots(1, 2); left.plot([1, 2]); right.bar(["x"], [2]); plt.show()
"""
    results = box.run_code(code).results
    line, bar, pie, scatter, boxes, both = (one.chart for one in results)
    assert base64.b64decode(results[0].png)[1:4] == b"PNG"
    assert (line.type, line.title, line.x_label, line.x_unit) == ("line", "T", "time (s)", "s")
    assert line.elements[0].label == "rise" and line.elements[0].points == [(1, 3), (2, 4)]
    assert [(one.label, one.value) for one in bar.elements] == [("a", 1), ("b", 2)]
    assert [(one.label, round(one.angle)) for one in pie.elements] == [("p", 90), ("q", 270)]
    assert scatter.elements[0].points == [(1, 3), (2, 4)]
    (box_of,) = boxes.elements
    assert (box_of.min, box_of.median, box_of.max, box_of.outliers) == (1, 3.5, 5, [50])
    assert [one.type for one in both.elements] == ["line", "bar"]


@check
def tables(box):
    code = "import pandas as pd; pd.DataFrame({'a': [1, None], 'b': ['x', 'y']})"
    result = box.run_code(code).results[0]
    assert result.data == {"a": [1, None], "b": ["x", "y"]} and "<table" in result.html


@check
def variables(box):
    get = "import os; print(os.environ.get('OF_THE_SANDBOX'), os.environ.get('OF_THE_CALL'))"
    assert box.run_code(get, envs={"OF_THE_CALL": "1"}).logs.stdout == ["yes 1\n"]
    assert box.run_code(get).logs.stdout == ["yes None\n"]


@check
def contexts(box):
    context = box.create_code_context(cwd="/tmp", language="python")
    assert context.language == "python" and context.cwd == "/tmp"
    assert box.run_code("import os; os.getcwd()", context=context).text == "/tmp"
    box.run_code("y = 1", context=context)
    assert box.run_code("y").error.name == "NameError"
    assert context.id in [one.id for one in box.list_code_contexts()]
    box.restart_code_context(context)
    assert box.run_code("y", context=context).error.name == "NameError"
    box.remove_code_context(context)
    assert context.id not in [one.id for one in box.list_code_contexts()]
    raises(NotFoundException, box.run_code, "1", context=context)
    raises(NotFoundException, box.remove_code_context, context)
    error = raises(SandboxException, box.run_code, "1", language="cobol")
    assert "no kernel for 'cobol'" in str(error)


@check
def a_time_limit_interrupts(box):
    box.run_code("z = 0")
    loop = "import time\nwhile True:\n    z += 1; time.sleep(0.05)"
    raises(TimeoutException, box.run_code, loop, timeout=3)
    first = box.run_code("z", timeout=DEADLINE_S).text  # which waits for the interrupt
    time.sleep(0.5)
    assert box.run_code("z").text == first


@check
def executions_wait_for_each_other(box):
    box.run_code("seen = []")
    code = "import time; seen.append({0}); time.sleep(0.5); seen.append({0})"
    threads = [
        threading.Thread(target=box.run_code, args=(code.format(number),)) for number in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    seen = eval(box.run_code("seen").text)
    assert sorted(seen) == [0, 0, 1, 1, 2, 2] and seen[::2] == seen[1::2]


@check
def a_kernel_that_dies(box):
    context = box.create_code_context()
    execution = box.run_code("import os; os._exit(1)", context=context)
    assert execution.error.name == "KernelDied"
    assert box.run_code("1 + 1", context=context).text == "2"
    box.remove_code_context(context)


@check
def much_output(box):
    execution = box.run_code("for n in range(200): print('x' * 10000)")
    assert sum(map(len, execution.logs.stdout)) == 200 * 10001


@check
def after_a_pause(box):
    box.run_code("kept = 'in memory'")
    if sys.argv[2:] == ["real"]:
        box.pause()
        box.connect()
    assert box.run_code("kept").text == "in memory"


@check
def asynchronous(box):
    async def run():
        other = await AsyncSandbox.connect(box.sandbox_id)
        seen = []
        execution = await other.run_code("print(1); 2", on_stdout=lambda m: seen.append(m.line))
        assert execution.text == "2" and seen == ["1\n"]

    asyncio.run(run())


run_all(Sandbox.create(timeout=900, envs=ENVS))
