"""What users run: a machine with the agent in it, kept on the disk, in a process of its own.

aio           AsyncSandbox; sync: Sandbox, the same for programs that block
  commands      its commands, each a command_handle with a command_result; pty: on terminals
  files         its files; see transfer for how they travel
  ports         what it offers on the host
  session       what these share: the agent, and what the sandbox was told once
  draft         from create()'s arguments to a record; launching: its start, to be waited for
  info          what it tells of itself; log_reader: its logs, lines of a log_file
facade        how sync is made of aio; sync_commands and sync_files too, on loop_thread
launch        starts the process of a sandbox; parent_pipe: how that learns of the end of this one
control       how other processes ask it; endpoint: how they reach its guest
guest         a machine that boots the guest image, and the way to its agent

state/        the sandboxes of a user, on the disk
process/      the process of one sandbox
transfer/     files and folders, both ways
relay/        messages between the sandboxes of a team
"""
