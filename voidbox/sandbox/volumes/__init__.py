"""What a guest has besides its root: folders of the host, and volumes that outlive it.

spec     what a user says: SOURCE:TARGET[:ro], a folder of the host or a named volume
store    the named volumes of a state folder: disks, for one that writes at a time
attach   from what was said to a machine with it

A named volume is a sparse file. The first guest that gets it makes an ext4 file system on it: no
program of the host's ever reads what a guest wrote there.
"""
