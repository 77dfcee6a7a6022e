"""Single devices of ours under QEMU, without agent, shim or caisson-vmm.

Each device runs in a caisson-vhost-device of its own; PID 1 of the guest is device-guest.c, which
takes commands over vsock. Skips where there is no guest kernel or no built device program.
"""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import pytest

HERE = pathlib.Path(__file__).resolve().parent
TOP = HERE.parents[1]
KERNELS = pathlib.Path("/var/cache/caisson/guest/current/vmlinux")
PERIOD = 1000003


def find_program():
    named = os.environ.get("CAISSON_VHOST_DEVICE")
    found = [pathlib.Path(named)] if named else list(
        TOP.glob("build*/**/src/virtio/caisson-vhost-device"))
    found = [p for p in found if p.exists()]
    if not found:
        pytest.skip("caisson-vhost-device has not been built")
    return max(found, key=lambda p: p.stat().st_mtime)


def find_kernel():
    path = pathlib.Path(os.environ.get("CAISSON_KERNEL", KERNELS))
    if not path.exists():
        pytest.skip("no guest kernel")
    return path


def pattern():
    out = bytearray(PERIOD)
    x = 1
    for i in range(PERIOD):
        x = (x * 1103515245 + 12345) & 0xffffffff
        out[i] = (x >> 16) & 0xff
    return bytes(out)


def build_initrd(source, where):
    """A cpio with the statically built program as /init."""
    init = where / "init"
    subprocess.run([os.environ.get("CC", "cc"), "-static", "-D_GNU_SOURCE", "-Os", "-Wall", "-o", init, source],
                   check=True)
    cpio = where / "initrd.cpio"
    with open(cpio, "wb") as f:
        subprocess.run(["cpio", "--quiet", "-o", "-H", "newc"], input=b"init\n", stdout=f,
                       cwd=where, check=True)
    return cpio


class Machine:
    """A guest with devices: [(kind, args...)], kind one of vsock, blk, net, stream, fs.

    @prefix is a command that runs the devices' programs. A share with the option queues=N has N queues
    in the machine too.
    """

    def __init__(self, devices, memory=256, cid=3, guest="device-guest.c", initrd=None, append="",
                 smp=1, prefix=()):
        self.program, self.kernel = find_program(), find_kernel()
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="caisson-dev-"))
        self.initrd = initrd or build_initrd(HERE / guest, self.dir)
        self.vsock = self.dir / "v.sock"
        self.backends, self.qemu, self.control = [], None, None
        self.listener = self.listen(1030)
        args, ends = [], []
        for i, (kind, *rest) in enumerate([("vsock", str(self.vsock), str(cid)), *devices]):
            if kind in ("net", "stream"):
                args += self.start_net(i, kind, rest)
                continue
            ours, theirs = socket.socketpair()
            os.set_inheritable(theirs.fileno(), True)
            self.backends.append(subprocess.Popen(
                [*prefix, self.program, "--fd", str(theirs.fileno()), kind, *map(str, rest)],
                pass_fds=[theirs.fileno()], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                text=True))
            theirs.close()
            ends.append(ours)
            name = {"vsock": "vhost-user-vsock-device", "blk": "vhost-user-blk",
                    "fs": f"vhost-user-fs-device,tag=share{i},queue-size=512"}[kind]
            name += "".join(f",num-request-{o}" for o in map(str, rest) if o.startswith("queues="))
            args += ["-chardev", f"socket,id=c{i},fd={ours.fileno()}",
                     "-device", f"{name},chardev=c{i}"]
        self.console = open(self.dir / "console", "wb")
        self.qemu = subprocess.Popen(
            ["qemu-system-x86_64", "-M", "microvm,acpi=off,isa-serial=off",
             "-cpu", "max", "-accel", "tcg", "-m", str(memory), "-smp", str(smp), "-kernel", self.kernel, "-initrd",
             self.initrd, "-append", f"console=hvc0 reboot=t panic=-1 quiet tsc=reliable {append}",
             "-object", f"memory-backend-memfd,id=mem,size={memory}M,share=on",
             "-machine", "memory-backend=mem", "-global", "virtio-mmio.force-legacy=false",
             "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
             "-chardev", f"file,id=con,path={self.dir}/console.log",
             "-qmp", f"unix:{self.dir}/qmp,server=on,wait=off",
             "-device", "virtio-serial-device", "-device", "virtconsole,chardev=con", *args],
            pass_fds=[s.fileno() for s in ends], stdin=subprocess.DEVNULL,
            stdout=self.console, stderr=subprocess.STDOUT)
        for s in ends:
            s.close()
        self.wait_hello()

    def start_net(self, i, kind, rest):
        """QEMU wants a named socket here."""
        path = self.dir / f"net{i}.sock"
        self.backends.append(subprocess.Popen(
            [self.program, "--socket", path, kind, *map(str, rest)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True))
        deadline = time.monotonic() + 10
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        return ["-chardev", f"socket,id=c{i},path={path}",
                "-netdev", f"vhost-user,id=n{i},chardev=c{i}",
                "-device", f"virtio-net-device,netdev=n{i},mac={rest[1]}"]

    def listen(self, port):
        s = socket.socket(socket.AF_UNIX)
        s.bind(f"{self.vsock}_{port}")
        s.listen(128)
        return s

    def wait_hello(self):
        self.listener.settimeout(180)
        try:
            conn, _ = self.listener.accept()
            conn.settimeout(60)
            self.control = conn.makefile("rw")
            assert self.control.readline() == "hello\n"
        except OSError as e:
            text = self.log()
            self.close()
            raise AssertionError(f"the guest did not come up: {e}\n{text}") from e

    def log(self):
        return "".join(p.read_text(errors="replace") for p in
                       [self.dir / "console", self.dir / "console.log"] if p.exists())

    def __call__(self, line):
        """One command of the guest, and its answer."""
        self.control.write(line + "\n")
        self.control.flush()
        return self.control.readline().strip()

    def connect(self, port, timeout=60):
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(timeout)
        s.connect(str(self.vsock))
        s.sendall(f"CONNECT {port}\n".encode())
        line = b""
        while not line.endswith(b"\n"):
            c = s.recv(1)
            if not c:
                raise ConnectionError(f"port {port} of the guest refused")
            line += c
        assert line.startswith(b"OK "), line
        return s

    def qmp(self, command):
        """One command to QEMU, on a connection of its own."""
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(str(self.dir / "qmp"))
            f = s.makefile("rw")
            json.loads(f.readline())
            for c in ["qmp_capabilities", command]:
                f.write(json.dumps({"execute": c}) + "\n")
                f.flush()
                while "return" not in (answer := json.loads(f.readline())):
                    assert "error" not in answer, answer
        return answer["return"]

    def off(self):
        self.control.write("off\n")
        self.control.flush()
        assert self.qemu.wait(20) == 0

    def close(self):
        if self.qemu and self.qemu.poll() is None:
            self.qemu.kill()
            self.qemu.wait()
        codes = []
        for p in self.backends:
            if p.poll() is None:
                p.send_signal(signal.SIGTERM)
            codes.append(p.wait(20))
            p.stdin.close()
            p.stdout.close()
        self.listener.close()
        self.console.close()
        shutil.rmtree(self.dir)
        assert codes == [0] * len(codes), f"a device ended with {codes}"
        self.backends = []

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()
