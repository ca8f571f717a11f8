"""The machine: vCPU threads, the event loop, and everything wired together."""
