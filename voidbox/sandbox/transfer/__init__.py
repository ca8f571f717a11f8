"""Files and folders, between the host and a guest, both ways.

upload      to the guest, whole folders, several files at a time
download    from the guest; transfer: what both have in common
trees       what is in a folder; listing: what a guest says that is in it, checked and bounded
pieces      one file's way, checked and resumed
steady      a file that changes while it is read
again       once more over a new connection
threads     the disk, by threads that nobody leaves behind
telling     how far it is
host_tree   a folder of the host that a hostile guest cannot write out of
"""
