#!/usr/bin/env python3
"""Our virtio-fs device beside virtiofsd, with the same QEMU and guest kernel. Prints Markdown.

Each server serves a directory of its own to a guest of its own; the guests take turns, so that a busy
machine is busy for both. Times are the guest's, the best of ROUNDS; beside them the interrupts of
the device, which is how often the guest had to wait, and the server's processor time.

The C virtiofsd is measured as it comes, which is without extended attributes, and with what ours always
has: attributes and ACLs cost a question of the guest's kernel here and there.

fs.py [-r ROUNDS] [-o OUR,OPTIONS] [WORKLOAD...]; CAISSON_VHOST_DEVICE names our program; runs as
root. The Rust virtiofsd, of a newer Debian, is measured where tests/peers/get has brought it.
"""

import argparse
import os
import pathlib
import shutil
import socket
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

FIO = ("fio --name=x --directory=/share --filename=big --size=32m --ioengine=psync --minimal "
       "--direct=1 --output=/tmp/fio")
# fio's own start takes longer than its work: fields of its terse output, the reads' and the writes' time
TIME = "&& cut -d ';' -f 9,50 /tmp/fio > /tmp/ms"
# name, command of the guest, is it a matter of many small operations
WORKLOADS = {
    f"fio {kind} {size}": (f"{FIO} --rw={rw} --bs={size} --io_size={total} {TIME}", size == "4k")
    for kind, rw in [("sequential read", "read"), ("random read", "randread"),
                     ("sequential write", "write"), ("random write", "randwrite")]
    for size, total in [("4k", "8m"), ("64k", "32m"), ("1m", "64m")]
}
WORKLOADS |= {
    "2000 appends of 512 bytes": ("append 2000 512 /share/log", True),
    "find over 100,000 files": ("find /share/many | wc -l > /dev/null", True),
    "tar x of a source tree": ("rm -rf /share/out && mkdir /share/out && "
                               "tar -xf /share/tree.tar -C /share/out", True),
    "git status": ("cd /share/repo && git status > /dev/null", True),
    "read 2000 small files": ("cat /share/small/* > /dev/null", True),
}
PREPARE = {"tar x of a source tree": "rm -rf /share/out"}


def fill(d):
    """The tree that both servers share, once each."""
    (d / "many").mkdir()
    for i in range(1000):
        sub = d / f"many/{i}"
        sub.mkdir()
        for k in range(100):
            (sub / f"file-{k}").touch()
    (d / "small").mkdir()
    for i in range(2000):
        (d / f"small/{i}").write_text("x" * 1000)
    with open(d / "big", "wb") as f:
        f.write(os.urandom(32 << 20))
    subprocess.run(["git", "-C", TOP, "archive", "-o", d / "tree.tar", "HEAD"], check=True)
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
        if workload in PREPARE:
            self(PREPARE[workload])
        self("sync; echo 3 > /proc/sys/vm/drop_caches")
        before = self.cpu()
        us, irqs = self(WORKLOADS[workload][0])
        return us, irqs, self.cpu() - before

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


def peers():
    found = []
    if C_PEER.exists():
        c = [str(C_PEER), "--socket-path={socket}", "-o", "source={share}"]
        found += [("C virtiofsd", c), ("C virtiofsd -o xattr,posix_acl", [*c, "-o", "xattr,posix_acl"])]
    else:
        print("C virtiofsd: skipped, install qemu-system-common.\n")
    rust = rust_peer()
    if rust:
        rust += ["--socket-path={socket}", "--shared-dir={share}", "--log-level=error"]
        found += [("Rust virtiofsd", rust), ("Rust virtiofsd --xattr", [*rust, "--xattr", "--posix-acl"])]
    else:
        print("Rust virtiofsd: skipped, run tests/peers/get.\n")
    return found


def table(guests, names, rounds):
    ours, others = guests[0], guests[1:]
    print("| | bar | ours: ms | server's CPU, ms | interrupts |" + "".join(
        f" {g.name}: ms | server's CPU, ms | interrupts | ratio |" for g in others))
    print("|---|---|" + "---:|" * (3 + 4 * len(others)))
    for w in names:
        runs = {g.name: [] for g in guests}
        for _ in range(rounds):
            for g in guests:
                runs[g.name].append(g.measure(w))

        def best(g, runs=runs):
            return min(r[0] for r in runs[g.name]) / 1000, min(r[2] for r in runs[g.name]) * 1000, \
                min(r[1] for r in runs[g.name])
        ms, cpu, irqs = best(ours)
        row = f"| {w} | {1.5 if WORKLOADS[w][1] else 1.0} | {ms:.0f} | {cpu:.0f} | {irqs} |"
        for g in others:
            pms, pcpu, pirqs = best(g)
            row += f" {pms:.0f} | {pcpu:.0f} | {pirqs} | {pms / ms:.2f} |"
        print(row, flush=True)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("-r", "--rounds", type=int, default=3)
    ap.add_argument("-o", "--ours", default="")
    ap.add_argument("workloads", nargs="*")
    args = ap.parse_args()
    names = [w for w in WORKLOADS if not args.workloads or any(a in w for a in args.workloads)]
    if not KERNEL.exists():
        sys.exit("fs.py: no guest kernel")
    guests = []
    with tempfile.TemporaryDirectory(prefix="caisson-bench-fs-", dir="/var/tmp") as tmp:
        tmp = pathlib.Path(tmp)
        initrd = build_initrd(tmp)
        ours = [str(find_device()), "--socket", "{socket}", "fs", "{share}",
                *filter(None, args.ours.split(","))]
        try:
            for i, (name, argv) in enumerate([("ours", ours), *peers()]):
                base = tmp / str(i)
                (base / "share").mkdir(parents=True)
                fill(base / "share")
                guests.append(Guest(name, base, initrd, argv, 10 + i))
            table(guests, names, args.rounds)
            print("\n| after all of it | " + " | ".join(g.name for g in guests) + " |")
            print("|---|" + "---:|" * len(guests))
            print("| memory of its own, KiB | " + " | ".join(str(g.memory()) for g in guests) + " |")
            print("| open descriptors | " + " | ".join(str(g.fds()) for g in guests) + " |")
        finally:
            for g in guests:
                g.close()


if __name__ == "__main__":
    main()
