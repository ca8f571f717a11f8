"""Virtual sockets: stream connections between the guest and the host's programs.

A vsock address is a CID (which machine; the host is 2) and a 32-bit port. Connections travel as
packets over two virtqueues, each a 44-byte header and up to 64 KiB of data:

    connecting side             accepting side
    REQUEST       ─────────►                      RST: nobody listens there
                  ◄─────────    RESPONSE
    RW            ◄────────►    RW                data, never more than the peer has credit for
    CREDIT_UPDATE ◄────────►    CREDIT_UPDATE     more room; asked for by CREDIT_REQUEST
    SHUTDOWN      ─────────►                      I send no more, I receive no more, or both
                  ◄─────────    RST               answers the SHUTDOWN of both: all is forgotten

Credit: every header says how large its sender's buffer for the connection is (buf_alloc) and how
many bytes have ever left it (fwd_cnt). A side may have buf_alloc bytes under way, so no reader,
however slow, makes anybody's memory grow or holds up another connection.

    packet.py      the header
    connection.py  one connection: its states and its credit            no I/O, no clock
    link.py        what joins a connection to its program
    data_path.py   data of those that are open, which most packets are    no I/O, no clock
    muxer.py       all connections: who is next, limits, time-outs      no I/O, no clock
    unix*.py       the host's end as Unix sockets
    vhost.py       the alternative to all of these: the host kernel's own vhost-vsock
"""
