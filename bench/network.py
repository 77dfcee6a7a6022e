#!/usr/bin/env python3
"""A pod's network through each model, as a share of what there is without a VM. Prints Markdown.

The client runs in the pod, the server at the other end of the wire. In each table the first row of a
kind is a process in the pod's network namespace, the others are a container in a VM. Everything
happens in network namespaces of this program's own. What the host's kernel may lack (ipvlan, VFIO,
vhost-net) is measured in the testbed (tests/testbed), where the host itself is emulated.
Needs a staged build (CAISSON_STAGE) and iperf3; runs as root.
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
INSIDE = os.environ.get("CAISSON_IN_TESTBED") == "1"
SECONDS = float(os.environ.get("BENCH_SECONDS", "2"))
PINGS = "20" if INSIDE else "200"
TESTBED_LIMIT = "270"
SERVER, CLIENT, PORT = "10.9.0.1", "10.9.0.2", "7000"

MEASURES = [  # name, arguments of peer, the less the better
    ("ping, us", ["ping", SERVER, PINGS], True),
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

    def __init__(self, sc, host, pod, name, model, vm=""):
        self.n = 0
        with open(host.config, "w", encoding="ascii") as f:
            f.write(f"vm:\n  boot_timeout: 150s\n{vm}network:\n  model: {model}\n")
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


def print_row(rows):
    """The last of @rows, which are: name, figures, and the place of the row that they are shares of."""
    model, row, base = rows[-1]
    names = [n for n, _, _ in MEASURES] + ([IPERF] if IPERF in row else [])
    less = {n for n, _, better in MEASURES if better}
    host, cells = rows[base][1], []
    if len(rows) == 1:
        print("| model | " + " | ".join(names) + " |\n|---|" + "---:|" * len(names))
    for n in names:
        share = (host[n] / row[n] if n in less else row[n] / host[n]) * 100
        cells.append(f"{row[n]:.{0 if row[n] >= 10 else 1}f} ({share:.1f}%)")
    print(f"| {model} | " + " | ".join(cells) + " |", flush=True)


class Bench:
    """A pod, the servers at the other end, and the rows of a table."""

    def __init__(self, folder, image, peer):
        # pylint: disable=import-outside-toplevel
        import netpod
        import shimclient
        self.netpod, self.sc, self.peer = netpod, shimclient, peer
        self.host = shimclient.Host(os.path.join(folder, "h"), image)
        self.pod, self.servers, self.rows = netpod.Pod(), [], []

    def serve(self):
        self.stop_serving()
        self.servers.append(subprocess.Popen([self.peer, "server", SERVER, PORT],
                                             stdout=subprocess.PIPE))
        self.servers[0].stdout.readline()
        if shutil.which("iperf3"):
            self.servers.append(subprocess.Popen(["iperf3", "-s", "-B", SERVER],
                                                 stdout=subprocess.DEVNULL))

    def stop_serving(self):
        for s in self.servers:
            s.kill()
            s.wait()
        self.servers = []

    def without_vm(self, name):
        """A row for others to be shares of."""
        inside = ["nsenter", f"--net={self.pod.path}"]
        self.rows.append((name, measure(
            lambda args: subprocess.run([*inside, *args], capture_output=True, text=True,
                                        check=True).stdout, self.peer), len(self.rows)))
        print_row(self.rows)

    def in_vm(self, name, model, base=0, vm=""):
        guest = InGuest(self.sc, self.host, self.pod, f"r{len(self.rows)}", model, vm)
        self.rows.append((name, measure(guest, "peer"), base))
        print_row(self.rows)
        guest.close()

    def above(self, parent, *kind):
        """The pod's link becomes one of that kind above a link of ours."""
        ip = self.netpod.ip
        self.pod.do("ip link del eth0", check=False)
        ip("ip", "link", "add", "link", parent, "name", "up0", "netns", self.pod.pid(), "type", *kind)
        self.pod.do("ip link set up0 name eth0", f"ip addr add {CLIENT}/24 dev eth0",
                    "ip link set eth0 up")

    def wire(self):
        """A pair that is in no pod: the server has one end."""
        ip = self.netpod.ip
        ip("ip", "link", "del", "h0", check=False)
        ip("ip", "link", "add", "h0", "type", "veth", "peer", "name", "m1")
        for command in (f"ip addr add {SERVER}/24 dev h0", "ip link set h0 up", "ip link set m1 up"):
            ip(*command.split())
        return "m1"

    def close(self):
        self.stop_serving()
        for t in self.host.tasks:
            self.host.shim(t.id, t.dir, "delete", ns=t.ns, check=False)
        self.pod.close()


def on_this_host(b):
    b.pod.veth("eth0", [f"{CLIENT}/24"], "h0", [f"{SERVER}/24"])
    b.serve()
    b.without_vm("host veth, no VM")
    b.in_vm("tcfilter", "tcfilter")
    b.in_vm("macvtap", "macvtap")
    b.pod.do("ip link del eth0")
    b.above(b.wire(), "macvlan", "mode", "bridge")
    b.serve()
    b.in_vm("tcfilter on a macvlan", "tcfilter")


def in_the_testbed(b):
    """Two wires: a veth pair, and two cards of the emulated host."""
    ip = b.netpod.ip
    b.pod.veth("eth0", [f"{CLIENT}/24"], "h0", [f"{SERVER}/24"])
    b.serve()
    b.without_vm("host veth, no VM")
    b.in_vm("tcfilter, our own device", "tcfilter")
    b.pod.do("ip link del eth0")
    b.above(b.wire(), "ipvlan", "mode", "l2")
    b.serve()
    b.in_vm("tcfilter on an ipvlan, our own device", "tcfilter")
    b.pod.do("ip link del eth0")
    ip("ip", "link", "del", "h0")
    for module in ("virtio_net", "vfio-pci"):
        subprocess.run(["modprobe", module], check=True)
    pathlib.Path("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts").write_text(
        "1", encoding="ascii")
    cards = {x["address"]: x["ifname"] for x in json.loads(ip("ip", "-j", "link"))}
    ip("ip", "link", "set", cards["02:00:00:00:77:00"], "netns", b.pod.pid(), "name", "eth0")
    ip("ip", "link", "set", cards["02:00:00:00:77:01"], "name", "h0")
    ip("ip", "addr", "add", f"{SERVER}/24", "dev", "h0")
    ip("ip", "link", "set", "h0", "up")
    b.pod.do(f"ip addr add {CLIENT}/24 dev eth0", "ip link set eth0 up")
    b.serve()
    b.without_vm("host card, no VM")
    card = len(b.rows) - 1
    b.in_vm("passthrough (VFIO)", "vfio", card)
    # What the driver forgot when the card came back.
    b.pod.do(f"ip addr add {CLIENT}/24 dev eth0", "ip link set eth0 up")
    b.in_vm("tcfilter on the card, our own device", "tcfilter", card)
    b.in_vm("tcfilter on the card, QEMU and vhost-net", "tcfilter", card, "  machine: microvm\n")


def run(what, folder, image, peer):
    b = Bench(folder, image, peer)
    try:
        what(b)
    finally:
        b.close()


def main():
    stage = pathlib.Path(os.environ.get("CAISSON_STAGE", TOP / "build/release/stage")).resolve()
    os.environ["CAISSON_STAGE"] = str(stage)
    sys.path.insert(0, str(TOP / "tests/e2e"))
    if INSIDE:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        run(in_the_testbed, tempfile.mkdtemp(), *sys.argv[1:])
        return
    enter_own_namespace()
    if not (stage / "bin/caisson").exists():
        sys.exit("network.py: no staged build; set CAISSON_STAGE")
    import shimclient  # pylint: disable=import-outside-toplevel
    folder = tempfile.mkdtemp(prefix="caisson-network-")
    try:
        peer = os.path.join(folder, "peer")
        subprocess.run(["cc", "-O2", "-static", "-o", peer, TOP / "bench/net/peer.c"], check=True)
        image = make_image(shimclient, folder, peer)
        print(f"One pod, one vCPU, MTU 1500, {SECONDS:g} s each; in brackets the share of what a process of "
              "the pod has without a VM.\n", flush=True)
        run(on_this_host, folder, image, peer)
        print("\nIn the testbed: the host is emulated, its KVM runs on that, so that only shares say "
              "something. A card's rows are shares of the card.\n", flush=True)
        subprocess.run([TOP / "tests/testbed/run", "--vfio", "--timeout", TESTBED_LIMIT, "--memory", "3072",
                        "--load", "kvm_amd,ipvlan,vhost_net", "--", sys.executable, __file__, image, peer],
                       check=False, env={**os.environ, "BENCH_SECONDS": "1"})
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
