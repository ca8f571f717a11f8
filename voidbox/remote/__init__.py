"""Sandboxes of a `voidbox serve` on another machine, or of another user, as if they were here.

address    which server: $VOIDBOX_REMOTE, and the key for it
server     its requests, in JSON over HTTP
tunnel     a socket to a guest's agent, through a WebSocket of the server (extra `[remote]`)
endpoint   a guest as its agent's client sees it

What runs, reads and writes in the guest is the agent's protocol, end to end: the server passes its
bytes on. voidbox.sdk.remote makes an AsyncSandbox of these.
"""
