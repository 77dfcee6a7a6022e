#!/usr/bin/env python3
"""A pod's network through each model, as a share of what the bare veth pair does. Prints Markdown.

The client runs in the pod, the server at the other end of the veth pair. The first row is a process
in the pod's network namespace, the others are a container in a VM. Everything happens in a network
namespace of this program's own. Needs a staged build (CAISSON_STAGE) and iperf3; runs as root.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

TOP = pathlib.Path(__file__).resolve().parents[1]
SECONDS = float(os.environ.get("BENCH_SECONDS", "3"))
SERVER, CLIENT, PORT = "10.9.0.1", "10.9.0.2", "7000"

MEASURES = [  # name, arguments of peer, the less the better
    ("ping, us", ["ping", SERVER, "200"], True),
    ("TCP 128 B, MiB/s", ["stream", SERVER, PORT, "128", str(SECONDS)], False),
    ("TCP 1024 B, MiB/s", ["stream", SERVER, PORT, "1024", str(SECONDS)], False),
    ("TCP_RR, 1/s", ["tcp_rr", SERVER, PORT, str(SECONDS)], False),
    ("UDP_RR, 1/s", ["udp_rr", SERVER, PORT, str(SECONDS)], False),
]
IPERF = "iperf3 4 streams, MiB/s"


def enter_own_namespace():
    if os.environ.get("BENCH_NETNS") != "1":
        os.environ["BENCH_NETNS"] = "1"
        os.execvp("unshare", ["unshare", "--net", sys.executable, *sys.argv])
    with open("/proc/net/dev", encoding="ascii") as f:
        if [line.split(":")[0].strip() for line in f.readlines()[2:]] != ["lo"]:
            sys.exit("network.py: not in a network namespace of its own")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def make_image(sc, folder, peer):
    """A root with busybox, the peer, and iperf3 with its libraries."""
    root = pathlib.Path(sc.make_root(os.path.join(folder, "root")))
    shutil.copy(peer, root / "bin/peer")
    iperf = shutil.which("iperf3")
    if iperf:
        shutil.copy(iperf, root / "bin/iperf3")
        for line in subprocess.run(["ldd", iperf], capture_output=True, text=True,
                                   check=True).stdout.splitlines():
            found = re.search(r"(/\S+)", line)
            if found:
                target = root / found[1].lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(found[1], target)
    image = os.path.join(folder, "image.erofs")
    subprocess.run(["mkfs.erofs", "-T0", image, root], check=True, capture_output=True)
    return image


def iperf_args(seconds):
    return ["iperf3", "-c", SERVER, "-P", "4", "-t", str(int(seconds)), "-J"]


def iperf_result(text):
    return json.loads(text)["end"]["sum_received"]["bits_per_second"] / 8 / 1048576


class InGuest:
    """Runs commands in a container of the pod's VM."""

    def __init__(self, sc, host, pod, name, model):
        self.n = 0
        with open(host.config, "w", encoding="ascii") as f:
            f.write(f"vm:\n  boot_timeout: 60s\nnetwork:\n  model: {model}\n")
        spec = pod.spec(["sh", "-c", "while :; do sleep 1; done"])
        self.task = sc.Task(host, name, spec=spec)
        self.task.create()
        self.task.start()

    def __call__(self, args):
        self.n += 1
        out = self.task.fifo(f"x{self.n}.out")
        caps = {k: ["CAP_NET_RAW"] for k in ("bounding", "effective", "permitted")}
        self.task.exec(f"x{self.n}", args, stdout=out, stderr=out, capabilities=caps)
        self.task.start(f"x{self.n}")
        status = self.task.wait(f"x{self.n}", timeout=120)
        text = self.task.fifos[f"x{self.n}.out"].finish().decode()
        if status:
            raise RuntimeError(f"{args}: {status}\n{text}")
        return text

    def close(self):
        self.task.kill(9)
        self.task.wait()
        self.task.finish()


def measure(run, peer):
    row = {}
    for name, args, _ in MEASURES:
        row[name] = float(run([peer, *args]))
    if shutil.which("iperf3"):
        row[IPERF] = iperf_result(run(iperf_args(SECONDS)))
    return row


def print_table(rows):
    host = rows[0][1]
    names = [n for n, _, _ in MEASURES] + ([IPERF] if IPERF in host else [])
    less = {n for n, _, better in MEASURES if better}
    print("| model | " + " | ".join(names) + " |")
    print("|---|" + "---:|" * len(names))
    for model, row in rows:
        cells = []
        for n in names:
            share = (host[n] / row[n] if n in less else row[n] / host[n]) * 100
            cells.append(f"{row[n]:.0f} ({share:.1f}%)")
        print(f"| {model} | " + " | ".join(cells) + " |")


def main():
    enter_own_namespace()
    stage = pathlib.Path(os.environ.get("CAISSON_STAGE", TOP / "build/release/stage"))
    if not (stage / "bin/caisson").exists():
        sys.exit("network.py: no staged build; set CAISSON_STAGE")
    os.environ["CAISSON_STAGE"] = str(stage)
    sys.path.insert(0, str(TOP / "tests/e2e"))
    # pylint: disable=import-outside-toplevel
    import netpod
    import shimclient as sc

    folder = tempfile.mkdtemp(prefix="caisson-network-")
    peer = os.path.join(folder, "peer")
    subprocess.run(["cc", "-O2", "-static", "-o", peer, TOP / "bench/net/peer.c"], check=True)
    host = sc.Host(os.path.join(folder, "h"), make_image(sc, folder, peer))
    pod, servers, rows = netpod.Pod(), [], []
    try:
        pod.veth("eth0", [f"{CLIENT}/24"], "h0", [f"{SERVER}/24"])
        servers.append(subprocess.Popen([peer, "server", SERVER, PORT], stdout=subprocess.PIPE))
        servers[0].stdout.readline()
        if shutil.which("iperf3"):
            servers.append(subprocess.Popen(["iperf3", "-s", "-B", SERVER],
                                            stdout=subprocess.DEVNULL))
        inside = ["nsenter", f"--net={pod.path}"]
        rows.append(("host veth, no VM", measure(
            lambda args: subprocess.run([*inside, *args], capture_output=True, text=True,
                                        check=True).stdout, peer)))
        for model in ("tcfilter", "macvtap"):
            guest = InGuest(sc, host, pod, model, model)
            rows.append((model, measure(guest, "peer")))
            guest.close()
        # The link is a macvlan above the host's end of another pair.
        pod.do("ip addr flush dev eth0", "ip link set eth0 down")
        netpod.ip("ip", "link", "del", "h0")
        netpod.ip("ip", "link", "add", "m0", "type", "veth", "peer", "name", "m1")
        netpod.ip("ip", "link", "add", "link", "m1", "name", "mv0", "netns", str(pod.holder.pid),
                  "type", "macvlan", "mode", "bridge")
        for command in (f"ip addr add {SERVER}/24 dev m0", "ip link set m0 up",
                        "ip link set m1 up"):
            netpod.ip(*command.split())
        pod.do("ip link set mv0 name eth0", f"ip addr add {CLIENT}/24 dev eth0",
               "ip link set eth0 up")
        guest = InGuest(sc, host, pod, "macvlan", "tcfilter")
        rows.append(("tcfilter on a macvlan", measure(guest, "peer")))
        guest.close()
    finally:
        for s in servers:
            s.kill()
            s.wait()
        for t in host.tasks:
            host.shim(t.id, t.dir, "delete", ns=t.ns, check=False)
        pod.close()
        shutil.rmtree(folder, ignore_errors=True)
    print(f"One pod, one vCPU, MTU 1500, {SECONDS:g} s each; in brackets the share of the first row. "
          "Not measured: ipvlan and a passed-through card, which this host's kernel lacks.\n")
    print_table(rows)


if __name__ == "__main__":
    main()
