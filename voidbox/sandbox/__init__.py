"""What users run: a machine with the agent in it, and what is kept of it on the disk.

guest         a machine that boots the guest image, and the way to its agent
owner         the process of one sandbox, started by launch
  recipe        from a record to a machine
  operations    what can be asked of it, through control_server
  heartbeat     whether the guest's agent lives
  limits        the time limit, and the end of the process that owns it
  stopping      its end, politely first
  logs          its log, and the guest's console's
control       how other processes ask it
endpoint      how other processes reach its guest
store         the sandboxes of a user, for any number of processes
records       what is kept of one
lifecycle     its states, and how one follows another
names         what it is called
allocators    which CID and which ports it has
state_folder  where all that is, and how it stays whole; cleaning, durable and locking help
relay         messages between the sandboxes of a team: serves the guest's programs
courier       carries them to other sandboxes, on threads of its own (workers)
mailbox       those that came
relay_protocol, relay_requests, rate    frames (shared with the guest), requests, their pace
"""
