"""What users run: a machine with the agent in it, and what is kept of it on the disk.

aio           AsyncSandbox; sync: Sandbox, the same for programs that block
  commands      its commands, each a command_handle with a command_result; pty: on terminals
  files         its files
    transfer      files and folders, both ways; trees: what is in them
      pieces        one file's way, checked and resumed
      host_tree     a folder of the host that a hostile guest cannot write out of
  ports         what it offers on the host
  session       what these share: the agent, and what the sandbox was told once
  draft         from create()'s arguments to a record; launching: its start, to be waited for
  info          what it tells of itself; log_reader: its logs
facade        how sync is made of aio; sync_commands and sync_files too, on loop_thread
parent_pipe   how its process learns of the end of this one
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
team          messages between the sandboxes of a team, for one of them
relay         serves the guest's programs
courier       carries them to other sandboxes, on threads of its own (workers)
mailbox       those that came
relay_protocol, relay_requests, rate    frames (shared with the guest), requests, their pace
"""
