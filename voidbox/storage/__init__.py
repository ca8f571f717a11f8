"""What lies in the state folder is kept whole: files, locks, and where the folder is."""
