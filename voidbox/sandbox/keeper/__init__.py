"""The keeper: a small process beside the machine's, with what a broken machine must not have.

    the sandbox's process                       its keeper, forked before any thread
    machine, devices, network stack, 9P  ──►    the network's policy, DNS, the making of sockets
    its own record, logs, control socket        connections to Unix sockets of the host
                                                other sandboxes: the relay; its folder's removal
                                                what seccomp refuses: answered, and said in the log

The machine's process then makes no socket at all. What it asks for is checked here, by the rules
that the record had when it was started.
"""
