"""What a guest's disk is on the host: files, block devices, and overlays over them.

    open_backend(path, …) ─► RawBackend        an image file or a block device
                          └► OverlayBackend    a file of what was written, over a base that others
                                               share

A backend reads and writes guest memory in place and knows nothing of virtio. Everything it does may
block, but for what is asked with `nowait`; threads are the caller's business (see workers).
"""
