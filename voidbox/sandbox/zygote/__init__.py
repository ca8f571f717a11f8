"""The zygote: a process that has imported what sandboxes' processes do, and forks them.

client     what a program holds; it ends with that
process    the zygote itself; one thread, no machine, no guest
protocol   what goes between the two

What it forks has the same layout of addresses and the same hash seed as its siblings: who learns
them in one sandbox's process knows them of all. Who minds starts each as a process of its own.
"""
