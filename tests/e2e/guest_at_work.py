"""What a guest is at when it is saved: one program, for each more is dear in the lab's guests.

    python3 guest_at_work.py TCP_PORT DISK

It notes what it sees in /tmp, for the host to read. At first nothing but sleepers: anything that is
at work would set timers anew after a restore. A line written to the FIFO /tmp/go starts the rest.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import socket
import struct
import sys
import threading
import time

# A page that the host finds in the guest's memory, and reads there: what asked the guest for it
# would wake what sleeps. Made at run time, or the program's own text would be found.
MARK = hashlib.sha256(b"notes of the watchers").digest()
MARK_AT = 2048
NOTE = struct.Struct("<3d")  # how often it woke, how often its clock had fallen, its clock
BLOCK, BLOCKS = 65536, 200


def note(name: str, text: str) -> None:
    with open(f"/tmp/{name}.new", "w") as file:
        file.write(text)
    os.rename(f"/tmp/{name}.new", f"/tmp/{name}")


def watch(notes: mmap.mmap, index: int, cpu: int) -> None:
    """Sleep on one CPU, and note what is seen of the clock."""
    os.sched_setaffinity(0, {cpu})
    last, count, fell = time.monotonic(), 0, 0
    while True:
        time.sleep(1.5)
        now = time.monotonic()
        fell, count, last = fell + (now < last), count + 1, now
        NOTE.pack_into(notes, NOTE.size * index, count, fell, now)


def wait(name: str, sock: socket.socket) -> None:
    """Read what never comes, from a far TCP server or a port of the host's vsock."""
    note(f"waits-{name}", "x")
    try:
        result = "data" if sock.recv(1) else "end"
    except OSError as error:
        result = type(error).__name__
    note(name, result)


def serve() -> None:
    listener = socket.create_server(("0.0.0.0", 8000))
    while True:
        connection, _ = listener.accept()
        with contextlib.suppress(OSError):
            connection.sendall(b"hello")
            connection.close()


def flood() -> None:
    while True:
        with open("/dev/ttyS0", "w") as console:
            console.write("flood\n" * 10)
        time.sleep(0.5)


def block(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest() * (BLOCK // 32)


def write_disk(path: str) -> None:
    """Write blocks that say what they are, and remember which is where; compare at the end."""
    fd = os.open(path, os.O_RDWR)
    latest: dict[int, int] = {}
    number = 0
    while not os.path.exists("/tmp/stop"):
        os.pwrite(fd, block(number), number * 37 % BLOCKS * BLOCK)
        if number % 4 == 3:
            os.fsync(fd)
            time.sleep(0.3)
        latest[number * 37 % BLOCKS] = number
        number += 1
        if number == 20:
            note("writes", "x")
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    wrong = [at for at, n in latest.items() if os.pread(fd, BLOCK, at * BLOCK) != block(n)]
    note("disk", f"{len(wrong)} wrong of {len(latest)}")


def main() -> None:
    os.mkfifo("/tmp/go")
    fd = os.open("/tmp/watch", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 4096)
    notes = mmap.mmap(fd, 4096)
    notes[MARK_AT : MARK_AT + len(MARK)] = MARK
    for index, cpu in enumerate(sorted(os.sched_getaffinity(0))):
        threading.Thread(target=watch, args=(notes, index, cpu)).start()
    tcp = socket.create_connection(("10.0.2.2", int(sys.argv[1])))
    vsock = socket.socket(socket.AF_VSOCK)
    vsock.connect((2, 5000))
    for name, sock in (("tcp", tcp), ("vsock", vsock)):
        threading.Thread(target=wait, args=(name, sock)).start()
    threading.Thread(target=serve).start()
    with open("/tmp/go") as go:
        go.read()
    threading.Thread(target=flood).start()
    write_disk(sys.argv[2])


if __name__ == "__main__":
    main()
