"""The code interpreter: what e2b-code-interpreter asks of a sandbox's port 49999.

bridge/   runs in the guest, as the image's user: HTTP in front of Jupyter's kernels
starting  brings it into a guest whose port 49999 somebody asks for

The bridge comes with the server, not with the image. An image needs ipykernel alone.
"""
