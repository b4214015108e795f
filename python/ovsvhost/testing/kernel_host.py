"""A host that is nothing but Linux's own network stack, in a namespace: what a NIC port's other end is plugged into.

::

    with KernelHost(folder, 2) as host:
        device = host.plug()                  # veth: the end that is returned is outside, for the switch
        switch.vsctl("add-port", "br0", device, "--", "set", "Interface", device, "type=afxdp")
        ping = host.ping("10.0.0.1")

Its sockets are this process's, made inside the namespace, so what arrives is compared here byte for byte. Checksums of
what the kernel sends are computed before it sends them: a frame that goes from kernel to kernel over veth has none
otherwise, and a switch would hand out what it got.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from ovsvhost.nic import ethtool
from ovsvhost.testing.errors import RigError
from ovsvhost.testing.namespace import Namespace, device_name, ip_command
from ovsvhost.testing.traffic import Copy, Ping, address

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ovsvhost.testing.traffic import Address

INSIDE = "eth0"
"""What the host calls its device."""
_ICMP = struct.Struct("!BBHHH")
_ECHO_REQUEST = {socket.AF_INET: 8, socket.AF_INET6: 128}
_PROTOCOL = {socket.AF_INET: socket.IPPROTO_ICMP, socket.AF_INET6: socket.IPPROTO_ICMPV6}
_TRANSFER_TIMEOUT_S = 60
_CHUNK = 1 << 16


class KernelHost(Namespace):
    """A namespace with one device, plugged in by `plug`.

    Args:
        folder: where its log goes.
        number: its place on the test network, 1..254; see `ovsvhost.testing.traffic.address`.
    """

    def __init__(self, folder: Path, number: int) -> None:
        super().__init__(folder, f"host{number}")
        self.number = number
        self.outside = ""

    @property
    def address(self) -> Address:
        """Its addresses."""
        return address(self.number)

    @property
    def mac(self) -> str:
        """Its device's address."""
        return f"02:00:00:00:01:{self.number:02x}"

    def plug(
        self, outside: str = "", *, mtu: int = 1500, queues: int = 1, more_to_send: int = 0, offloads: bool = False
    ) -> str:
        """Makes a veth pair into the host, both ends up, and gives the name of the end that is outside.

        Args:
            outside: its name; a new one if empty.
            mtu: bytes, of both ends.
            queues: queues of either end.
            more_to_send: further queues that the outside end sends on, and receives nothing on.
            offloads: the kernel leaves checksums and segments to whoever gets its frames.
        """
        self.outside = outside or device_name("ov")
        few, many, size = str(queues), str(queues + more_to_send), ("mtu", str(mtu))
        ip_command(
            *("ip", "link", "add", self.outside, *size, "numtxqueues", many, "numrxqueues", few, "type", "veth"),
            *("peer", "name", INSIDE, *size, "numtxqueues", few, "numrxqueues", many),
            *("address", self.mac, "netns", str(self.pid)),
        )
        if not offloads:
            self.inside(lambda: ethtool.set_tx_checksum(INSIDE, on=False))
        self.ip("addr", "add", f"{self.address.ipv4}/24", "dev", INSIDE)
        self.ip("addr", "add", f"{self.address.ipv6}/64", "dev", INSIDE, "nodad")
        self.ip("link", "set", INSIDE, "up")
        ip_command("ip", "link", "set", self.outside, "up")
        return self.outside

    def unplug(self) -> None:
        """Deletes the pair, as if the NIC were pulled out."""
        ip_command("ip", "link", "del", self.outside)
        self.outside = ""

    def stop(self) -> None:
        """Ends it; the pair is deleted by hand, for the kernel ends a namespace when it has the time. Idempotent."""
        if self.outside:
            with contextlib.suppress(RigError):  # the test may have deleted it
                self.unplug()
        super().stop()

    def ping(self, target: str, *, count: int = 3, size: int = 56, timeout_s: float = 5.0) -> Ping:
        """Pings an address, one question at a time.

        Args:
            target: IPv4 or IPv6.
            count: questions.
            size: bytes behind the ICMP header.
            timeout_s: how long each answer is waited for.
        """
        family = socket.AF_INET6 if ":" in target else socket.AF_INET
        made = self.inside(lambda: socket.socket(family, socket.SOCK_DGRAM, _PROTOCOL[family]))
        received, total_s = 0, 0.0
        with made as asking:
            for sequence in range(count):
                question = os.urandom(size)
                began = time.monotonic()
                try:
                    asking.sendto(_ICMP.pack(_ECHO_REQUEST[family], 0, 0, 0, sequence) + question, (target, 0))
                except OSError:  # the neighbour is not known, or the device is gone: no answer either
                    time.sleep(timeout_s / 10)
                    continue
                if _answered(asking, sequence, question, began + timeout_s):
                    received += 1
                    total_s += time.monotonic() - began
        return Ping(count, received, 1000 * total_s / received if received else 0.0)

    def answers(self, target: str) -> bool:
        """Whether one ping is answered; for `ovsvhost.testing.wait.wait_for`."""
        return self.ping(target, count=1, timeout_s=0.3).received == 1

    def listen(self, host: str) -> socket.socket:
        """A TCP socket that listens on an address of this host, port chosen by the kernel."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return self.inside(lambda: socket.create_server((host, 0), family=family))

    def connect(self, target: tuple[str, int]) -> socket.socket:
        """A TCP connection from this host."""
        return self.inside(lambda: socket.create_connection(target, timeout=_TRANSFER_TIMEOUT_S))

    def fetch(self, host: str, path: str) -> bytes:
        """A file over HTTP, from port 80; all of it, however its server says how long it is."""
        received = bytearray()
        with self.connect((host, 80)) as connection:
            connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            while chunk := connection.recv(_CHUNK):
                received += chunk
        _, _, body = bytes(received).partition(b"\r\n\r\n")
        return body

    def serve(self, content: bytes) -> ThreadingHTTPServer:
        """Serves ``content`` on port 80 of every address, whatever is asked for, until ``shutdown`` is called."""

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_words: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            address_family = socket.AF_INET6  # takes IPv4 too
            daemon_threads = True

        server = self.inside(lambda: Server(("::", 80), Answer))
        threading.Thread(target=server.serve_forever, name=f"httpd-{self.name}", daemon=True).start()
        return server


def copy_bytes(source: KernelHost, target: KernelHost, host: str, *, size: int) -> Copy:
    """Sends random bytes over TCP to ``target``, which connects to ``host``, an address of ``source``."""
    content = os.urandom(size)
    began = time.monotonic()
    with source.listen(host) as listening:
        listening.settimeout(_TRANSFER_TIMEOUT_S)
        sender = _in_background(lambda: _send(listening, content))
        digest, received = hashlib.sha256(), 0
        with target.connect((host, listening.getsockname()[1])) as connection:
            while chunk := connection.recv(_CHUNK):
                digest.update(chunk)
                received += len(chunk)
        sender.join(_TRANSFER_TIMEOUT_S)
    seconds = time.monotonic() - began
    return Copy(size, received, hashlib.sha256(content).hexdigest(), digest.hexdigest(), seconds)


def _send(listening: socket.socket, content: bytes) -> None:
    connection, _ = listening.accept()
    with connection:
        connection.settimeout(_TRANSFER_TIMEOUT_S)
        connection.sendall(content)


def _in_background(function: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def _answered(asking: socket.socket, sequence: int, question: bytes, deadline: float) -> bool:
    """Whether the answer to ``question`` comes in time, byte for byte."""
    while (left_s := deadline - time.monotonic()) > 0:
        asking.settimeout(left_s)
        try:
            answer = asking.recv(_CHUNK)
        except OSError:
            return False
        *_, number = _ICMP.unpack_from(answer)
        if number == sequence and answer[_ICMP.size :] == question:
            return True
    return False
