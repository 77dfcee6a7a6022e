#!/usr/bin/env python3
"""Our ttRPC beside Go's: the same payloads, in the same run, each implementation with itself.

run.py BUILDDIR

CPU is that of the server and the client together. Prints a table in Markdown.
"""
import os
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, f"{HERE}/../../tests/interop/ttrpc")
import run as interop  # noqa: E402

# payload bytes, calls in flight, calls
CASES = [(32, 1, 20000), (32, 64, 100000), (4096, 1, 20000), (4096, 64, 60000),
         (262144, 1, 2000), (262144, 8, 3000)]


def measure(program, folder, size, flight, calls):
    path = f"{folder}/bench.sock"
    if os.path.exists(path):
        os.unlink(path)
    server = subprocess.Popen([program, "server", path])
    interop.wait_for(path, server)
    client = subprocess.Popen([program, "bench", path, str(calls), str(flight), str(size)],
                              stdout=subprocess.PIPE, text=True)
    line = client.stdout.read()
    _, status, used_c = os.wait4(client.pid, 0)
    server.terminate()
    _, _, used_s = os.wait4(server.pid, 0)
    if status:
        sys.exit(f"{program}: the client failed")
    n, wall, p50, p99 = line.split()
    cpu = used_c.ru_utime + used_c.ru_stime + used_s.ru_utime + used_s.ru_stime
    return {"per_cpu": int(n) / max(cpu, 0.001), "rate": int(n) / float(wall),
            "p50": float(p50), "p99": float(p99)}


def best(results):
    """The run with most calls for each CPU-second: the one least disturbed by others."""
    return max(results, key=lambda r: r["per_cpu"])


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    ours = f"{sys.argv[1]}/tests/interop/ttrpc/ttrpc_peer"
    if not os.path.exists(ours):
        sys.exit(f"{ours} is not built")
    with tempfile.TemporaryDirectory(prefix="ttrpc-bench-") as folder:
        go, why = interop.build_go(folder)
        print("| payload, bytes | in flight | calls/CPU-s | p50 us | p99 us | Go: calls/CPU-s | "
              "p50 us | p99 us | ratio |")
        print("|---|---|---|---|---|---|---|---|---|")
        for size, flight, calls in CASES:
            mine, theirs = [], []
            for _ in range(2):
                mine.append(measure(ours, folder, size, flight, calls))
                if go:
                    theirs.append(measure(go, folder, size, flight, calls))
            m = best(mine)
            row = f"| {size} | {flight} | {m['per_cpu']:.0f} | {m['p50']:.0f} | {m['p99']:.0f} |"
            if go:
                t = best(theirs)
                row += (f" {t['per_cpu']:.0f} | {t['p50']:.0f} | {t['p99']:.0f} |"
                        f" {m['per_cpu'] / t['per_cpu']:.1f} |")
            else:
                row += " - | - | - | - |"
            print(row, flush=True)
        if not go:
            print(f"\nGo was not measured: {why}")


if __name__ == "__main__":
    start = time.time()
    main()
    print(f"\n({time.time() - start:.0f} s)")
