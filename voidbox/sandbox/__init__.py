"""What users run: a machine with the agent in it.

guest    a machine that boots the guest image, and the way to its agent
relay    messages between the sandboxes of a team: serves the guest's programs
  courier    carries them to other sandboxes, on threads of its own (workers)
  mailbox    those that came
  relay_protocol, relay_requests, rate    frames (shared with the guest), requests, their pace
"""
