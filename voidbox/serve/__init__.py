"""`voidbox serve`: sandboxes over HTTP, in the words of E2B's SDKs.

    SDK ─ X-API-KEY ─────► control/   create, list, pause, snapshot …       ─┐
    SDK ─ X-Access-Token ► envd/      processes, files, watches of one       ├─► registry ─► the SDK
    browsers, SDK ───────► proxy/     whatever listens on one's ports       ─┘
    people ──────────────► dashboard/ pages

One port serves all of it: gateway.py tells them apart. What a sandbox is to the server is written
in the sandbox's own record (marks.py), so a server that was killed finds all of them again.

Nothing here is imported unless the command runs; it needs the extra "serve".
"""
