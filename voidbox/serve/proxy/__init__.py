"""What listens on a sandbox's ports, over HTTP and WebSockets; no port of the host is needed."""
