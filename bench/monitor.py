#!/usr/bin/python3
"""The built-in monitor beside QEMU with KVM: from exec to the agent's hello, and what it takes.

    bench/monitor.py [ROUNDS]

"restored" goes on from a saved machine, as sandboxes do that start from a template; "prefetched" too, with
the pages that another one used before its hello fetched ahead.

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
MACHINES = ["builtin", "restored", "prefetched", "microvm", "q35"]
CLONES = 4
LIMIT = 120


def memory_of(pid):
    """KiB resident of a process: all but the guest's memory, private and dirty of that."""
    rest = dirty = 0
    guest = False
    for line in pathlib.Path(f"/proc/{pid}/smaps").read_text(encoding="ascii").splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            guest = line.endswith(("/memory", "/ram")) or "memory (deleted)" in line
        elif not guest and line.startswith("Rss:"):
            rest += int(line.split()[1])
        elif not guest and line.startswith("Private_Dirty:"):
            dirty += int(line.split()[1])
    return rest, dirty


class Machine:
    """One that runs, its agent connected."""

    def __init__(self, machine, *options):
        self.dir = tempfile.TemporaryDirectory(prefix="bench-vm-")
        d = self.dir.name
        self.hello = socket.socket(socket.AF_UNIX)
        self.hello.bind(f"{d}/vsock.sock_1030")
        self.hello.listen(1)
        self.hello.settimeout(LIMIT)
        command = [DRIVE, "--dir", d, "--kernel", STAGE / "lib/caisson/vmlinux",
                   "--initrd", STAGE / "lib/caisson/initrd.cpio", "--program",
                   STAGE / "bin/caisson-vmm", "--accel", "kvm", "--machine", machine, "--shelf",
                   *options]
        start = time.monotonic()
        self.proc = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.conn, _ = self.hello.accept()
        self.seconds = time.monotonic() - start
        self.pids = [int(self.proc.stdout.readline().split()[1])]
        self.pids += [int(n) for n in re.findall(r"qemu=([1-9]\d*)", self.proc.stdout.readline())]

    def tell(self, text):
        self.proc.stdin.write(f"{text}\n")
        self.proc.stdin.flush()

    def save(self, to):
        self.tell(f"save {to}/ram {to}/state")
        answer = self.proc.stdout.readline()
        assert answer.startswith("done"), answer

    def pss(self):
        """KiB."""
        text = pathlib.Path(f"/proc/{self.pids[0]}/smaps_rollup").read_text(encoding="ascii")
        return int(re.search(r"^Pss:\s+(\d+)", text, re.M).group(1))

    def end(self):
        self.tell("shutdown")
        self.proc.stdin.close()
        self.conn.close()
        self.hello.close()
        self.proc.wait(LIMIT)
        self.proc.stdout.close()
        self.dir.cleanup()


def saved(d):
    """Leaves a saved machine in @d."""
    m = Machine("builtin", "--will-save")
    m.save(d)
    m.end()
    m = start("restored", d)
    m.tell(f"working-set {d}/working-set")
    answer = m.proc.stdout.readline()
    assert answer.startswith("done"), answer
    m.end()


def start(machine, saved_in):
    if machine not in ("restored", "prefetched"):
        return Machine(machine)
    more = ["--working-set", f"{saved_in}/working-set"] if machine == "prefetched" else []
    return Machine("builtin", "--load-ram", f"{saved_in}/ram", "--load-state", f"{saved_in}/state", *more)


def round_of(machine, saved_in):
    """Seconds to hello, KiB of the VM's processes."""
    m = start(machine, saved_in)
    sizes = [memory_of(n) for n in m.pids]
    m.end()
    return m.seconds, sum(s[0] for s in sizes), sum(s[1] for s in sizes), len(m.pids)


def clones(saved_in):
    """MiB by which idle clones of one machine add to what all of them take."""
    running = [start("restored", saved_in) for _ in range(CLONES)]
    time.sleep(3)
    before = sum(m.pss() for m in running)
    running.append(start("restored", saved_in))
    time.sleep(3)
    after = sum(m.pss() for m in running)
    for m in running:
        m.end()
    return (after - before) / 1024


def inside(rounds):
    found = {m: [] for m in MACHINES}
    with tempfile.TemporaryDirectory(prefix="bench-saved-") as d:
        saved(d)
        for _ in range(rounds):
            for m in MACHINES:
                found[m].append(round_of(m, d))
        size = clones(d)
        ram = os.stat(f"{d}/ram").st_blocks / 2048
    base = {m: statistics.median(r[0] for r in found[m]) for m in ("microvm", "builtin")}
    print("| machine | exec to hello, s (median, least) | of microvm's | of builtin's | processes | "
          "resident besides the guest's memory, KiB | private dirty, KiB |")
    print("|---|---|---|---|---|---|---|")
    for m in MACHINES:
        times = [r[0] for r in found[m]]
        middle = statistics.median(times)
        last = found[m][-1]
        print(f"| {m} | {middle:.2f}, {min(times):.2f} | {middle / base['microvm']:.2f} | "
              f"{middle / base['builtin']:.2f} | {last[3]} | {last[1]} | {last[2]} |", flush=True)
    print(f"\nThe saved memory has {ram:.1f} MiB; one more idle clone beside {CLONES} adds "
          f"{size:.1f} MiB (PSS).")


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    if os.environ.get("CAISSON_IN_TESTBED") == "1":
        inside(rounds)
        return 0
    return subprocess.call([TOP / "tests/testbed/run", "--timeout", str(240 + rounds * 90), "--",
                            sys.executable, __file__, str(rounds)])


sys.exit(main())
