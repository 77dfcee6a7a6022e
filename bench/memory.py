#!/usr/bin/env python3
"""What one idle container costs the host, by part. Prints Markdown.

PSS counts a page that n processes share as 1/n of a page for each. The guest's memory is a file on
a tmpfs in the machine's jail: its blocks are counted by themselves, and taken off QEMU's figure.
Needs a staged build (CAISSON_STAGE); runs as root.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

TOP = pathlib.Path(__file__).resolve().parents[1]
GUEST_MIB = 128
SETTLE_SECONDS = 5


def smaps(pid):
    """(PSS without guest memory, private dirty, resident guest memory), in KiB."""
    pss = private_dirty = 0
    in_guest = False
    with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as f:
        for line in f:
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                in_guest = line.rstrip().endswith("/ram/memory")
                continue
            key, _, rest = line.partition(":")
            if key == "Pss" and not in_guest:
                pss += int(rest.split()[0])
            elif key == "Private_Dirty" and not in_guest:
                private_dirty += int(rest.split()[0])
    ram = pathlib.Path(f"/proc/{pid}/root/ram/memory")
    return pss, private_dirty, ram.stat().st_blocks // 2 if ram.exists() else 0


def processes(needle):
    found = {}
    for p in pathlib.Path("/proc").iterdir():
        if not p.name.isdigit():
            continue
        try:
            cmdline = (p / "cmdline").read_bytes()
            if needle.encode() not in cmdline + (p / "environ").read_bytes():
                links = [os.readlink(p / "cwd"), *(os.readlink(f) for f in (p / "fd").iterdir())]
                if not any(needle in x for x in links):
                    continue
            comm = (p / "comm").read_text(encoding="ascii").strip()
        except OSError:
            continue
        program = cmdline.split(b"\0")[0]
        if comm.startswith("qemu-system"):
            found.setdefault("QEMU", []).append(int(p.name))
        elif b"containerd-shim" in program:
            found.setdefault("shim", []).append(int(p.name))
        elif program.endswith(b"caisson-vmm"):
            found.setdefault("caisson-vmm", []).append(int(p.name))
    return found


def caisson(stage, *args):
    return subprocess.run([stage / "bin/caisson", *args], stdout=subprocess.PIPE, text=True,
                          check=True).stdout


def main():
    stage = pathlib.Path(os.environ.get("CAISSON_STAGE", TOP / "build/release/stage"))
    if not (stage / "bin/caisson").exists():
        sys.exit("memory.py: no staged build; set CAISSON_STAGE")
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="caisson-memory-"))
    os.environ.update(CAISSON_ROOT=str(scratch / "root"), CAISSON_RUN=str(scratch / "run"),
                      NETCONFPATH=str(scratch / "net"))
    layout = subprocess.run([TOP / "tests/images/build", "busybox"], stdout=subprocess.PIPE, text=True,
                            check=True).stdout.split()[-1]
    try:
        caisson(stage, "run", "-d", "--name", "idle", "--annotation",
                f"io.caisson.memory={GUEST_MIB}MiB", f"oci:{layout}:latest", "sleep", "1000")
        time.sleep(SETTLE_SECONDS)
        rows, guest, ours = [], 0, 0
        for name, pids in sorted(processes(str(scratch / "run")).items()):
            sums = [sum(x) for x in zip(*map(smaps, pids))]
            guest = max(guest, sums[2] if name == "QEMU" else 0)
            ours += sums[0] if name != "QEMU" else 0
            rows.append((f"{name} ({len(pids)} process{'es' * (len(pids) > 1)})", sums[0], sums[1]))
        used = caisson(stage, "exec", "idle", "cat", "/proc/meminfo")
        mem = {k: int(v.split()[0]) for k, v in
               (line.split(":") for line in used.splitlines() if ":" in line)}
        print("| part | PSS, KiB | private dirty, KiB |\n|---|---:|---:|")
        for name, pss, dirty in rows:
            print(f"| {name} | {pss} | {dirty} |")
        print(f"| **shim + caisson-vmm** | **{ours}** | |")
        print(f"| guest memory resident on the host (of {GUEST_MIB} MiB) | {guest} | |")
        print(f"| guest: total - available | {mem['MemTotal'] - mem['MemAvailable']} | |")
        print(f"| guest: total - free | {mem['MemTotal'] - mem['MemFree']} | |")
    finally:
        subprocess.run([stage / "bin/caisson", "rm", "-f", "idle"], stdout=subprocess.DEVNULL,
                       check=False)
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
