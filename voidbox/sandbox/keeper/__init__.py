"""The keeper: what a broken machine must not have, done beside the worker and asked for by it.

    worker                                      keeper
    machine, devices, network stack, files ──►  the network's policy, DNS, the making of sockets
                                                connections to Unix sockets of the host
                                                what seccomp refuses: answered, and said in the log

It is a loop of whoever started the worker: of a sandbox's process, which keeps the record, the
logs and the control socket as well, or of a command or program that has a guest of its own.
"""
