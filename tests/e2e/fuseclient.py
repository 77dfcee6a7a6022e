"""A guest made of nothing but bytes: FUSE requests over vhost-user to a caisson-vhost-device.

No kernel is at this end, so a request may be anything, and thousands take a second.
"""

import array
import errno
import mmap
import os
import select
import socket
import struct
import subprocess
import time

from devices import find_program

QUEUE = 64
RING, DESC_AREA, DATA = 0x0, 0x10000, 0x20000  # of each queue, from its base
STRIDE = 0x100000
MEMORY = 8 * STRIDE
UVA = 0x7f0000000000

LOOKUP, FORGET, GETATTR, SETATTR, READLINK, SYMLINK, MKNOD, MKDIR = 1, 2, 3, 4, 5, 6, 8, 9
UNLINK, RMDIR, RENAME, LINK, OPEN, READ, WRITE, STATFS, RELEASE = 10, 11, 12, 13, 14, 15, 16, 17, 18
SETXATTR, GETXATTR, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR = 21, 22, 25, 26, 27, 28, 29
BATCH_FORGET = 42
SETLK, SETLKW, CREATE, DESTROY, FALLOCATE, READDIRPLUS, COPY = 32, 33, 35, 38, 43, 44, 47


class Gone(Exception):
    """The device answered no more."""


class FuseClient:
    def __init__(self, share, *options, queues=1, prefix=(), preexec=None):
        ours, theirs = socket.socketpair()
        self.device = subprocess.Popen(
            [*prefix, find_program(), "--fd", str(theirs.fileno()), "fs", str(share), *options],
            pass_fds=[theirs.fileno()], stdin=subprocess.PIPE, preexec_fn=preexec)
        theirs.close()
        self.sock = ours
        self.sock.settimeout(30)
        self.memfd = os.memfd_create("guest")
        os.ftruncate(self.memfd, MEMORY)
        self.mem = mmap.mmap(self.memfd, MEMORY)
        self.kicks, self.calls = [], []
        self.avail, self.unique = [0] * (queues + 1), 0
        self.set_up(queues + 1)

    # ---- vhost-user ----

    def message(self, request, payload=b"", fds=(), reply=False):
        self.sock.sendmsg([struct.pack("<III", request, 1, len(payload)) + payload],
                          [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])
        if reply:
            head = self.sock.recv(12, socket.MSG_WAITALL)
            size = struct.unpack("<III", head)[2]
            return self.sock.recv(size, socket.MSG_WAITALL)
        return None

    def set_up(self, n):
        self.message(1, reply=True)
        self.message(2, struct.pack("<Q", 1 << 32 | 1 << 30 | 1 << 28))
        self.message(16, struct.pack("<Q", 0))
        self.message(3)
        self.message(5, struct.pack("<IIQQQQ", 1, 0, 0, MEMORY, UVA, 0), [self.memfd])
        for q in range(n):
            base = UVA + q * STRIDE
            kick, call = os.eventfd(0), os.eventfd(0)
            self.kicks.append(kick)
            self.calls.append(call)
            self.message(8, struct.pack("<II", q, QUEUE))
            self.message(10, struct.pack("<II", q, 0))
            self.message(9, struct.pack("<IIQQQQ", q, 0, base, base + 0x4000, base + 0x2000, 0))
            self.message(13, struct.pack("<Q", q), [call])
            self.message(12, struct.pack("<Q", q), [kick])
            self.message(18, struct.pack("<II", q, 1))

    def descriptor(self, q, i, addr, length, flags, following):
        struct.pack_into("<QIHH", self.mem, q * STRIDE + 16 * i, addr, length, flags, following)

    def offer(self, q, head):
        """Makes a chain available, and tells the device."""
        base = q * STRIDE + 0x2000
        struct.pack_into("<H", self.mem, base + 4 + 2 * (self.avail[q] % QUEUE), head)
        self.avail[q] = (self.avail[q] + 1) & 0xffff
        struct.pack_into("<H", self.mem, base + 2, self.avail[q])
        os.eventfd_write(self.kicks[q], 1)

    def used(self, q):
        return struct.unpack_from("<H", self.mem, q * STRIDE + 0x4002)[0]

    def wait(self, q, timeout=20):
        """Until all that was offered has come back."""
        end = time.monotonic() + timeout
        while self.used(q) != self.avail[q]:
            left = end - time.monotonic()
            if left <= 0 or self.device.poll() is not None:
                raise Gone()
            if select.select([self.calls[q]], [], [], min(left, 0.2))[0]:
                os.eventfd_read(self.calls[q])

    # ---- FUSE ----

    def raw(self, data, room=65536, q=1):
        """Any bytes as a request: the answer's (error, data), or None if there was none."""
        base = q * STRIDE + DATA
        self.mem[base:base + len(data)] = data
        self.mem[base + 0x40000:base + 0x40010] = bytes(16)
        self.descriptor(q, 0, base, len(data), 1 if room else 0, 1)
        self.descriptor(q, 1, base + 0x40000, room, 2, 0)
        self.offer(q, 0)
        self.wait(q)
        length, error, _ = struct.unpack_from("<IiQ", self.mem, base + 0x40000)
        if room < 16 or length < 16:
            return None
        return -error, bytes(self.mem[base + 0x40010:base + 0x40000 + length])

    def request(self, opcode, node, args=b"", room=65536, q=1, uid=0, gid=0):
        self.unique += 1
        return self.raw(struct.pack("<IIQQIIIHH", 40 + len(args), opcode, self.unique, node, uid, gid, 1, 0, 0)
                        + args, room, q)

    def init(self):
        return self.request(INIT, 0, struct.pack("<IIII", 7, 38, 131072, 0xffffffff) + bytes(48))

    def lookup(self, node, name):
        """The number of the node; raises OSError."""
        error, data = self.request(LOOKUP, node, name + b"\0")
        if error:
            raise OSError(error, name)
        found = struct.unpack_from("<Q", data)[0]
        if not found:
            raise FileNotFoundError(errno.ENOENT, name)
        return found

    def open(self, node, flags=0):
        error, data = self.request(OPEN, node, struct.pack("<II", flags, 0))
        if error:
            raise OSError(error, "open")
        return struct.unpack_from("<Q", data)[0]

    def read(self, node, fh, size=4096, offset=0):
        error, data = self.request(READ, node, struct.pack("<QQIIQII", fh, offset, size, 0, 0, 0, 0))
        if error:
            raise OSError(error, "read")
        return data

    def write(self, node, fh, data, offset=0):
        return self.request(WRITE, node, struct.pack("<QQIIQII", fh, offset, len(data), 0, 0, 0, 0) + data)[0]

    def forget(self, node, n=1):
        self.request(FORGET, node, struct.pack("<Q", n), room=0)

    def fds(self):
        return len(os.listdir(f"/proc/{self.device.pid}/fd"))

    def close(self):
        self.sock.close()
        self.device.terminate()
        code = self.device.wait(20)
        self.device.stdin.close()
        for fd in [*self.kicks, *self.calls, self.memfd]:
            os.close(fd)
        self.mem.close()
        assert code == 0, f"the device ended with {code}"

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()
