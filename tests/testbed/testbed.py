"""The testbed: a virtual machine under plain emulation with a stock Debian kernel, whose root is the
host's, read-only, under an overlay of memory. See README.md.

    t = Testbed(["ls", "-l", "/dev/kvm"], timeout=60)
    code = t.run(sys.stdout.buffer, sys.stderr.buffer)
"""

import ctypes
import dataclasses
import os
import pathlib
import secrets
import selectors
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import kernel as kernels
from kernel import Unavailable

VIRTIOFSD = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd", "/usr/lib/virtiofsd"]
FAILED, TIMED_OUT = 125, 124
PR_SET_PDEATHSIG, CLONE_NEWNS, MS_REC, MS_PRIVATE, MS_BIND = 1, 0x20000, 0x4000, 1 << 18, 0x1000
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1
ROOT = "/mnt"                           # hidden by a mount that only the file server sees
STREAMS = ("status", "out", "err")
PEERS = pathlib.Path(os.environ.get("CAISSON_PEERS", "/var/cache/caisson/peers"))
libc = ctypes.CDLL(None, use_errno=True)


@dataclasses.dataclass
class Options:
    cpus: int = 1
    memory: int = 2048                  # MiB
    timeout: float = 300
    load: tuple = ("kvm_amd",)          # modules loaded before the command starts
    shares: tuple = ()                  # directories that the command may write to
    vfio: bool = False                  # an emulated IOMMU, and a network card that nobody drives
    sriov: bool = False                 # an emulated card with virtual functions
    flavour: str = "cloud-amd64"
    console: object = None              # where the kernel's messages go, besides the memory
    env: dict = dataclasses.field(default_factory=lambda: dict(os.environ))
    cwd: str = dataclasses.field(default_factory=os.getcwd)


def check(result):
    if result < 0:
        e = ctypes.get_errno()
        raise OSError(e, os.strerror(e))


def die_with_parent():
    os.setsid()
    check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL))


def readonly_root():
    """In a mount namespace of its own: all the host's file systems at ROOT, read-only."""
    attr = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY, 0, 0, 0)
    die_with_parent()
    check(libc.unshare(CLONE_NEWNS))
    check(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
    check(libc.mount(b"/", ROOT.encode(), None, MS_REC | MS_BIND, None))
    check(libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, ROOT.encode(), AT_RECURSIVE, attr,
                       ctypes.sizeof(attr)))


def has_igb(command):
    try:
        said = subprocess.run([*command, "-device", "igb,help"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              check=False).stdout
    except OSError:
        return False
    return b"options" in said


def qemu_command(sriov):
    """The installed QEMU; for SR-IOV, if that is too old, a newer one with its own libraries (tests/peers/get)."""
    program = shutil.which("qemu-system-x86_64")
    if not program:
        raise Unavailable("no qemu-system-x86_64 (package qemu-system-x86)")
    if not sriov or has_igb([program]):
        return [program]
    libraries = PEERS / "qemu/usr/lib/x86_64-linux-gnu"
    newer = [str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries),
             str(PEERS / "qemu/usr/bin/qemu-system-x86_64"), "-L", str(PEERS / "qemu/usr/share/qemu"),
             "-L", str(PEERS / "qemu/usr/share/seabios")]
    if not has_igb(newer):
        raise Unavailable("this QEMU emulates no card with SR-IOV (igb, since QEMU 8.0), and there is no newer "
                          f"one in '{PEERS}': run tests/peers/get")
    return newer


class Testbed:
    def __init__(self, command, options=None):
        self.command, self.options = command, options or Options()
        self.children, self.console = [], b""
        self.mark = secrets.token_hex(16)

    # --- what is started

    def spawn(self, args, fds=(), preexec=die_with_parent):
        p = subprocess.Popen(args, pass_fds=fds, preexec_fn=preexec, stdin=subprocess.DEVNULL,
                             stdout=subprocess.DEVNULL, stderr=self.log)
        self.children.append(p)
        return p

    def share(self, source, cache, preexec=die_with_parent):
        """Starts a file server; gives the name of its socket, which is in no file system."""
        program = next((p for p in VIRTIOFSD if os.path.exists(p)), None)
        if not program:
            raise Unavailable("no virtiofsd (package qemu-system-common)")
        name = f"caisson-testbed-{os.getpid()}-{self.mark}-{len(self.children)}"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"\0{name}")
            listener.listen(1)
            self.spawn([program, f"--fd={listener.fileno()}", "-o", f"source={source}",
                        "-o", f"cache={cache}", "-o", "no_posix_lock,log_level=err"],
                       (listener.fileno(),), preexec)
        return name

    def job(self):
        """What init reads."""
        o = self.options
        words = [f"k{self.tree.name}", f"l{self.tree}", f"m{self.mark}", f"c{o.cwd}"]
        words += [f"s{os.path.abspath(d)}" for d in o.shares] + [f"a{a}" for a in self.command]
        words += [f"e{k}={v}" for k, v in o.env.items()] + ["eCAISSON_IN_TESTBED=1"]
        return b"".join(os.fsencode(w) + b"\0" for w in words)

    def initrd(self, where):
        """A descriptor of a file without a name."""
        fd = os.memfd_create("initrd")
        with open(fd, "wb", closefd=False) as f:
            f.write(kernels.initramfs(where, self.options.load, self.job()))
        return fd

    def qemu(self, where):
        o = self.options
        initrd = self.initrd(where)
        args = [*qemu_command(o.sriov), "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
                "-name", f"caisson-testbed-{os.getpid()}-", "-accel", "tcg,thread=multi", "-cpu", "max",
                "-M", "q35,hpet=off,smbus=off,sata=off,usb=off,vmport=off,i8042=off,"
                "memory-backend=ram",
                "-object", f"memory-backend-memfd,id=ram,size={o.memory}M,share=on",
                "-m", str(o.memory), "-smp", str(o.cpus),
                "-kernel", str(where / "vmlinux"), "-initrd", f"/proc/self/fd/{initrd}"]
        append = "console=ttyS0 panic=-1 mitigations=off tsc=reliable no_timer_check " \
                 "cryptomgr.notests quiet lsm=landlock audit=0"
        shares = [self.share(ROOT, "always", readonly_root)]
        shares += [self.share(d, "auto") for d in o.shares]
        for i, name in enumerate(shares):
            tag = f"share{i - 1}" if i else "root"
            args += ["-chardev", f"socket,id=fs{i},path={name},abstract=on,tight=on",
                     "-device", f"vhost-user-fs-pci,chardev=fs{i},tag={tag},queue-size=1024"]
        args += ["-device", "virtio-serial-pci"]
        if o.vfio:
            args += ["-device", "intel-iommu,intremap=off,caching-mode=on", "-device", "e1000e"]
            # Two cards on one wire, behind the IOMMU: one to be given away, the other to talk to it.
            for i in range(2):
                args += ["-netdev", f"hubport,id=card{i},hubid=7", "-device",
                         f"virtio-net-pci,netdev=card{i},mac=02:00:00:00:77:0{i},disable-legacy=on,"
                         "iommu_platform=on,romfile="]
            append += " intel_iommu=on"
        if o.sriov:
            args += ["-device", "intel-iommu,intremap=off,caching-mode=on",
                     "-device", "pcie-root-port,id=port0", "-netdev", "hubport,id=igb0,hubid=8",
                     "-device", "igb,bus=port0,netdev=igb0,mac=02:00:00:00:78:00"]
            append += " intel_iommu=on"
        fds = [initrd]
        for name in (*STREAMS, "console"):
            mine, its = socket.socketpair()
            fds.append(its.detach())
            self.streams[name] = mine
            args += ["-chardev", f"socket,id={name},fd={fds[-1]}"]
            args += ["-serial", "chardev:console"] if name == "console" else \
                    ["-device", f"virtserialport,chardev={name},name=testbed.{name}"]
        self.spawn([*args, "-append", append], fds)
        for fd in fds:
            os.close(fd)

    # --- what comes back

    def relay(self, out, err):
        """Until all streams have ended or the time is up: the exit status, or None."""
        end = time.monotonic() + self.options.timeout
        sel = selectors.DefaultSelector()
        sinks = {"out": out, "err": err}
        held = dict.fromkeys(STREAMS, b"")
        waiting = set(STREAMS)
        for name, s in self.streams.items():
            sel.register(s, selectors.EVENT_READ, name)
        while waiting:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"not done after {self.options.timeout:g} s; {self.why()}")
            for key, _ in sel.select(left):
                data = key.fileobj.recv(65536)
                if not data:
                    return None
                if key.data == "console":
                    self.console = (self.console + data)[-65536:]
                    if self.options.console:
                        self.options.console.write(data)
                        self.options.console.flush()
                    continue
                data = held[key.data] + data
                if key.data == "status":
                    held["status"] = data
                    if data.endswith(b"\n"):
                        waiting.discard("status")
                    continue
                mark = self.mark.encode()
                if data.endswith(mark):
                    data = data[:-len(mark)]
                    waiting.discard(key.data)
                    held[key.data] = b""
                else:
                    # What may be the mark's beginning waits for the rest.
                    keep = next((n for n in range(min(len(mark), len(data)), 0, -1)
                                 if data.endswith(mark[:n])), 0)
                    held[key.data] = data[len(data) - keep:]
                    data = data[:len(data) - keep]
                sinks[key.data].write(data)
                sinks[key.data].flush()
        return int(held["status"])

    def why(self):
        """The last words of whoever ended before its time."""
        self.log.seek(0)
        said = self.log.read().decode(errors="replace") + self.console.decode(errors="replace")
        return " | ".join([x.strip() for x in said.splitlines() if x.strip()][-6:])

    def run(self, out, err):
        """Runs the command; gives its exit status. TimeoutError; Unavailable; RuntimeError: no testbed."""
        if os.geteuid() != 0:
            raise Unavailable("the testbed needs root")
        where = kernels.kernel(self.options.flavour)
        self.tree = next((where / "lib/modules").iterdir())
        self.streams = {}
        with tempfile.TemporaryFile() as self.log:
            try:
                self.qemu(where)
                status = self.relay(out, err)
                if status is None:
                    raise RuntimeError(f"the machine ended before the command: {self.why()}")
                return status
            finally:
                self.stop()

    def stop(self):
        # A file server ends with the machine it serves, and buries its own child then.
        for p in reversed(self.children):
            try:
                if "-nodefaults" not in p.args:
                    p.wait(2)
            except subprocess.TimeoutExpired:
                pass
            p.kill()
            p.wait()
        for s in self.streams.values():
            s.close()
