"""A web server in a sandbox, which this host offers on a port of its own.

python examples/web_server.py
"""

from __future__ import annotations

import urllib.request

from voidbox import Sandbox

GUEST_PORT = 8000
PAGE = "<h1>Hello from a VM</h1>\n"


def main() -> None:
    """Start it, and fetch a page."""
    # Port 0 is any that is free here. The guest itself may go nowhere: an empty list of names.
    with Sandbox.create(
        publish=[f"0:{GUEST_PORT}"], outbound_domain_allowlist=[], timeout=300
    ) as sandbox:
        sandbox.files.write("index.html", PAGE)
        server = sandbox.exec("python3", "-m", "http.server", str(GUEST_PORT), background=True)
        sandbox.ports.wait_for(GUEST_PORT)
        (published,) = sandbox.ports.list()  # 127.0.0.1:9000:8000/tcp
        url = f"http://{published.host_ip}:{published.host_port}/"
        print(f"{url} → {fetch(url).strip()}")
        log = server.read()
        print(f"the server says: {log.text.strip() if log is not None else 'nothing'}")
        server.kill()


def fetch(url: str) -> str:
    """Return a page."""
    with urllib.request.urlopen(url, timeout=60) as answer:
        return str(answer.read(1 << 20), "utf-8", "replace")


if __name__ == "__main__":
    main()
