"""What users run: a machine with the agent in it, and what is kept of it on the disk.

guest         a machine that boots the guest image, and the way to its agent
store         the sandboxes of a user, for any number of processes
records       what is kept of one
lifecycle     its states, and how one follows another
names         what it is called
allocators    which CID and which ports it has
state_folder  where all that is, and how it stays whole; cleaning, durable and locking help
"""
