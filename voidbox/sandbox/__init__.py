"""What users run: a machine with the agent in it, and what is kept of it on the disk.

guest         a machine that boots the guest image, and the way to its agent
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
