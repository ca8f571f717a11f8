"""Snapshots as files: their format, what may be restored where, guest memory, working sets.

format      machine.bin: checked before it is decoded
plain       named tuples to plain values and back, every type checked
checks      whether this host can continue what another saved
memory      the memory file: written sparse, mapped or read
pagemap     which pages of a mapping are there, and which differ from its file
helper      the process that writes a running machine's memory as it was
files       clones of disks; what is on the disk for good
folder      a snapshot's folder: whole, or not there
digests     whether its memory is still what was written
working_set what a restored guest touched first

Nothing here knows KVM: vmm/snapshot.py reads and sets the machine itself.
"""
