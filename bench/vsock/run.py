#!/usr/bin/env python3
"""The vsock device between a host program and a guest under QEMU's TCG. Prints Markdown.

Beside it stand the same transfers between two processes of the host over a Unix socket, which the
hybrid socket ends in: what is lost to the device, to QEMU and to the guest together. The processor
time is that of the device's own process.
"""

import os
import pathlib
import socket
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests/e2e"))

from devices import PERIOD, Machine, pattern  # noqa: E402

MIB = 1 << 20
BULK = int(os.environ.get("BENCH_MIB", "128")) * MIB
ROUNDS = 1000
CONNECTIONS = 200
CHUNK = 256 * 1024


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def receive_all(s):
    n = 0
    while chunk := s.recv(CHUNK):
        n += len(chunk)
    return n


def send_all(s, data):
    sent = 0
    while sent < BULK:
        at = sent % PERIOD
        sent += s.send(data[at:at + min(CHUNK, BULK - sent)])
    s.shutdown(socket.SHUT_WR)


def percentile(values, p):
    return sorted(values)[min(len(values) - 1, int(len(values) * p / 100))]


def echo(s):
    times = []
    for _ in range(ROUNDS):
        t = time.perf_counter()
        s.sendall(b"x" * 64)
        got = 0
        while got < 64:
            got += len(s.recv(64 - got))
        times.append((time.perf_counter() - t) * 1e6)
    return times


def unix_peer(serve):
    """One end of a Unix socket whose other end a child process serves."""
    a, b = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        a.close()
        serve(b)
        os._exit(0)
    b.close()
    return a, pid


def unix_figures(data):
    out = {}
    s, pid = unix_peer(receive_all)
    t = time.perf_counter()
    send_all(s, data)
    os.waitpid(pid, 0)
    out["to"] = BULK / MIB / (time.perf_counter() - t)
    s.close()
    s, pid = unix_peer(lambda b: send_all(b, data))
    t = time.perf_counter()
    receive_all(s)
    out["from"] = BULK / MIB / (time.perf_counter() - t)
    os.waitpid(pid, 0)

    def reflect(b):
        while chunk := b.recv(64):
            b.sendall(chunk)
    s, pid = unix_peer(reflect)
    out["echo"] = echo(s)
    s.close()
    os.waitpid(pid, 0)
    return out


def vsock_figures(data):
    out = {}
    with Machine([]) as vm:
        device = vm.backends[0].pid
        with vm.connect(8) as s:
            cpu, t = cpu_seconds(device), time.perf_counter()
            send_all(s, data)
            assert s.makefile().read() == f"{BULK} ok\n"
            out["to"] = BULK / MIB / (time.perf_counter() - t)
            out["to_cpu"] = cpu_seconds(device) - cpu
        with vm.connect(9) as s:
            s.sendall(f"{BULK}\n".encode())
            cpu, t = cpu_seconds(device), time.perf_counter()
            assert receive_all(s) == BULK
            out["from"] = BULK / MIB / (time.perf_counter() - t)
            out["from_cpu"] = cpu_seconds(device) - cpu
        with vm.connect(7) as s:
            out["echo"] = echo(s)
        t = time.perf_counter()
        for _ in range(CONNECTIONS):
            vm.connect(7).close()
        out["connects"] = CONNECTIONS / (time.perf_counter() - t)
    return out


def main():
    data = pattern()
    data += data[:CHUNK]
    unix, vsock = unix_figures(data), vsock_figures(data)
    gib = BULK / (1 << 30)
    print(f"{BULK // MIB} MiB each way, {ROUNDS} round trips of 64 bytes, "
          f"{CONNECTIONS} connections one after another; QEMU with TCG.\n")
    print("| | vsock device | Unix socket on the host |")
    print("|---|---|---|")
    print(f"| to the guest, MiB/s | {vsock['to']:.0f} | {unix['to']:.0f} |")
    print(f"| from the guest, MiB/s | {vsock['from']:.0f} | {unix['from']:.0f} |")
    print(f"| device's processor time, s per GiB to the guest | {vsock['to_cpu'] / gib:.2f} | |")
    print(f"| device's processor time, s per GiB from the guest | {vsock['from_cpu'] / gib:.2f} | |")
    for p in [50, 99]:
        print(f"| round trip, us, p{p} | {percentile(vsock['echo'], p):.0f} | "
              f"{percentile(unix['echo'], p):.0f} |")
    print(f"| connections a second | {vsock['connects']:.0f} | |")


if __name__ == "__main__":
    main()
