"""Files and folders, between the host and a guest, both ways.

transfer    whole folders, several files at a time; trees: what is in them
pieces      one file's way, checked and resumed
host_tree   a folder of the host that a hostile guest cannot write out of
"""
