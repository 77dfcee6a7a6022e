#!/usr/bin/env python3
"""Our virtio-blk device beside QEMU's own with io_uring, in one guest. Prints Markdown.

Both disks are files of 256 MiB in the host's page cache. fio runs in the guest with O_DIRECT, on one
disk after the other, so that a busy machine is busy for both: the ratio is the median of those of the rounds,
in which the disks take turns at being first. Interrupts for each request do not depend on the clock.

The guest's machine is q35, where its kicks reach both by an eventfd, as with KVM. With --microvm, under
emulation, there is none: QEMU then does a request of its own disk in the thread of the guest's
processor, before the guest goes on, which no process beside it can.

blk.py [-r ROUNDS] [-s SECONDS] [--microvm] [JOB...]; CAISSON_VHOST_DEVICE names our program; runs as root.
"""

import argparse
import os
import pathlib
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile

TOP = pathlib.Path(__file__).resolve().parents[1]
KERNEL = pathlib.Path(os.environ.get("CAISSON_KERNEL", "/var/cache/caisson/guest/current/vmlinux"))
SIZE = 256 << 20
MEMORY = 768
IOPS_READ, IOPS_WRITE = 7, 48  # of fio's terse format

JOBS = {
    "random read 4k": ("--rw=randread --bs=4k --ioengine=psync", IOPS_READ),
    "random read 4k, 32 at a time": ("--rw=randread --bs=4k --ioengine=libaio --iodepth=32", IOPS_READ),
    "random write 4k": ("--rw=randwrite --bs=4k --ioengine=psync", IOPS_WRITE),
    "random write 4k, 32 at a time": ("--rw=randwrite --bs=4k --ioengine=libaio --iodepth=32", IOPS_WRITE),
    "write 4k, each with fsync": ("--rw=write --bs=4k --ioengine=psync --fsync=1", IOPS_WRITE),
    "read 1m": ("--rw=read --bs=1m --ioengine=libaio --iodepth=4", IOPS_READ),
    "write 1m": ("--rw=write --bs=1m --ioengine=libaio --iodepth=4", IOPS_WRITE),
}


def libraries(path):
    out = subprocess.run(["ldd", path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                         check=False).stdout
    return {w for line in out.splitlines() for w in line.split() if w.startswith("/")}


def build_initrd(where, script):
    root = where / "root"
    for d in ["bin", "usr/bin", "proc", "sys", "dev"]:
        (root / d).mkdir(parents=True)
    shutil.copy(shutil.which("busybox"), root / "bin/busybox")
    fio = shutil.which("fio")
    if not fio:
        sys.exit("blk.py: fio is not installed")
    shutil.copy(fio, root / "usr/bin/fio")
    for lib in libraries(fio):
        target = root / lib.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.copy(lib, target)
    (root / "init").write_text(script)
    (root / "init").chmod(0o755)
    names = subprocess.run(["find", "."], cwd=root, stdout=subprocess.PIPE, check=True).stdout
    with open(where / "initrd.cpio", "wb") as f:
        subprocess.run(["cpio", "--quiet", "-o", "-H", "newc"], input=names, stdout=f, cwd=root,
                       check=True)
    return where / "initrd.cpio"


def guest_script(names, rounds, seconds):
    lines = ["#!/bin/busybox sh", "b=/bin/busybox", "$b mount -t devtmpfs dev /dev",
             "$b mount -t proc proc /proc", "$b mount -t sysfs sys /sys",
             "for d in vda vdb; do case $($b cat /sys/block/$d/serial) in "
             "ours) ours=$d;; *) qemus=$d;; esac; done",
             # Of a disk: its line or, where each queue has one, its lines.
             'irqs() { $b awk -v n=$($b basename $($b readlink /sys/block/$1/device)) '
             "'{ for (i = 3; i <= NF; i++) if ($i == n || index($i, n \"-\") == 1) s += $2 } "
             "END { print s + 0 }' /proc/interrupts; }"]
    for r in range(rounds):
        for i, name in enumerate(names):
            options, _ = JOBS[name]
            for disk in ["ours", "qemus"] if r % 2 == 0 else ["qemus", "ours"]:
                lines.append(f"n=$(irqs ${disk}); f=$(fio --name=x --filename=/dev/${disk} --size=100% "
                             f"--direct=1 --minimal --time_based --runtime={seconds} {options}); "
                             f'echo "RESULT {disk} {i} $(($(irqs ${disk}) - n));$f"')
    return "\n".join([*lines, "$b reboot -f", ""])


def find_device():
    named = os.environ.get("CAISSON_VHOST_DEVICE", TOP / "build/release/src/virtio/caisson-vhost-device")
    if not pathlib.Path(named).exists():
        sys.exit("blk.py: build caisson-vhost-device (release), or name it in CAISSON_VHOST_DEVICE")
    return named


def run(where, names, rounds, seconds, microvm):
    for name in ["ours", "qemus"]:
        with open(where / name, "wb") as f:
            for _ in range(SIZE >> 20):
                f.write(os.urandom(1 << 20))
    initrd = build_initrd(where, guest_script(names, rounds, seconds))
    ours, theirs = socket.socketpair()
    machine, bus = ("microvm,acpi=off,isa-serial=off", "device") if microvm else ("q35", "pci")
    with subprocess.Popen([find_device(), "--fd", str(theirs.fileno()), "blk", where / "ours", "ours"],
                          pass_fds=[theirs.fileno()], stdin=subprocess.PIPE) as device:
        theirs.close()
        subprocess.run(
            ["qemu-system-x86_64", "-M", machine, "-cpu", "max", "-accel",
             "kvm" if os.environ.get("CAISSON_BENCH_KVM") else "tcg", "-m", str(MEMORY),
             "-kernel", KERNEL, "-initrd", initrd,
             "-append", "console=hvc0 reboot=t panic=-1 quiet tsc=reliable",
             "-object", f"memory-backend-memfd,id=mem,size={MEMORY}M,share=on",
             "-machine", "memory-backend=mem", "-global", "virtio-mmio.force-legacy=false",
             "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
             "-chardev", f"file,id=con,path={where}/console",
             "-device", f"virtio-serial-{bus}", "-device", "virtconsole,chardev=con",
             "-chardev", f"socket,id=c0,fd={ours.fileno()}",
             "-device", ("vhost-user-blk" if microvm else "vhost-user-blk-pci") + ",chardev=c0,num-queues=1",
             "-blockdev", f"driver=file,filename={where}/qemus,node-name=f,aio=io_uring,discard=unmap",
             "-blockdev", "driver=raw,file=f,node-name=d",
             "-device", f"virtio-blk-{bus},drive=d,num-queues=1,serial=qemus"],
            pass_fds=[ours.fileno()], stdin=subprocess.DEVNULL, check=True,
            timeout=120 + rounds * len(names) * 2 * (seconds + 20))
        device.terminate()
    return (where / "console").read_text(errors="replace")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("-r", type=int, default=4)
    p.add_argument("-s", type=int, default=2)
    p.add_argument("jobs", nargs="*", help="words; all jobs that have one in their name")
    p.add_argument("--microvm", action="store_true")
    a = p.parse_args()
    names = [n for n in JOBS if not a.jobs or any(w in n for w in a.jobs)]
    rates, irqs = {}, {}
    with tempfile.TemporaryDirectory(prefix="caisson-blk-", dir="/var/tmp") as d:
        text = run(pathlib.Path(d), names, a.r, a.s, a.microvm)
    for line in text.splitlines():
        if not line.startswith("RESULT "):
            continue
        head, *fields = line.split(";")
        _, disk, job, n = head.split()
        name = names[int(job)]
        _, field = JOBS[name]
        rate, ms = int(fields[field]), int(fields[field + 1])
        rates.setdefault((disk, name), []).append(rate)
        irqs.setdefault((disk, name), []).append(int(n) / max(rate * ms / 1000, 1))
    print("| | ours: operations a second | interrupts each | QEMU's, io_uring: operations a second | "
          "interrupts each | ratio |\n|---|---:|---:|---:|---:|---:|")
    for name in names:
        ours, qemus = rates["ours", name], rates["qemus", name]
        ratio = statistics.median(x / max(y, 1) for x, y in zip(ours, qemus))
        print(f"| {name} | {statistics.median(ours):.0f} | {statistics.median(irqs['ours', name]):.2f} | "
              f"{statistics.median(qemus):.0f} | {statistics.median(irqs['qemus', name]):.2f} | **{ratio:.2f}** |")


if __name__ == "__main__":
    main()
