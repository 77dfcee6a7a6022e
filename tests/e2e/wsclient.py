"""Streams of the CRI (exec, attach, port-forward) over WebSocket, as a kubelet would open them.

Each message is one byte, the channel, and data. Channels of exec and attach: 0 stdin, 1 stdout,
2 stderr, 3 the result, 4 the terminal's size. Of a forwarded port: 0 data, 1 errors.
"""

import base64
import os
import socket
import struct
import urllib.parse

STDIN, STDOUT, STDERR, RESULT, SIZE = range(5)


class Stream:
    def __init__(self, url, protocol="v4.channel.k8s.io", timeout=60):
        u = urllib.parse.urlparse(url)
        self.sock = socket.create_connection((u.hostname, u.port), timeout)
        path = u.path + ("?" + u.query if u.query else "")
        key = base64.b64encode(os.urandom(16)).decode()
        self.sock.sendall((f"GET {path} HTTP/1.1\r\nHost: {u.netloc}\r\nOrigin: http://localhost\r\n"
                           "Connection: Upgrade\r\nUpgrade: websocket\r\n"
                           f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
                           f"Sec-WebSocket-Protocol: {protocol}\r\n\r\n").encode())
        self.data = b""
        while b"\r\n\r\n" not in self.data:
            self.data += self.recv()
        head, self.data = self.data.split(b"\r\n\r\n", 1)
        if b" 101 " not in head.split(b"\r\n")[0]:
            raise ConnectionError(head.decode() + self.data.decode(errors="replace"))
        self.got = {}
        self.open = True

    def recv(self):
        part = self.sock.recv(65536)
        if not part:
            raise ConnectionError("the stream has ended")
        return part

    def take(self, n):
        while len(self.data) < n:
            self.data += self.recv()
        out, self.data = self.data[:n], self.data[n:]
        return out

    def send(self, channel, data):
        payload = bytes([channel]) + data
        n = len(payload)
        size = bytes([0x80 | n]) if n < 126 else b"\xfe" + struct.pack(">H", n)
        mask = os.urandom(4)
        masked = bytes(b ^ mask[i & 3] for i, b in enumerate(payload))
        self.sock.sendall(b"\x82" + size + mask + masked)

    def read(self):
        """One message: (channel, data), or None at the end."""
        try:
            first, size = self.take(2)
            n = size & 0x7F
            if n == 126:
                n = struct.unpack(">H", self.take(2))[0]
            elif n == 127:
                n = struct.unpack(">Q", self.take(8))[0]
            payload = self.take(n)
        except (ConnectionError, OSError):
            self.open = False
            return None
        if first & 0xF == 8:
            self.open = False
            return None
        if first & 0xF > 2 or not payload:
            return 255, b""
        return payload[0], payload[1:]

    def wait(self, channel, what):
        """Until @what has come on @channel; gives all that has."""
        while what not in self.got.get(channel, b""):
            m = self.read()
            if m is None:
                raise ConnectionError(f"no {what!r} in {self.got}")
            self.got[m[0]] = self.got.get(m[0], b"") + m[1]
        return self.got[channel]

    def finish(self):
        """Everything, by channel, until the other side closes."""
        while (m := self.read()) is not None:
            self.got[m[0]] = self.got.get(m[0], b"") + m[1]
        self.close()
        return self.got

    def close(self):
        self.sock.close()
