"""Many sandboxes of one kind, never more than the host should have at once.

aio         AsyncPool: who gets a sandbox
giving      what every pool offers, also one of many hosts
members     what there is, and when the next is started
sync        Pool: the same, blocking
member      a sandbox that a pool gives out
start_limit how many are started at a time
host_memory whether the host has memory for one more
options     what a pool is told
stats       what it says of itself
"""
