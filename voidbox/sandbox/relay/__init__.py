"""Messages between the sandboxes of a team.

team        one sandbox among the others: who they are, how they are written to
server      serves the programs of its guest: protocol (shared with the guest), requests, rate
courier     carries their messages to other sandboxes, on threads of its own (workers)
mailbox     those that came
"""
