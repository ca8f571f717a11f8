"""A code interpreter over HTTP, in the guest. It needs jupyter_client and ipykernel.

server       HTTP: contexts, executions as lines of JSON
contexts     kernels by their IDs, one execution at a time each
kernel       one kernel: code in, messages out
messages     from Jupyter's messages to a client's
kernel_side  runs in Python's kernels: charts, tables, variables of one execution

It runs under whatever Python the image has, from 3.9 on.
"""
