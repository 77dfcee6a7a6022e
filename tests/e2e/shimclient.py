"""A containerd-like client of the shim: ttRPC over its socket, protobuf by hand.

Only what the tests need: messages are lists of (field, value) on the way out, and dictionaries
field -> list of values on the way in.
"""

import json
import os
import select
import shutil
import socket
import struct
import subprocess
import threading
import time

from patience import BOOT_TIMEOUT, PATIENCE

STAGE = os.environ.get("CAISSON_STAGE", "")
SHIM = os.path.join(STAGE, "bin", "containerd-shim-caisson-v2")
SPEC_URL = "types.containerd.io/opencontainers/runtime-spec/1/"


def varint(n):
    n &= (1 << 64) - 1
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def encode(fields):
    out = b""
    for number, value in fields:
        if isinstance(value, (bool, int)):
            out += varint(number << 3) + varint(int(value))
        else:
            data = value if isinstance(value, bytes) else value.encode()
            out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


def decode(data):
    out, i = {}, 0

    def take():
        nonlocal i
        shift = n = 0
        while True:
            b = data[i]
            i += 1
            n |= (b & 0x7F) << shift
            shift += 7
            if b < 0x80:
                return n

    while i < len(data):
        key = take()
        wire = key & 7
        if wire == 0:
            value = take()
        elif wire == 2:
            n = take()
            value = data[i:i + n]
            i += n
        elif wire == 1:
            value = data[i:i + 8]
            i += 8
        else:
            raise ValueError(f"wire type {wire}")
        out.setdefault(key >> 3, []).append(value)
    return out


class RpcError(Exception):
    def __init__(self, code, message):
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


NOT_FOUND, ALREADY_EXISTS, INVALID, PRECONDITION = 5, 6, 3, 9
UNIMPLEMENTED, UNAVAILABLE = 12, 14


class Connection:
    """Many calls in flight on one socket."""

    def __init__(self, address, service="containerd.task.v2.Task"):
        self.service = service
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(address.removeprefix("unix://"))
        self.metadata = {}
        self.lock = threading.Condition()
        self.answers, self.next_id, self.closed = {}, 1, False
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read_exactly(self, n):
        data = b""
        while len(data) < n:
            part = self.sock.recv(n - len(data))
            if not part:
                raise ConnectionError
            data += part
        return data

    def read(self):
        try:
            while True:
                length, stream, _, _ = struct.unpack(">IIBB", self.read_exactly(10))
                data = self.read_exactly(length)
                with self.lock:
                    self.answers[stream] = data
                    self.lock.notify_all()
        except (ConnectionError, OSError):
            with self.lock:
                self.closed = True
                self.lock.notify_all()

    def send(self, method, fields, service=None):
        payload = encode([(1, service or self.service), (2, method), (3, encode(fields)),
                          *((5, encode([*enumerate(kv, 1)])) for kv in self.metadata.items())])
        with self.lock:
            stream = self.next_id
            self.next_id += 2
            self.sock.sendall(struct.pack(">IIBB", len(payload), stream, 1, 0) + payload)
        return stream

    def receive(self, stream, timeout=60):
        with self.lock:
            if not self.lock.wait_for(lambda: stream in self.answers or self.closed,
                                      timeout * PATIENCE):
                raise TimeoutError("no answer from the shim")
            if stream not in self.answers:
                raise ConnectionError("the shim has gone")
            answer = decode(self.answers.pop(stream))
        if 1 in answer:
            status = decode(answer[1][0])
            if status.get(1, [0])[0]:
                raise RpcError(status[1][0], status.get(2, [b""])[0].decode())
        return decode(answer.get(2, [b""])[0])

    def call(self, method, fields, timeout=60, service=None):
        return self.receive(self.send(method, fields, service), timeout)

    def close(self):
        self.sock.close()


class Fifo:
    """Reads a fifo to its end in the background."""

    def __init__(self, path):
        self.path = path
        os.mkfifo(path)
        self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.data = b""
        self.cond = threading.Condition()
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.running = True
        self.thread.start()

    def read(self):
        seen = False
        while self.running:
            select.select([self.fd], [], [], 0.05)
            try:
                part = os.read(self.fd, 65536)
            except BlockingIOError:
                seen = True
                continue
            if not part:
                if seen:
                    break
                time.sleep(0.005)
                continue
            seen = True
            with self.cond:
                self.data += part
                self.cond.notify_all()
        with self.cond:
            self.running = False
            self.cond.notify_all()

    def wait_for(self, what, timeout=30):
        with self.cond:
            if not self.cond.wait_for(lambda: what in self.data, timeout * PATIENCE):
                raise TimeoutError(f"no {what!r} in {self.data!r}")
            return self.data

    def finish(self, timeout=30):
        self.thread.join(timeout * PATIENCE)
        assert not self.thread.is_alive(), f"no end of {self.path}"
        os.close(self.fd)
        return self.data


def default_spec(args, **more):
    caps = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_SETGID", "CAP_SETUID"]
    process = {
        "terminal": False,
        "user": {"uid": 0, "gid": 0},
        "args": args,
        "env": ["PATH=/bin:/sbin", "TERM=xterm"],
        "cwd": "/",
        "capabilities": {k: caps for k in ("bounding", "effective", "permitted")},
        "noNewPrivileges": True,
    }
    process.update(more.pop("process", {}))
    spec = {
        "ociVersion": "1.1.0",
        "process": process,
        "root": {"path": "rootfs", "readonly": False},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
        ],
        "annotations": {},
        "linux": {
            "namespaces": [{"type": t} for t in ("pid", "ipc", "uts", "mount", "network", "cgroup")],
            "resources": {},
        },
    }
    spec.update(more)
    return spec


def make_root(root):
    """A tree with a static busybox in it."""
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp"):
        os.makedirs(os.path.join(root, name))
    shutil.copy(shutil.which("busybox"), os.path.join(root, "bin/busybox"))
    for applet in ("sh", "true", "false", "cat", "echo", "sleep", "hostname", "id", "wc", "dd",
                   "stty", "touch", "ls", "mount", "env", "seq", "md5sum", "kill", "ps", "df",
                   "tr", "head", "uname", "sync"):
        os.symlink("busybox", os.path.join(root, "bin", applet))
    with open(os.path.join(root, "etc/passwd"), "w") as f:
        f.write("root:x:0:0:root:/:/bin/sh\n")
    return root


def make_image(folder):
    root = make_root(os.path.join(folder, "root"))
    image = os.path.join(folder, "image.erofs")
    subprocess.run(["mkfs.erofs", "-T0", image, root], check=True, capture_output=True)
    shutil.rmtree(root)
    return image


class Host:
    """One set of CAISSON_* directories."""

    def __init__(self, folder, image):
        self.folder = str(folder)
        self.image = image
        self.run = os.path.join(self.folder, "run")
        self.root = os.path.join(self.folder, "root")
        os.makedirs(self.run)
        os.makedirs(self.root)
        self.config = os.path.join(self.folder, "config.yaml")
        with open(self.config, "w") as f:
            f.write(f"vm:\n  boot_timeout: {BOOT_TIMEOUT}\n")
        self.env = dict(os.environ, CAISSON_RUN=self.run, CAISSON_ROOT=self.root,
                        CAISSON_CONFIG=self.config)
        for name in ("TTRPC_ADDRESS", "CAISSON_EXIT_COMMAND", "CAISSON_LIBDIR"):
            self.env.pop(name, None)
        self.tasks = []

    def bundle(self, cid, spec):
        path = os.path.join(self.folder, "bundles", cid)
        os.makedirs(path, exist_ok=True)
        with open(os.path.join(path, "config.json"), "w") as f:
            json.dump(spec, f)
        return path

    def shim(self, cid, bundle, *command, ns="caisson", env=None, stdin=b"", check=True):
        p = subprocess.run([SHIM, "-namespace", ns, "-id", cid, "-address", "", *command],
                           cwd=bundle, env=dict(self.env, **(env or {})), input=stdin,
                           capture_output=True, timeout=BOOT_TIMEOUT)
        if check and p.returncode:
            raise RuntimeError(p.stderr.decode())
        return p

    def sandbox(self, cid):
        return os.path.join(self.run, "sandboxes", cid)

    def log(self, cid):
        try:
            with open(os.path.join(self.sandbox(cid), "shim.log"), errors="replace") as f:
                return f.read()
        except OSError:
            return ""

    def processes(self):
        """Pids of what runs on behalf of this host."""
        found = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/environ", "rb") as f:
                    env = f.read()
                with open(f"/proc/{pid}/cmdline", "rb") as f:
                    command = f.read().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                continue
            if f"CAISSON_RUN={self.run}".encode() in env and int(pid) != os.getpid() and command:
                found[int(pid)] = command
        return found

    def leftovers(self):
        """Everything that should be gone when no container is left."""
        deadline = time.monotonic() + 5
        while True:
            left = [f"process {p}: {c}" for p, c in self.processes().items()
                    if "shim-caisson" in c or "caisson-vmm" in c or "qemu" in c or "mkfs" in c]
            for top in (os.path.join(self.run, "sandboxes"), os.path.join(self.run, "s"),
                        os.path.join(self.root, "scratch")):
                if os.path.isdir(top):
                    left += [os.path.join(top, n) for n in os.listdir(top)]
            with open("/proc/self/mounts") as f:
                left += [line.strip() for line in f if self.folder in line]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.05)


class Task:
    """One container, by its shim."""

    def __init__(self, host, cid, args=None, spec=None, ns="caisson", env=None, service=None,
                 address=None):
        self.host, self.id, self.ns = host, cid, ns
        self.dir = host.bundle(cid, spec or default_spec(args or ["true"]))
        self.address = address or host.shim(cid, self.dir, "start", ns=ns, env=env).stdout.decode()
        self.conn = Connection(self.address, service or "containerd.task.v2.Task")
        self.fifos = {}
        host.tasks.append(self)

    def fifo(self, name):
        path = os.path.join(self.dir, name)
        self.fifos[name] = Fifo(path)
        return path

    def stdin(self, name="in"):
        path = os.path.join(self.dir, name)
        os.mkfifo(path)
        return path

    def create(self, terminal=False, stdin="", stdout="", stderr="", rootfs=None, timeout=90):
        mounts = rootfs if rootfs is not None else [("erofs", self.host.image)]
        fields = [(1, self.id), (2, self.dir)]
        fields += [(3, encode([(1, m[0]), (2, m[1]), *((4, o) for o in m[2:])])) for m in mounts]
        fields += [(4, terminal), (5, stdin), (6, stdout), (7, stderr)]
        return self.conn.call("Create", fields, timeout)

    def start(self, exec_id=""):
        return self.conn.call("Start", [(1, self.id), (2, exec_id)]).get(1, [0])[0]

    def wait_send(self, exec_id=""):
        return self.conn.send("Wait", [(1, self.id), (2, exec_id)])

    def wait(self, exec_id="", timeout=60):
        answer = self.conn.receive(self.wait_send(exec_id), timeout)
        assert 2 in answer, "no time of the exit"
        return answer.get(1, [0])[0]

    def delete(self, exec_id=""):
        return self.conn.call("Delete", [(1, self.id), (2, exec_id)]).get(2, [0])[0]

    def kill(self, signal, exec_id="", everything=False):
        self.conn.call("Kill", [(1, self.id), (2, exec_id), (3, signal), (4, everything)])

    def exec(self, exec_id, args, terminal=False, stdin="", stdout="", stderr="", **more):
        process = dict(default_spec(args)["process"], **more)
        any_ = encode([(1, SPEC_URL + "Process"), (2, json.dumps(process))])
        self.conn.call("Exec", [(1, self.id), (2, exec_id), (3, terminal), (4, stdin),
                                (5, stdout), (6, stderr), (7, any_)])

    def state(self, exec_id=""):
        a = self.conn.call("State", [(1, self.id), (2, exec_id)])
        return {"status": a.get(4, [0])[0], "pid": a.get(3, [0])[0],
                "exit": a.get(9, [0])[0], "bundle": a.get(2, [b""])[0].decode()}

    def stats(self):
        any_ = decode(self.conn.call("Stats", [(1, self.id)])[1][0])
        return any_[1][0].decode(), decode(any_[2][0])

    def simple(self, method, *more):
        return self.conn.call(method, [(1, self.id), *more])

    def shutdown(self, now=False):
        try:
            self.conn.call("Shutdown", [(1, self.id), (2, now)])
        except ConnectionError:
            pass
        self.conn.close()

    def finish(self):
        """What a client does when the container has ended."""
        status = self.delete()
        self.shutdown()
        return status

    def run(self, **io):
        self.create(**io)
        self.start()
        status = self.wait()
        assert self.finish() == status
        return status
