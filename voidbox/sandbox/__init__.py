"""A machine with the agent in it, kept on the disk, in a process of its own.

launch        starts the process of a sandbox
control       how other processes ask it; endpoint: how they reach its guest
session       what requests to it share: the agent, and what the sandbox was told once
guest         a machine that boots the guest image, and the way to its agent
root          what its root is; image_choice: from an image's name to that
log_file      lines of a log that may be rotated

state/        the sandboxes of a user, on the disk
process/      the process of one sandbox
transfer/     files and folders, both ways
workspace/    a folder of the host, copied into the guest and back
relay/        messages between the sandboxes of a team
"""
