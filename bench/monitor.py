#!/usr/bin/python3
"""The built-in monitor beside QEMU with KVM: from exec to the agent's hello, and what it takes.

    bench/monitor.py [ROUNDS]

Runs itself in the testbed (tests/testbed), where KVM works; the machines take turns there. All times are
of guests of an emulated processor: only their ratios say something. Prints Markdown.
"""

import os
import pathlib
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time

TOP = pathlib.Path(__file__).resolve().parents[1]
STAGE = pathlib.Path(os.environ.get("CAISSON_STAGE", TOP / "build/release/stage"))
DRIVE = STAGE.parent / "src/vmm/caisson-vmm-drive"
MACHINES = ["builtin", "microvm", "q35"]
LIMIT = 120


def memory_of(pid):
    """KiB resident of a process: all but the guest's memory, private and dirty of that."""
    rest = dirty = 0
    guest = False
    for line in pathlib.Path(f"/proc/{pid}/smaps").read_text(encoding="ascii").splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            guest = line.endswith("/memory") or "memory (deleted)" in line
        elif not guest and line.startswith("Rss:"):
            rest += int(line.split()[1])
        elif not guest and line.startswith("Private_Dirty:"):
            dirty += int(line.split()[1])
    return rest, dirty


def round_of(machine):
    """Seconds to hello, KiB of the VM's processes, and exits if they are told."""
    with tempfile.TemporaryDirectory(prefix="bench-vm-") as d, \
            socket.socket(socket.AF_UNIX) as hello, open(f"{d}.log", "w+", encoding="ascii") as log:
        hello.bind(f"{d}/vsock.sock_1030")
        hello.listen(1)
        hello.settimeout(LIMIT)
        command = [DRIVE, "--dir", d, "--kernel", STAGE / "lib/caisson/vmlinux",
                   "--initrd", STAGE / "lib/caisson/initrd.cpio", "--program",
                   STAGE / "bin/caisson-vmm", "--accel", "kvm", "--machine", machine, "--shelf"]
        start = time.monotonic()
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                              text=True) as p:
            conn, _ = hello.accept()
            seconds = time.monotonic() - start
            pids = [int(p.stdout.readline().split()[1])]
            pids += [int(n) for n in re.findall(r"qemu=([1-9]\d*)", p.stdout.readline())]
            sizes = [memory_of(n) for n in pids]
            p.stdin.write("shutdown\n")
            p.stdin.flush()
            p.stdin.close()
            conn.close()
            p.wait(LIMIT)
        os.unlink(f"{d}.log")
        return seconds, sum(s[0] for s in sizes), sum(s[1] for s in sizes), len(pids)


def inside(rounds):
    found = {m: [] for m in MACHINES}
    for _ in range(rounds):
        for m in MACHINES:
            found[m].append(round_of(m))
    base = statistics.median(r[0] for r in found["microvm"])
    print("| machine | exec to hello, s (median, least) | of microvm's | processes | resident "
          "besides the guest's memory, KiB | private dirty, KiB |")
    print("|---|---|---|---|---|---|")
    for m in MACHINES:
        times = [r[0] for r in found[m]]
        middle = statistics.median(times)
        last = found[m][-1]
        print(f"| {m} | {middle:.2f}, {min(times):.2f} | {middle / base:.2f} | {last[3]} | {last[1]} | "
              f"{last[2]} |", flush=True)


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    if os.environ.get("CAISSON_IN_TESTBED") == "1":
        inside(rounds)
        return 0
    return subprocess.call([TOP / "tests/testbed/run", "--timeout", str(120 + rounds * 60), "--",
                            sys.executable, __file__, str(rounds)])


sys.exit(main())
