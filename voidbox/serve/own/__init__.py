"""Our own interface, below /voidbox/v1: what voidbox.remote speaks, for --remote and remote=."""
