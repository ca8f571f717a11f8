"""Snapshots of sandboxes, on the disk: what they are called, what they rest on, which may go.

record      what is kept of one beside the machine
shelf       STATE/snapshots: made, found, checked and removed by any process of the user's
restored    from a snapshot to the record of a sandbox made of it
templates   STATE/templates: what create() restores instead of booting
rests_on    the files that a snapshot cannot do without

How a machine gets into them and out of them: sandbox/process/snapshotting and restoring. The files
themselves are voidbox/snapshot's.
"""
