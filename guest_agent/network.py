"""The guest's network, configured statically from what the host wrote into the image's tail."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct

from guest_agent import plain_files, protocol, root
from guest_agent.loop import log

# linux/sockios.h, linux/if.h, linux/route.h
_SIOCADDRT = 0x890B
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_SIOCSIFADDR, _SIOCSIFNETMASK = 0x8916, 0x891C
_IFF_UP = 1
_RTF_UP, _RTF_GATEWAY = 1, 2
# struct ifreq { char name[16]; union { short flags; struct sockaddr_in addr; char pad[24]; }; };
_IFREQ_FLAGS = struct.Struct("16sh22x")
_IFREQ_ADDRESS = struct.Struct("16s16s8x")
# struct sockaddr_in { short family; u16 port; u32 address; char zero[8]; };
_SOCKADDR = struct.Struct("=HH4s8x")
# struct rtentry { unsigned long pad1; struct sockaddr dst, gateway, genmask; unsigned short flags;
#     short pad2; unsigned long pad3; void *pad4; short metric; char *dev; unsigned long mtu;
#     unsigned long window; unsigned short irtt; };
_RTENTRY = struct.Struct("@L16s16s16sHhLPhPLLH6x")
assert _RTENTRY.size == 120

_SYSCTLS = {
    # A server on port 80 needs no root: the machine is the sandbox's alone.
    "/proc/sys/net/ipv4/ip_unprivileged_port_start": "0",
    "/proc/sys/net/ipv4/ping_group_range": "0 2147483647",  # everybody, as on other systems
    # Send large segments whatever the round trip takes: Linux makes them small where it thinks that
    # they would queue up in a router, and here each costs the same whatever its size.
    "/proc/sys/net/ipv4/tcp_tso_rtt_log": "31",
}
SYS_NET = "/sys/class/net"
RESOLV_CONF = "/etc/resolv.conf"


def set_up() -> None:
    """Bring the loopback up, and the network if the host gave one."""
    for name, value in _SYSCTLS.items():
        with contextlib.suppress(FileNotFoundError), open(name, "w", encoding="ascii") as file:
            file.write(value)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        _raise(sock, b"lo")
        settings = _read_settings()
        if not settings:
            return
        name = _find_interface()
        if name is None:
            log("no network interface: does the kernel have virtio_net?")
            return
        address, _, bits = settings["address"].partition("/")
        mask = (0xFFFFFFFF << (32 - int(bits)) & 0xFFFFFFFF).to_bytes(4, "big")
        _set_address(sock, _SIOCSIFADDR, name, socket.inet_aton(address))
        _set_address(sock, _SIOCSIFNETMASK, name, mask)
        _raise(sock, name)
        _add_default_route(sock, socket.inet_aton(settings["gateway"]))
    _write_resolv_conf(settings["dns"], settings.get("search", "").replace(",", " "))


def _read_settings() -> dict[str, str]:
    try:
        with open(root.PREFIX + protocol.NETWORK_PATH, encoding="ascii") as file:
            return dict(line.split() for line in file)
    except FileNotFoundError:
        return {}


def _find_interface() -> bytes | None:
    # Only a device has this link; the loopback and tunnels have not.
    names = [n for n in sorted(os.listdir(SYS_NET)) if os.path.exists(f"{SYS_NET}/{n}/device")]
    return names[0].encode() if names else None


def _raise(sock: socket.socket, name: bytes) -> None:
    request = _IFREQ_FLAGS.pack(name, 0)
    flags = _IFREQ_FLAGS.unpack(fcntl.ioctl(sock, _SIOCGIFFLAGS, request))[1]
    fcntl.ioctl(sock, _SIOCSIFFLAGS, _IFREQ_FLAGS.pack(name, flags | _IFF_UP))


def _sockaddr(address: bytes) -> bytes:
    return _SOCKADDR.pack(socket.AF_INET, 0, address)


def _set_address(sock: socket.socket, request: int, name: bytes, address: bytes) -> None:
    fcntl.ioctl(sock, request, _IFREQ_ADDRESS.pack(name, _sockaddr(address)))


def _add_default_route(sock: socket.socket, gateway: bytes) -> None:
    anywhere = _sockaddr(bytes(4))
    flags = _RTF_UP | _RTF_GATEWAY
    entry = _RTENTRY.pack(0, anywhere, _sockaddr(gateway), anywhere, flags, 0, 0, 0, 0, 0, 0, 0, 0)
    fcntl.ioctl(sock, _SIOCADDRT, entry)


def _write_resolv_conf(server: str, search: str = "") -> None:
    search_line = f"search {search}\n" if search else ""
    plain_files.replace(RESOLV_CONF, f"nameserver {server}\n{search_line}")
