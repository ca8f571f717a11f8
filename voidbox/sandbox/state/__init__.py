"""The sandboxes of a user, on the disk, for any number of processes.

store         what others use: made, found, changed, removed
records       what is kept of one
lifecycle     its states, and how one follows another
names         what it is called
allocators    which CID and which ports it has
state_folder  where all that is, and how it stays whole; cleaning helps, and voidbox.storage
"""
