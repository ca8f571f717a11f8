"""A FUSE server: a folder of the host, as a guest's kernel mounts it, and nothing outside it.

    request ─► Server.handle ─► handlers of names, files, attributes ─► Folder ─► openat and kin

numbers     what messages and flags are called (linux/fuse.h); wire: what they are made of
nodes       what the client knows: nodes, each a place in the folder, counted as the client counts
handles     what it has open
folder      from a node to a descriptor, by steps that follow no link
owners      who the host's users are in the guest; cache: how long the client may believe us
server      sessions, and which message goes to whom

The client is hostile. What carries its messages is told in voidbox/virtio/fs.py.
"""
