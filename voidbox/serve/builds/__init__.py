"""Templates that clients build: FROM, RUN, COPY, ENV, WORKDIR, USER, a start and a ready command.

plan     what a body asks for
uploads  archives for COPY, as they were sent
steps    one after the other, in a sandbox
builder  a build: sandbox, steps, snapshot; and what it says of itself meanwhile

A template is a snapshot, so what its start command has started runs in every sandbox of it.
"""
