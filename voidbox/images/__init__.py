"""Images: trees of files from layers, archives and folders, packed as one read-only file system."""
