"""A client of a sandbox's monitor socket."""

import http.client
import os
import socket


class Monitor:
    """HTTP over the Unix socket of one sandbox, whose path may be too long for an address."""

    def __init__(self, directory):
        self.dir = os.open(directory, os.O_PATH)

    def connect(self):
        s = socket.socket(socket.AF_UNIX)
        s.connect(f"/proc/self/fd/{self.dir}/monitor.sock")
        s.settimeout(30)
        return s

    def __call__(self, method, path, body=None):
        c = http.client.HTTPConnection("localhost")
        c.sock = self.connect()
        c.request(method, path, body)
        r = c.getresponse()
        text = r.read().decode()
        c.close()
        return r.status, text

    def raw(self, data):
        """Sends bytes as they are; the status, or None when there is no answer yet."""
        with self.connect() as s:
            s.sendall(data)
            s.settimeout(0.3)
            try:
                return int(s.recv(4096).split()[1])
            except (TimeoutError, IndexError):
                return None
