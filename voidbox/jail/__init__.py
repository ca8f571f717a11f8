"""The jail: what a process may still do once it has given everything else away.

system      system calls by number      bpf         programs for the kernel's packet filter
privileges  what goes with a process    seccomp     which system calls, by such a program
namespaces  its own network, IPC, …     landlock    which files, and TCP not at all
mounts      a root of its own           trial       each of them tried in a child

Pure functions over descriptors and paths: what a sandbox's process needs is said where that is
known, in voidbox.sandbox.process. Without root, without a compiler; nothing happens at import.
"""
