#!/usr/bin/env python3
"""Our virtio-fs device beside virtiofsd, with the same QEMU and guest kernel. Prints Markdown.

Each server serves a directory of its own to a guest of its own. The guests take turns, so that a busy
machine is busy for all of them; a ratio is the median of those of the rounds. Times are the guest's. Beside
them what does not depend on the clock: requests of the guest's kernel, counted in the queue itself, and
interrupts of the device, which is how often the guest had to wait. There are two tables: servers as they
come ("auto"), and each with all that it has for a directory nobody else changes ("alone": cache=always
and gathered writes).

fs.py [-r ROUNDS] [-m MODE] [-o OUR,OPTIONS] [-x] [WORKLOAD...]; -x adds the peers with extended attributes
and ACLs, which ours always has: they cost a question of the guest's kernel here and there.
CAISSON_VHOST_DEVICE names our program; runs as root. The Rust virtiofsd, of a newer Debian, is measured
where tests/peers/get has brought it.
"""

import argparse
import json
import mmap
import os
import pathlib
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile

TOP = pathlib.Path(__file__).resolve().parents[1]
KERNEL = pathlib.Path(os.environ.get("CAISSON_KERNEL", "/var/cache/caisson/guest/current/vmlinux"))
C_PEER = pathlib.Path("/usr/lib/qemu/virtiofsd")
RUST_PEER = pathlib.Path("/usr/libexec/virtiofsd")
PEERS = pathlib.Path(os.environ.get("CAISSON_PEERS", "/var/cache/caisson/peers"))
TICK = os.sysconf("SC_CLK_TCK")
MEMORY = 1024

MODES = {"auto": ([], [], []),
         "alone": (["cache=always", "writeback"], ["-o", "cache=always,writeback"],
                   ["--cache=always", "--writeback"])}

FIO = "fio --name=x --directory=/share --filename=big --size=32m --ioengine=psync --minimal --output=/tmp/fio"
# fio's own start takes longer than its work: fields of its terse output, the reads' and the writes' time
TIME = "&& cut -d ';' -f 9,50 /tmp/fio > /tmp/ms"
# name, command of the guest, is it a matter of many small operations
WORKLOADS = {
    f"fio {kind} {size}": (f"{FIO} --direct=1 --rw={rw} --bs={size} --io_size={total} {TIME}", size == "4k")
    for kind, rw in [("sequential read", "read"), ("random read", "randread"),
                     ("sequential write", "write"), ("random write", "randwrite")]
    for size, total in [("4k", "4m"), ("64k", "32m"), ("1m", "64m")]
}
WORKLOADS |= {
    "fio through the page cache: sequential read 4k": (f"{FIO} --rw=read --bs=4k --io_size=16m {TIME}", True),
    "fio through the page cache: random write 4k": (
        f"{FIO} --rw=randwrite --bs=4k --io_size=8m --end_fsync=1 {TIME}", True),
    "2000 appends of 512 bytes": ("append 2000 512 /share/log", True),
    "find over 100,000 files": ("find /share/many | wc -l > /dev/null", True),
    "tar x of a source tree": ("rm -rf /share/out && mkdir /share/out && "
                               "tar -xf /share/tree.tar -C /share/out", True),
    "git status": ("cd /share/repo && git status > /dev/null", True),
    "read 2000 small files": ("cat /share/small/* > /dev/null", True),
}
PREPARE = {"tar x of a source tree": "rm -rf /share/out"}


def fill(d, names):
    """The tree that a server shares, of what the workloads want."""
    def wanted(word):
        return any(word in WORKLOADS[n][0] for n in names)
    for i in range(1000 if wanted("/many") else 0):
        sub = d / f"many/{i}"
        sub.mkdir(parents=True)
        at = os.open(sub, os.O_PATH)
        for k in range(100):
            os.close(os.open(f"file-{k}", os.O_CREAT | os.O_WRONLY, dir_fd=at))
        os.close(at)
    (d / "small").mkdir()
    for i in range(2000 if wanted("/small") else 0):
        (d / f"small/{i}").write_text("x" * 1000)
    with open(d / "big", "wb") as f:
        f.write(os.urandom(32 << 20))
    if wanted("tree.tar"):
        subprocess.run(["git", "-C", TOP, "archive", "-o", d / "tree.tar", "HEAD"], check=True)
    if wanted("/repo"):
        subprocess.run(["git", "clone", "-q", "--no-hardlinks", TOP, d / "repo"], check=True,
                       stderr=subprocess.DEVNULL)


def libraries(path):
    out = subprocess.run(["ldd", path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                         check=False).stdout
    return {w for line in out.splitlines() for w in line.split() if w.startswith("/")}


def build_initrd(where):
    root = where / "root"
    for d in ["bin", "usr/bin", "etc"]:
        (root / d).mkdir(parents=True)
    subprocess.run([os.environ.get("CC", "cc"), "-static", "-D_GNU_SOURCE", "-Os", "-Wall", "-o", root / "init",
                    TOP / "bench/fs-guest.c"], check=True)
    shutil.copy(shutil.which("busybox"), root / "bin/busybox")
    for name in ["sh", "find", "tar", "rm", "mkdir", "wc", "cat", "ls", "sync", "cut"]:
        os.symlink("busybox", root / "bin" / name)
    for name in ["fio", "git"]:
        program = shutil.which(name)
        if not program:
            sys.exit(f"fs.py: {name} is not installed")
        shutil.copy(program, root / "usr/bin" / name)
        for lib in libraries(program):
            target = root / lib.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                shutil.copy(lib, target)
    (root / "etc/gitconfig").write_text("[safe]\n\tdirectory = *\n")
    (root / "etc/passwd").write_text("root:x:0:0:root:/tmp:/bin/sh\n")
    cpio = where / "initrd.cpio"
    names = subprocess.run(["find", "."], cwd=root, stdout=subprocess.PIPE, check=True).stdout
    with open(cpio, "wb") as f:
        subprocess.run(["cpio", "--quiet", "-o", "-H", "newc"], input=names, stdout=f, cwd=root,
                       check=True)
    return cpio


def find_device():
    named = os.environ.get("CAISSON_VHOST_DEVICE")
    found = [pathlib.Path(named)] if named else list(
        TOP.glob("build/release/src/virtio/caisson-vhost-device"))
    if not found or not found[0].exists():
        sys.exit("fs.py: build caisson-vhost-device (release), or name it in CAISSON_VHOST_DEVICE")
    return found[0]


class Guest:
    def __init__(self, name, base, initrd, argv, cid):
        self.name, self.base = name, base
        self.share, self.sock = base / "share", base / "fs.sock"
        self.log = open(base / "log", "w", encoding="utf-8")
        self.server = subprocess.Popen([a.format(socket=self.sock, share=self.share) for a in argv],
                                       stdin=subprocess.PIPE, stdout=self.log, stderr=self.log)
        self.vsock = subprocess.Popen([find_device(), "--socket", base / "vsock.vu", "vsock",
                                       base / "v", str(cid)], stdin=subprocess.PIPE)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{base}/v_1030")
        listener.listen(1)
        listener.settimeout(120)
        subprocess.run(["sh", "-c", f"until [ -S {self.sock} ] && [ -S {base}/vsock.vu ]; do sleep 0.05; done"],
                       check=True, timeout=20)
        self.qemu = subprocess.Popen(
            ["qemu-system-x86_64", "-M", "microvm,acpi=off,isa-serial=off", "-cpu", "max",
             "-accel", "tcg", "-m", str(MEMORY), "-kernel", KERNEL, "-initrd", initrd,
             "-append", "console=hvc0 reboot=t panic=-1 quiet tsc=reliable",
             "-object", f"memory-backend-memfd,id=mem,size={MEMORY}M,share=on",
             "-machine", "memory-backend=mem", "-global", "virtio-mmio.force-legacy=false",
             "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
             "-qmp", f"unix:{base}/qmp,server=on,wait=off",
             "-chardev", f"file,id=con,path={base}/console",
             "-device", "virtio-serial-device", "-device", "virtconsole,chardev=con",
             "-chardev", f"socket,id=c0,path={base}/vsock.vu",
             "-device", "vhost-user-vsock-device,chardev=c0",
             "-chardev", f"socket,id=c1,path={self.sock}",
             "-device", "vhost-user-fs-device,chardev=c1,tag=share,queue-size=512"],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        conn, _ = listener.accept()
        conn.settimeout(600)
        self.control = conn.makefile("rw")
        assert self.control.readline() == "hello\n"
        self.find_queue()

    def find_queue(self):
        """Where the request queue's avail ring is: the guest's memory is a file."""
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(f"{self.base}/qmp")
            f = s.makefile("rw")

            def ask(command, **args):
                f.write(json.dumps({"execute": command, "arguments": args}) + "\n")
                f.flush()
                while "return" not in (answer := json.loads(f.readline())):
                    if "error" in answer:
                        raise RuntimeError(answer)
                return answer["return"]
            f.readline()
            ask("qmp_capabilities")
            path = [d["path"] for d in ask("x-query-virtio") if "fs" in d["name"]][0]
            # Not x-query-virtio-queue-status: it asks the server for the ring's state, which stops the ring.
            self.avail = ask("x-query-virtio-vhost-queue-status", path=path, queue=1)["avail-phys"]
        for fd in pathlib.Path(f"/proc/{self.qemu.pid}/fd").iterdir():
            if "memory-backend-memfd" in os.readlink(fd):
                with open(fd, "rb") as m:
                    self.ram = mmap.mmap(m.fileno(), MEMORY << 20, prot=mmap.PROT_READ)

    def requests(self):
        return struct.unpack_from("<H", self.ram, self.avail + 2)[0]

    def tree(self):
        """The server's processes: virtiofsd serves from a child."""
        found = [self.server.pid]
        for pid in found:
            try:
                kids = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
            except OSError:
                kids = ""
            found += [int(k) for k in kids.split()]
        return found

    def cpu(self):
        total = 0
        for pid in self.tree():
            f = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
            total += int(f[11]) + int(f[12])
        return total / TICK

    def memory(self):
        """KiB of its own: without what it maps of the guest's memory."""
        total = 0
        for pid in self.tree():
            for line in pathlib.Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
                if line.startswith(("RssAnon:", "RssFile:")):
                    total += int(line.split()[1])
        return total

    def fds(self):
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.tree())

    def __call__(self, command):
        self.control.write(command + "\n")
        self.control.flush()
        code, us, irqs = self.control.readline().split()
        if code != "0":
            raise RuntimeError(f"{self.name}: '{command}' ended with {code}")
        return int(us), int(irqs)

    def measure(self, workload):
        """Seconds in the guest, seconds of the server's processor time, requests (up to 65,535), interrupts."""
        if workload in PREPARE:
            self(PREPARE[workload])
        self("sync; echo 3 > /proc/sys/vm/drop_caches")
        cpu, asked = self.cpu(), self.requests()
        us, irqs = self(WORKLOADS[workload][0])
        return us / 1e6, self.cpu() - cpu, (self.requests() - asked) % 65536, irqs

    def close(self):
        for p in [self.qemu, self.server, self.vsock]:
            p.kill()
            p.wait()
        self.log.close()


def rust_peer():
    """Its command; a newer Debian's comes with the libraries of that Debian."""
    if RUST_PEER.exists():
        return [str(RUST_PEER)]
    root = PEERS / "virtiofsd"
    if not (root / "usr/libexec/virtiofsd").exists():
        return None
    return [str(root / "usr/lib64/ld-linux-x86-64.so.2"), "--library-path",
            str(root / "usr/lib/x86_64-linux-gnu"), str(root / "usr/libexec/virtiofsd")]


def peers(mode, attributes):
    """Names and commands."""
    _, c_mode, rust_mode = MODES[mode]
    found = []
    if C_PEER.exists():
        c = [str(C_PEER), "--socket-path={socket}", "-o", "source={share}", *c_mode]
        found += [("C virtiofsd", c), ("C virtiofsd -o xattr,posix_acl", [*c, "-o", "xattr,posix_acl"])]
    else:
        print("C virtiofsd: skipped, install qemu-system-common.\n")
    rust = rust_peer()
    if rust:
        rust += ["--socket-path={socket}", "--shared-dir={share}", "--log-level=error", *rust_mode]
        found += [("Rust virtiofsd", rust), ("Rust virtiofsd --xattr --posix-acl", [*rust, "--xattr", "--posix-acl"])]
    else:
        print("Rust virtiofsd: skipped, run tests/peers/get.\n")
    return found if attributes else found[::2]


def row(guests, workload, rounds):
    runs = [[g.measure(workload) for g in guests] for _ in range(rounds)]
    text = f"| {workload} | {1.5 if WORKLOADS[workload][1] else 1.0} |"
    for i in range(len(guests)):
        ms, cpu, asked, irqs = [statistics.median(r[i][k] for r in runs) for k in range(4)]
        text += f" {ms * 1000:.0f} | {cpu * 1000:.0f} | {asked:.0f} | {irqs:.0f} |"
        if i > 0:
            text += f" **{statistics.median(r[i][0] / r[0][0] for r in runs):.2f}** |"
    print(text, flush=True)


def table(guests, names, rounds):
    columns = "ms | CPU, ms | requests | interrupts |"
    print("| | bar |" + "".join(f" {g.name}: {columns}" + (" ratio |" if i else "")
                                for i, g in enumerate(guests)))
    print("|---|---|" + "---:|" * (4 + 5 * (len(guests) - 1)))
    for w in names:
        row(guests, w, rounds)
    print("\n| after all of it | " + " | ".join(g.name for g in guests) + " |")
    print("|---|" + "---:|" * len(guests))
    print("| memory of its own, KiB | " + " | ".join(str(g.memory()) for g in guests) + " |")
    print("| open descriptors | " + " | ".join(str(g.fds()) for g in guests) + " |", flush=True)


def compare(mode, args, names):
    guests = []
    print(f"\n### {mode}\n")
    with tempfile.TemporaryDirectory(prefix="caisson-bench-fs-", dir="/var/tmp") as tmp:
        tmp = pathlib.Path(tmp)
        initrd = build_initrd(tmp)
        ours = [str(find_device()), "--socket", "{socket}", "fs", "{share}", *MODES[mode][0],
                *filter(None, args.ours.split(","))]
        try:
            for i, (name, argv) in enumerate([("ours", ours), *peers(mode, args.attributes)]):
                base = tmp / str(i)
                (base / "share").mkdir(parents=True)
                fill(base / "share", names)
                guests.append(Guest(name, base, initrd, argv, 10 + i))
            table(guests, names, args.rounds)
        finally:
            for g in guests:
                g.close()


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("-r", "--rounds", type=int, default=2)
    ap.add_argument("-m", "--mode", choices=MODES)
    ap.add_argument("-o", "--ours", default="")
    ap.add_argument("-x", "--attributes", action="store_true")
    ap.add_argument("workloads", nargs="*")
    args = ap.parse_args()
    names = [w for w in WORKLOADS if not args.workloads or any(a in w for a in args.workloads)]
    if not KERNEL.exists():
        sys.exit("fs.py: no guest kernel")
    for mode in [args.mode] if args.mode else MODES:
        compare(mode, args, names)


if __name__ == "__main__":
    main()
