"""The data plane of one sandbox, in the words of E2B's envd: processes, files, watches.

Connect calls with JSON (wire.py), and /files as plain HTTP (files.py). Whom a request acts as and
whether it may is access.py's.
"""
