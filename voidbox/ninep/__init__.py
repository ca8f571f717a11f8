"""A 9P2000.L server: a folder of the host, as a guest's kernel mounts it, and nothing outside it.

    request ─► Server.handle ─► handlers of files, names, attributes ─► Folder ─► openat and kin

wire        what messages are made of; numbers: what they are called
folder      the folder: nodes that are descriptors, steps that follow no link
fids        what the client calls things, and how many of them it may have
server      sessions, and which message goes to whom

The client is hostile. What carries its messages is told in voidbox/virtio/ninep.py.
"""
