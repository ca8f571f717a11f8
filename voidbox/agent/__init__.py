"""The host's side of the guest's agent.

protocol, packing and serial_link are shared with guest_agent/ (as symbolic links there).

client     AgentClient: commands, files, metrics, shutdown, as a program uses them
  call       one request: its events for the caller's thread, the caller's data for the link
  link       one thread that moves bytes between a socket and
    core       ClientCore: requests to bytes, bytes to events; sans-IO
aio        AsyncAgent: the same as coroutines, for the sandbox's SDK
connect    find the agent of a guest that is still booting: over vsock, else over the serial line
endpoint   how to reach a guest from another process: a Unix socket, AF_VSOCK
"""
