"""What programs make and use sandboxes by: written once, as coroutines, and driven from a thread.

aio           AsyncSandbox; sync: Sandbox, the same for programs that block
  commands      its commands, each a command_handle with a command_result; pty: on terminals
  files         its files; watch: what changes in them
  ports         what it offers on the host
  draft         from create()'s arguments to a record; launching: its start, to be waited for
  info          what it tells of itself; log_reader: its logs
facade        how sync is made of aio; sync_commands and sync_files too, on loop_thread
parent_pipe   how a sandbox's process learns of the end of this one

Below it, sandbox/ keeps them: on the disk, and in a process of its own each.
"""
