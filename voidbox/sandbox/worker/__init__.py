"""The worker: the process with the machine, its devices and its network stack, and nothing else.

    keeper (a sandbox's process, a command, a program)          worker
    record, control socket, logs, agent, relay, time limit
    orders     ── build, start, pause, snapshot, … ─────────►   does it, and says how it went
               ◄───────────────── log lines, the machine's end
    asks       ◄── a socket to this address, by the rules ───   makes none itself
    queries    ◄── DNS ──────────────────────────────────────   resolves nothing itself
    console    ◄═══ the guest's console, both ways ══════════►

The worker shuts itself in before it looks at anything of the guest's: link starts it, process is
its life, confinement its jail; machine is how the keeper sees it. What comes from a worker is not
believed: it may be somebody else's by then.
"""
