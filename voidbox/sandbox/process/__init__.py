"""The process of one sandbox.

program         what voidbox.sandbox.launch starts
owner           its life, from there to its last word
recipe          from a record to a machine
operations      what can be asked of it, through control_server
published       its ports that the host offers
heartbeat       whether the guest's agent lives
limits          the time limit, and the end of the process that owns it
stopping        its end, politely first
logs            its log, and the guest's console's
"""
