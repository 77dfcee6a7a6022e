"""The VM sees the pod's network: links, addresses, routes, and packets both ways.

The pod's namespace is what CNI would leave; the namespace of the tests stands for the host's.
"""

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time

import pytest

import shimclient as sc
from netpod import Pod, ip
from shimclient import RpcError, Task

pytestmark = pytest.mark.skipif(not sc.STAGE or not os.path.exists(sc.SHIM),
                                reason="CAISSON_STAGE names no staged build")

IDLE = ["sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.1; done"]
CAPS = {k: ["CAP_NET_RAW"] for k in ("bounding", "effective", "permitted")}


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return sc.make_image(str(tmp_path_factory.mktemp("image")))


@pytest.fixture(scope="module")
def templates(tmp_path_factory):
    return str(tmp_path_factory.mktemp("templates"))


@pytest.fixture
def host(tmp_path, image, templates, request):
    h = sc.Host(tmp_path / "h", image)
    h.env["CAISSON_TEMPLATES"] = templates
    yield h
    for t in h.tasks:
        if request.session.testsfailed:
            print(f"--- log of {t.id}\n{h.log(t.id)[-4000:]}")
        h.shim(t.id, t.dir, "delete", ns=t.ns, check=False)
    left = h.leftovers()
    assert not left, left


@pytest.fixture
def pod():
    p = Pod()
    yield p
    p.close()


def configure(host, text):
    with open(host.config, "w", encoding="ascii") as f:
        f.write(f"vm:\n  boot_timeout: 60s\n{text}")


def start(host, pod, cid="net", args=None, **spec):
    t = Task(host, cid, spec=pod.spec(args or IDLE, **spec))
    t.create()
    t.start()
    return t


def sh(t, script, check=True, seen=[0]):
    seen[0] += 1
    exec_id = f"x{seen[0]}"
    out = t.fifo(f"{exec_id}.out")
    t.exec(exec_id, ["sh", "-c", script], stdout=out, stderr=out, capabilities=CAPS)
    t.start(exec_id)
    status = t.wait(exec_id)
    text = t.fifos[f"{exec_id}.out"].finish().decode()
    t.delete(exec_id)
    assert status == 0 or not check, f"{script}: {status}\n{text}"
    return text


def stop(t):
    t.kill(signal.SIGKILL)
    t.wait()
    t.finish()


def eventually(what, seconds=20):
    deadline = time.monotonic() + seconds
    while not (value := what()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return value


def clean(pod, *links):
    """Nothing of ours is left in the pod's namespace."""
    assert eventually(lambda: not [x for x in pod.links() if x.endswith("_csn")]), pod.links()
    for link in links:
        assert "ingress" not in pod.filters(link), pod.filters(link)


def ping(t, address, count=1):
    return sh(t, f"busybox ping -c {count} -W 10 {address}")


class Server:
    """Counts what it is sent and sends it back, on the host's side of the veth."""

    def __init__(self, address, netns=None):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.sock = socket.create_server((address, 0), family=family)
        self.port = self.sock.getsockname()[1]
        self.got = 0
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        while True:
            try:
                c, _ = self.sock.accept()
            except OSError:
                return
            with c:
                data = bytearray()
                while part := c.recv(65536):
                    data += part
                self.got = len(data)
                c.sendall(hashlib.md5(data).hexdigest().encode() + b"\n")

    def close(self):
        self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


def upload(t, address, size=3 << 20):
    """TCP with large segments: what offloading would spoil would not add up."""
    s = Server(address)
    try:
        text = sh(t, f"head -c {size} /dev/urandom > /tmp/x; md5sum < /tmp/x;"
                     f"busybox nc {address} {s.port} < /tmp/x")
        sums = [x.split()[0] for x in text.splitlines()]
        assert len(sums) == 2 and sums[0] == sums[1], text
        assert s.got == size
    finally:
        s.close()


def test_tcfilter(host, pod):
    """One veth, both families; what the namespace says is what the guest has."""
    pod.veth("eth0", ["10.9.0.2/24", "fd09::2/64"], "h0", ["10.9.0.1/24", "fd09::1/64"], mtu=1400,
             mac="02:11:22:33:44:55")
    pod.do("ip route add default via 10.9.0.1", "ip -6 route add default via fd09::1 metric 77",
           "ip route add 10.77.0.0/16 via 10.9.0.7",
           "ip neigh add 10.9.0.9 lladdr 02:00:00:00:00:99 dev eth0")
    t = start(host, pod)
    text = sh(t, "busybox ip addr show eth0; busybox ip route; busybox ip -6 route;"
                 "cat /proc/net/arp")
    for want in ("mtu 1400", "link/ether 02:11:22:33:44:55", "inet 10.9.0.2/24 brd 10.9.0.255",
                 "inet6 fd09::2/64", "default via 10.9.0.1 dev eth0",
                 "10.9.0.0/24 dev eth0 scope link  src 10.9.0.2",
                 "10.77.0.0/16 via 10.9.0.7 dev eth0", "default via fd09::1 dev eth0  metric 77"):
        assert want in text, f"no {want!r} in\n{text}"
    assert re.search(r"10\.9\.0\.9 .* 0x6 .* 02:00:00:00:00:99", text), text
    ping(t, "10.9.0.1", 2)
    ping(t, "fd09::1", 2)
    upload(t, "10.9.0.1")
    upload(t, "fd09::1")
    # A card needs longer queues than other devices.
    assert int(sh(t, "busybox sed -n 's/.*queue_max=[0-9,]*,//;s/ .*//p' /proc/cmdline").strip()) == 256
    # The namespace's own stack hears nothing of it, and keeps what CNI gave it.
    assert "10.9.0.2/24" in pod.do("ip addr show eth0")
    record = json.load(open(os.path.join(host.sandbox("net"), "state.json"), encoding="ascii"))
    assert record["network"]["links"][0]["link"] == "eth0"
    stop(t)
    clean(pod, "eth0")


def packets(pod, tap, way):
    return json.loads(pod.do(f"ip -s -j link show {tap}"))[0]["stats64"][way]["packets"]


def test_offloads_and_queues(host, pod):
    """Checksums and segmentation are nobody's work from end to end; each vCPU has its queues."""
    configure(host, "  vcpus: 2\n")
    pod.veth("eth0", ["10.9.0.2/24"], "h0", ["10.9.0.1/24"])
    t = start(host, pod)
    bits, *queues = sh(t, "cat /sys/class/net/eth0/device/features; busybox ls /sys/class/net/eth0/queues").split()
    agreed = {n for n, bit in enumerate(bits) if bit == "1"}
    # CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, HOST_TSO4, HOST_TSO6, MRG_RXBUF, MQ
    assert agreed >= {0, 1, 7, 8, 11, 12, 15, 22}, bits
    assert queues == ["rx-0", "rx-1", "tx-0", "tx-1"]
    (tap,) = [x for x in pod.links() if x.endswith("_csn")]
    size = 3 << 20
    before = packets(pod, tap, "rx")
    upload(t, "10.9.0.1", size)
    assert packets(pod, tap, "rx") - before < size / 1460 / 2
    # The other way round, to a listener of the guest's.
    before = packets(pod, tap, "tx")
    out = t.fifo("big.out")
    t.exec("big", ["sh", "-c", "busybox nc -l -p 7007 | busybox wc -c"], stdout=out, stderr=out)
    t.start("big")
    assert eventually(lambda: send("10.9.0.2", 7007, size))
    t.wait("big")
    assert int(t.fifos["big.out"].finish()) == size
    assert packets(pod, tap, "tx") - before < size / 1460 / 2
    stop(t)


def send(address, port, size):
    try:
        with socket.create_connection((address, port), timeout=10) as s:
            s.sendall(bytes(size))
    except ConnectionRefusedError:
        return False
    return True


def test_macvtap(host, pod):
    configure(host, "network:\n  model: macvtap\n")
    pod.veth("eth0", ["10.9.0.2/24", "fd09::2/64"], "h0", ["10.9.0.1/24", "fd09::1/64"])
    pod.do("ip route add default via 10.9.0.1")
    t = start(host, pod)
    assert any(x.endswith("_csn") for x in pod.links())
    assert "ingress" not in pod.filters("eth0")
    ping(t, "10.9.0.1")
    ping(t, "fd09::1")
    upload(t, "10.9.0.1")
    stop(t)
    clean(pod, "eth0")


def test_several_links(host, pod):
    """Two veths, a macvlan and a tap; two vCPUs, so two queues each."""
    pod.veth("eth0", ["10.9.0.2/24"], "h0", ["10.9.0.1/24"])
    pod.veth("net1", ["10.9.1.2/24"], "h1", ["10.9.1.1/24"], mtu=9000)
    ip("ip", "link", "add", "link", "h1", "name", "mv1", "netns", str(pod.holder.pid), "type",
       "macvlan", "mode", "bridge")
    pod.do("ip addr add 10.9.2.2/24 dev mv1", "ip link set mv1 up",
           "ip tuntap add tap9 mode tap", "ip addr add 10.9.3.2/24 dev tap9",
           "ip link set tap9 up", "ip route add default via 10.9.0.1",
           "ip route add 10.88.0.0/16 via 10.9.1.1")
    t = start(host, pod, annotations={"io.caisson.vcpus": "2"})
    text = sh(t, "busybox ip addr; busybox ip route")
    for want in ("inet 10.9.0.2/24", "inet 10.9.1.2/24", "inet 10.9.2.2/24", "inet 10.9.3.2/24",
                 "mtu 9000", "qdisc mq", " mv1:", " tap9:", "default via 10.9.0.1 dev eth0",
                 "10.88.0.0/16 via 10.9.1.1 dev net1"):
        assert want in text, f"no {want!r} in\n{text}"
    ping(t, "10.9.0.1")
    ping(t, "10.9.1.1")
    upload(t, "10.9.1.1")
    stop(t)
    clean(pod, "eth0", "net1", "mv1")
    assert "tap9" in pod.links()


def test_links_that_come_later(host, pod):
    configure(host, "network:\n  slots: 1\n")
    pod.veth("eth0", ["10.9.0.2/24"], "h0", ["10.9.0.1/24"])
    t = start(host, pod)
    ping(t, "10.9.0.1")
    pod.veth("net1", ["10.9.1.2/24"], "h1", ["10.9.1.1/24"], mac="02:11:22:33:44:66")
    pod.do("ip route add 10.88.0.0/16 via 10.9.1.1")
    want = ("10.9.1.2/24", "02:11:22:33:44:66", "10.88.0.0/16")
    show = "busybox ip addr show net1; busybox ip route"
    assert eventually(lambda: all(w in sh(t, show, check=False) for w in want)), sh(t, show)
    ping(t, "10.9.1.1")
    # Addresses and a neighbour more, and a link less.
    pod.do("ip addr add 10.9.0.3/24 dev eth0", "ip addr add fd09::3/64 dev eth0 nodad",
           "ip -6 route add fd77::/64 via fd09::1", "ip link set eth0 mtu 8000",
           "ip neigh add 10.9.0.9 lladdr 02:00:00:00:00:99 dev eth0")
    ip("ip", "link", "set", "h0", "mtu", "8000")
    show = "busybox ip addr show eth0; busybox ip -6 route; cat /proc/net/arp"
    want = ("10.9.0.3/24", "fd09::3/64", "fd77::/64 via fd09::1", "mtu 8000", " 0x6 ")
    assert eventually(lambda: all(w in sh(t, show) for w in want)), sh(t, show)
    pod.do("ip neigh del 10.9.0.9 dev eth0", "ip -6 route del fd77::/64", "ip addr del fd09::3/64 dev eth0")
    # A neighbour that is permanent has the flag 0x6; one that is not known any more stays listed for a while.
    gone = (" 0x6 ", "fd09::3/64", "fd77::/64")
    assert eventually(lambda: not any(w in sh(t, show) for w in gone)), sh(t, show)
    upload(t, "10.9.0.1", 1 << 20)
    pod.do("ip link del net1")
    assert eventually(lambda: "10.9.1.2" not in sh(t, "busybox ip addr"))
    ping(t, "10.9.0.1")
    # The card serves the next one.
    pod.veth("net2", ["10.9.4.2/24"], "h4", ["10.9.4.1/24"])
    assert eventually(lambda: "10.9.4.2" in sh(t, "busybox ip addr"))
    ping(t, "10.9.4.1")
    stop(t)
    clean(pod, "eth0", "net2")


def test_rate(host, pod):
    """8 Mbit/s either way: 2 MB take two seconds at least."""
    configure(host, "network:\n  rx_rate: 1m\n  tx_rate: 1m\n")
    pod.veth("eth0", ["10.9.0.2/24"], "h0", ["10.9.0.1/24"])
    t = start(host, pod)
    begin = time.monotonic()
    upload(t, "10.9.0.1", 3 << 20)
    assert time.monotonic() - begin > 2
    assert "tbf" in pod.filters("eth0")
    stop(t)
    clean(pod, "eth0")
    assert "tbf" not in pod.filters("eth0")


def test_kill(host, pod):
    """kill -9 of everything at once: `delete` finds what is held."""
    pod.veth("eth0", ["10.9.0.2/24"], "h0", ["10.9.0.1/24"])
    for model in ("tcfilter", "macvtap"):
        configure(host, f"network:\n  model: {model}\n")
        t = start(host, pod, cid=f"kill-{model}")
        for pid in host.processes():
            os.kill(pid, signal.SIGKILL)
        t.conn.close()
        if model == "macvtap":
            assert any(x.endswith("_csn") for x in pod.links())
        host.shim(t.id, t.dir, "delete")
        clean(pod, "eth0")


def test_kill_while_starting(host, pod):
    """Whenever the shim dies, `delete` frees what was made until then."""
    pod.veth("eth0", ["10.9.0.2/24"], "h0", ["10.9.0.1/24"])
    for i in range(10):
        configure(host, f"network:\n  model: {('tcfilter', 'macvtap')[i % 2]}\n")
        cid = f"early{i}"
        bundle = host.bundle(cid, pod.spec(IDLE))
        with subprocess.Popen([sc.SHIM, "-namespace", "caisson", "-id", cid, "-address", "", "start"],
                              cwd=bundle, env=host.env, stdout=subprocess.DEVNULL) as p:
            time.sleep(0.004 * i)
            for pid in host.processes():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            p.wait()
        host.shim(cid, bundle, "delete", check=False)
        clean(pod, "eth0")


def test_existing_ingress_stays(host, pod):
    """Somebody else's filters at the link are not ours to remove."""
    pod.veth("eth0", ["10.9.0.2/24"], "h0", ["10.9.0.1/24"])
    pod.do("tc qdisc add dev eth0 ingress",
           "tc filter add dev eth0 parent ffff: prio 7 protocol ip u32 match ip dst 10.9.0.77/32 "
           "action mirred egress redirect dev lo")
    t = start(host, pod)
    ping(t, "10.9.0.1")
    stop(t)
    text = pod.filters("eth0")
    assert "qdisc ingress" in text and "pref 7" in text and "_csn" not in text, text


def test_host_network_is_refused(host, pod):
    before = ip("ip", "-d", "addr") + ip("tc", "qdisc")
    spec = pod.spec(IDLE)
    spec["linux"]["namespaces"] = [n for n in spec["linux"]["namespaces"]
                                   if n["type"] != "network"]
    with pytest.raises(RuntimeError) as e:
        Task(host, "refused", spec=spec)
    assert "host's network" in str(e.value), e.value
    cases = [("/proc/self/ns/net", "host's network namespace"),
             ("/proc/self/ns/ipc", "not a network namespace"),
             ("/nonexistent/netns", "No such file")]
    if os.access("/proc/1/ns/net", os.R_OK):
        cases.append(("/proc/1/ns/net", "host's network namespace"))
    for path, word in cases:
        spec = pod.spec(IDLE)
        for n in spec["linux"]["namespaces"]:
            if n["type"] == "network":
                n["path"] = path
        with pytest.raises(RuntimeError) as e:
            Task(host, "refused", spec=spec)
        assert word in str(e.value), e.value
    assert ip("ip", "-d", "addr") + ip("tc", "qdisc") == before


def test_from_a_template(host, pod):
    """The second VM of a kind goes on from the first one's saved state: the link's address is its own."""
    host.env["CAISSON_TEMPLATES"] = os.path.join(host.root, "templates")
    macs = ["02:11:22:33:44:01", "02:11:22:33:44:02"]
    for i, mac in enumerate(macs):
        pod.veth("eth0", ["10.9.0.2/24"], "h0", ["10.9.0.1/24"], mac=mac)
        t = start(host, pod, cid=f"t{i}")
        assert mac in sh(t, "busybox ip addr show eth0")
        ping(t, "10.9.0.1")
        upload(t, "10.9.0.1")
        stop(t)
        clean(pod, "eth0")
        ip("ip", "link", "del", "h0")
    names = os.listdir(os.path.join(host.root, "templates"))
    assert len(names) == 1, names


def test_docker_adds_links_later(host, image):
    """Docker moves its links into the namespace of the task's process between create and start."""
    t = Task(host, "later", spec=sc.default_spec(IDLE), ns="moby")
    t.create()
    pod = Pod(f"/proc/{t.state()['pid']}/ns/net")
    assert [x for x in pod.links() if x != "lo"] == ["spare0_csn"]
    pod.veth("eth0", ["172.17.0.2/16"], "h0", ["172.17.0.1/16"], mac="02:42:ac:11:00:02")
    pod.do("ip route add default via 172.17.0.1")
    t.start()
    want = ("172.17.0.2/16", "02:42:ac:11:00:02", "default via 172.17.0.1")
    show = "busybox ip addr; busybox ip route"
    assert eventually(lambda: all(w in sh(t, show) for w in want)), sh(t, show)
    ping(t, "172.17.0.1")
    stop(t)
    pod.close()
