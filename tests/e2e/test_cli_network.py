"""Networks of the command line: CNI networks, published ports, names, user-mode networks.

Everything happens in the network namespace of the whole run; each test that makes links or rules
moves into one of its own, so that it can tell what is left.
"""

import ctypes
import http.server
import json
import os
import pathlib
import signal
import socket
import subprocess
import threading
import time

import pytest

PLUGINS = "/usr/lib/cni"
CLONE_NEWNET = 0x40000000
libc = ctypes.CDLL(None, use_errno=True)

pytestmark = [
    pytest.mark.skipif(not os.path.exists(f"{PLUGINS}/bridge"),
                       reason="containernetworking-plugins is not installed"),
    pytest.mark.skipif(not os.path.exists("/usr/bin/passt"), reason="passt is not installed"),
]


def sh(*words):
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


@pytest.fixture(autouse=True)
def namespace(monkeypatch, tmp_path):
    """A network namespace for this test, with an address to serve at: 192.0.2.1."""
    before = os.open("/proc/self/ns/net", os.O_RDONLY)
    if libc.unshare(CLONE_NEWNET):
        pytest.skip("network namespaces cannot be made here")
    sh("ip", "link", "set", "lo", "up")
    sh("ip", "link", "add", "ext0", "type", "veth", "peer", "name", "ext1")
    sh("ip", "addr", "add", "192.0.2.1/24", "dev", "ext0")
    sh("ip", "link", "set", "ext0", "up")
    sh("ip", "link", "set", "ext1", "up")
    monkeypatch.setenv("NETCONFPATH", str(tmp_path / "net.d"))
    yield tmp_path / "net.d"
    libc.setns(before, CLONE_NEWNET)
    os.close(before)


@pytest.fixture
def net(own_networks):
    own_networks("network", "create", "--ipv6", "web").ok()
    return "web"


@pytest.fixture
def own_networks(caisson, namespace):
    """The command line; networks that the test makes go at its end."""
    caisson.env["NETCONFPATH"] = str(namespace)
    yield caisson
    caisson.remove_all()
    for row in json.loads(caisson("network", "ls", "--json").out):
        if row["Scope"] == "local":
            caisson("network", "rm", row["Name"]).ok()


def links():
    return sorted(x["ifname"] for x in json.loads(sh("ip", "-j", "link")))


def rules():
    """Rules of containers: the chains that the plugins share stay, and are empty."""
    text = sh("iptables-save") + sh("ip6tables-save")
    return sorted(x for x in text.splitlines() if x.startswith("-A") and
                  ("caisson" in x or "CNI-DN-" in x or "10.89." in x or "CNI-SN-" in x))


def namespaces(c):
    return os.listdir(c.run_dir / "netns") if (c.run_dir / "netns").exists() else []


def wait_for(what, seconds=30):
    end = time.monotonic() + seconds
    while True:
        value = what()
        if value or time.monotonic() > end:
            return value
        time.sleep(0.1)


def fetch(host, port, seconds=30):
    """The page of a server that may just be starting."""
    def once():
        try:
            with socket.create_connection((host, port), timeout=5) as s:
                s.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return b"".join(iter(lambda: s.recv(4096), b"")).decode()
        except OSError:
            return ""
    return wait_for(once, seconds)


SERVER = ("sh", "-c", "mkdir /w; echo served >/w/index.html; exec httpd -f -p 80 -h /w")


@pytest.fixture
def web_server():
    """A server of this namespace; gives its port."""
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"you are {self.client_address[0]}\n".encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("0.0.0.0", 0), Page)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


# ---- network create, ls, rm, inspect ----

def test_network_commands(own_networks):
    c = own_networks
    assert c("network", "create", "--subnet", "10.7.0.0/24", "--label", "a=b", "one").ok().out == "one\n"
    c("network", "create", "-d", "macvlan", "-o", "parent=ext0", "two").ok()
    rows = {r["Name"]: r for r in json.loads(c("network", "ls", "--json").ok().out)}
    assert rows["one"]["Driver"] == "bridge" and rows["one"]["Subnet"] == "10.7.0.0/24"
    assert rows["two"]["Driver"] == "macvlan"
    assert c("network", "ls", "-q", "--filter", "driver=macvlan").ok().out == "two\n"
    one = json.loads(c("network", "inspect", "one").ok().out)[0]
    assert one["Subnets"] == [{"Subnet": "10.7.0.0/24", "Gateway": "10.7.0.1"}]
    assert one["Labels"] == {"a": "b"} and one["Containers"] == {}
    c("network", "create", "one").fails(125, "exists")
    assert c("network", "rm", "one", "two").ok().out == "one\ntwo\n"
    c("network", "rm", "one").fails(1, "no such network")
    c("network", "rm", "-f", "one").ok()


@pytest.mark.parametrize("args, words", [
    (["--subnet", "10.7.0.1/24", "x"], ["--subnet", "bits"]),
    (["--subnet", "banana", "x"], ["--subnet", "banana"]),
    (["--subnet", "10.7.0.0/24", "--gateway", "10.8.0.1", "x"], ["--gateway", "10.8.0.1"]),
    (["--subnet", "fd00::/64", "x"], ["--ipv6"]),
    (["--subnet", "10.7.0.0/24", "--subnet", "10.7.0.0/25", "x"], ["overlaps"]),
    (["-d", "overlay", "x"], ["--driver", "overlay"]),
    (["-d", "macvlan", "x"], ["parent"]),
    (["-o", "mtu=3", "x"], ["mtu"]),
    (["-o", "nonsense=3", "x"], ["nonsense"]),
    (["none"], ["none", "meaning"]),
    (["../x"], ["invalid network name"]),
])
def test_bad_networks(own_networks, args, words):
    own_networks("network", "create", *args).fails(125, *words)
    assert own_networks("network", "ls", "-q").ok().out == ""


@pytest.mark.parametrize("args, words", [
    (["--network", "host"], ["--network host", "-p"]),
    (["--network", "nowhere"], ["no such network", "nowhere"]),
    (["--network", "none", "--network", "web"], ["none"]),
    (["--network", "none", "-p", "80:80"], ["ports"]),
    (["--network", "container:other"], ["container:other"]),
    (["--network", "name=web,ip=x"], ["ip", "'x'"]),
    (["-p", "0:80"], ["-p", "host's port"]),
    (["-p", "80:80/icmp"], ["protocol"]),
    (["-p", "1-3:5-6"], ["ranges"]),
    (["-p", "192.0.2.300:80:80"], ["address"]),
    (["-p", "8080:80", "-p", "8080:81"], ["twice"]),
    (["--ip", "10.1.1.1"], ["--ip", "--network"]),
    (["--dns", "nobody"], ["--dns", "nobody"]),
    (["--add-host", "x"], ["--add-host"]),
])
def test_bad_options(own_networks, args, words):
    own_networks.run(*args, own_networks.image, "true").fails(125, *words)
    assert namespaces(own_networks) == []


def test_bad_configurations_of_the_host(own_networks, namespace):
    namespace.mkdir()
    (namespace / "10-bad.conflist").write_text('{"cniVersion": "1.0.0", "name": "bad"')
    (namespace / "20-old.conflist").write_text(
        '{"cniVersion": "0.1.0", "name": "old", "plugins": [{"type": "bridge"}]}')
    r = own_networks("network", "ls").ok()
    assert "10-bad.conflist" in r.err and "cniVersion: '0.1.0'" in r.err
    (namespace / "30-none.conflist").write_text(
        '{"cniVersion": "1.0.0", "name": "gone", "plugins": [{"type": "no-such-plugin"}]}')
    r = own_networks.run(own_networks.image, "true")
    assert r.code == 125 and "10-bad.conflist" in r.err
    assert "caisson: network 'gone': there is no plugin 'no-such-plugin'" in r.err
    assert namespaces(own_networks) == []


# ---- CNI networks ----

def test_two_containers_by_name(own_networks, net, detached):
    c = own_networks
    before = links()
    detached("--network", net, "-p", "127.0.0.1:8080:80", "-p", "8081:80", name="server", command=SERVER)
    detached("--network", net, "--network-alias", "other", name="client")
    look = c("exec", "client", "sh", "-c", "ping -c1 -w20 server >/dev/null && wget -qO- http://server/ && "
             "ping -6 -c1 -w20 server >/dev/null && echo v6").ok()
    assert look.out == "served\nv6\n"
    # The first one learns of the second while it runs.
    assert wait_for(lambda: "other" in c("exec", "server", "cat", "/etc/hosts").ok().out)
    c("exec", "server", "ping", "-c1", "-w20", "other").ok()
    # Published: on the loopback, and on every address.
    assert "served" in fetch("127.0.0.1", 8080)
    assert "served" in fetch("192.0.2.1", 8081)
    c.run("--network", net, "-p", "8080:80", c.image, "true").fails(125, "8080", "server")
    inspect = json.loads(c("inspect", "client").ok().out)[0]["NetworkSettings"]["Networks"][net]
    assert inspect["IPAddress"].startswith("10.89.") and inspect["GlobalIPv6Address"].startswith("fd")
    assert "client" in c("network", "inspect", net).ok().out
    assert "127.0.0.1:8080->80/tcp, 0.0.0.0:8081->80/tcp" in c("ps").ok().out
    c("network", "rm", net).fails(1, "in use")
    c("rm", "-f", "client").ok()
    assert wait_for(lambda: "other" not in c("exec", "server", "cat", "/etc/hosts").ok().out)
    c("rm", "-f", "server").ok()
    assert rules() == [] and namespaces(c) == []
    c("network", "rm", net).ok()
    assert links() == before


def test_joined_container_keeps_the_network(own_networks, net, detached):
    """The owner's network, ports and names stay until the last in its machine has ended."""
    c = own_networks
    detached("--network", net, "-p", "8080:80", name="owner")
    detached("--network", "container:owner", name="side", command=SERVER)
    detached("--network", net, name="other")
    assert "served" in fetch("127.0.0.1", 8080)
    c("stop", "-t", "0", "owner").ok()
    assert "served" in fetch("127.0.0.1", 8080)
    assert "served" in c("exec", "other", "wget", "-qO-", "http://owner/").ok().out
    c("exec", "side", "ping", "-c1", "-w20", "other").ok()
    c("rm", "-f", "other").ok()
    assert len(namespaces(c)) == 1
    c("rm", "-f", "side").ok()
    assert namespaces(c) == [] and rules() == []
    c("rm", "owner").ok()


def test_several_at_once(own_networks, net):
    """Commands that make neighbours at the same time do not trip over each other's files."""
    c = own_networks
    names = [f"n{i}" for i in range(4)]
    for p in [c.popen("run", "-d", "--name", n, "--network", net, c.image, "sleep", "1000", text=True)
              for n in names]:
        out, err = p.communicate(timeout=240)
        assert p.returncode == 0, out + err
    for n in names:
        hosts = c("exec", n, "cat", "/etc/hosts").ok().out
        assert all(f"\t{other} " in hosts for other in names), hosts
    c.remove_all()
    assert namespaces(c) == [] and rules() == []


def test_fixed_addresses_two_networks_and_files(own_networks):
    c = own_networks
    c("network", "create", "--subnet", "10.7.0.0/24", "one").ok()
    c("network", "create", "--subnet", "10.8.0.0/24", "--internal", "two").ok()
    r = c.run("--network", "one", "--network", "two", "--ip", "10.7.0.99", "--mac-address",
              "02:00:00:00:00:99", "--hostname", "me", "--dns", "192.0.2.53", "--dns-search", "a.example",
              "--dns-option", "ndots:2", "--add-host", "db:192.0.2.7", "--add-host", "gw:host-gateway",
              c.image, "sh", "-c",
              "ip -4 -o addr; ip route; cat /sys/class/net/eth0/address /etc/hostname /etc/resolv.conf "
              "/etc/hosts; ping -c1 -w20 192.0.2.1 >/dev/null && echo out").ok().out
    assert "eth0    inet 10.7.0.99/24" in r and "eth1    inet 10.8.0." in r
    assert r.count("default via") == 1 and "default via 10.7.0.1 dev eth0" in r
    assert "02:00:00:00:00:99\nme\nnameserver 192.0.2.53\nsearch a.example\noptions ndots:2\n" in r
    assert "192.0.2.7\tdb\n10.7.0.1\tgw\n" in r and "10.7.0.99\tme\n" in r
    assert r.endswith("out\n")


def test_network_of_the_host_is_the_default(own_networks, namespace):
    c = own_networks
    namespace.mkdir()
    (namespace / "10-host.conflist").write_text(json.dumps({
        "cniVersion": "0.4.0", "name": "hosts", "plugins": [
            {"type": "ptp", "ipam": {"type": "host-local", "subnet": "10.9.0.0/24", "dataDir":
                                     str(namespace / "book")}}]}))
    r = c.run(c.image, "ip", "-4", "-o", "addr").ok()
    assert "inet 10.9.0." in r.out
    rows = json.loads(c("network", "ls", "--json").ok().out)
    assert rows[0]["Name"] == "hosts" and rows[0]["Scope"] == "host"
    c("network", "rm", "hosts").fails(1, "not one of caisson's")


def test_failing_add_leaves_nothing(own_networks):
    c = own_networks
    c("network", "create", "--subnet", "10.7.0.0/30", "small").ok()
    c("run", "-d", "--name", "first", "--network", "small", c.image, "sleep", "1000").ok()
    c.run("--network", "small", c.image, "true").fails(125, "small", "no IP addresses")
    assert len(namespaces(c)) == 1
    c("rm", "-f", "first").ok()
    assert namespaces(c) == [] and rules() == []


def test_failing_del(own_networks, tmp_path):
    """A plugin that fails once: rm says so and can be repeated; rm -f goes on."""
    c = own_networks
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    for p in pathlib.Path(PLUGINS).iterdir():
        (plugins / p.name).symlink_to(p)
    (plugins / "firewall").unlink()
    trap = tmp_path / "trap"
    (plugins / "firewall").write_text(
        f"#!/bin/sh\n[ $CNI_COMMAND != DEL ] || [ ! -e {trap} ] || {{ echo stuck >&2; exit 1; }}\n"
        f"exec {PLUGINS}/firewall\n")
    (plugins / "firewall").chmod(0o755)
    c.env["CNI_PATH"] = str(plugins)
    c("network", "create", "web").ok()
    c("run", "-d", "--name", "aa", "--network", "web", c.image, "sleep", "1000").ok()
    trap.touch()
    assert "stuck" in c("stop", "-t", "0", "aa").err
    c("rm", "aa").fails(1, "firewall", "stuck")
    trap.unlink()
    c("rm", "aa").ok()
    assert rules() == [] and namespaces(c) == []
    c("run", "-d", "--name", "bb", "--network", "web", c.image, "sleep", "1000").ok()
    trap.touch()
    r = c("rm", "-f", "bb").ok()
    assert "stuck" in r.err and c.ids() == [] and namespaces(c) == []


@pytest.mark.parametrize("delay", [0.02, 0.15, 0.4, 0.9, 2.5])
def test_killed_in_the_middle(own_networks, net, delay):
    """kill -9 of the command at any time: its guardian, or the next command, frees everything."""
    c = own_networks
    p = c.popen("run", "--rm", "--network", net, "-p", "8080:80", c.image, "sleep", "1000")
    time.sleep(delay)
    p.send_signal(signal.SIGKILL)
    p.communicate()
    assert wait_for(lambda: [r["State"] for r in c.ps()] in ([], ["running"]), 60)
    c.remove_all()
    assert wait_for(lambda: namespaces(c) == [] and rules() == [], 30), (namespaces(c), rules())


def test_killed_shim_and_vm(own_networks, net, detached):
    c = own_networks
    name = detached("--network", net, "-p", "8080:80")
    for p in c.processes():
        if "shim" in p:
            os.kill(int(p.split()[0]), signal.SIGKILL)
    assert wait_for(lambda: [r["State"] for r in c.ps()] == ["exited"], 60)
    c("rm", name).ok()
    assert namespaces(c) == [] and rules() == []


# ---- user-mode networks ----

def test_user_mode_is_the_default(own_networks, web_server, detached):
    c = own_networks
    before = links()
    r = c.run("--add-host", "srv:192.0.2.1", c.image, "sh", "-c",
              f"ip -4 -o addr show eth0; wget -qO- http://srv:{web_server}/; "
              f"wget -T 5 -qO- http://127.0.0.1:{web_server}/; wget -T 5 -qO- http://192.0.0.1:{web_server}/")
    # By its address the server is reached, but the host's loopback is not.
    assert "inet 192.0.0.2/29" in r.out and "you are 192.0.2.1" in r.out
    assert r.out.count("you are") == 1 and links() == before
    detached("-p", "8080:80", "-p", "127.0.0.1:8081-8082:80-81", name="server", command=SERVER)
    assert "served" in fetch("192.0.2.1", 8080)
    assert "served" in fetch("127.0.0.1", 8081)
    with pytest.raises(OSError):
        socket.create_connection(("192.0.2.1", 8081), timeout=5)
    c.run("-p", "8080:80", c.image, "true").fails(125, "8080", "use")
    c("rm", "-f", "server").ok()
    assert wait_for(lambda: "passt" not in sh("ss", "-ltnup"))


@pytest.fixture
def name_server():
    """Answers every question with 192.0.2.77, at port 53."""
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("192.0.2.1", 53))

    def serve():
        while True:
            try:
                q, who = s.recvfrom(512)
            except OSError:
                return
            v4 = q[-4:] == bytes([0, 1, 0, 1])
            head = q[:2] + bytes([0x81, 0x80, 0, 1, 0, v4, 0, 0, 0, 0])
            answer = bytes([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 77]) if v4 else b""
            s.sendto(head + q[12:] + answer, who)
    threading.Thread(target=serve, daemon=True).start()
    yield "192.0.2.1"
    s.close()


def test_user_mode_names(own_networks, name_server):
    c = own_networks
    r = c.run("--dns", name_server, c.image, "sh", "-c", "cat /etc/resolv.conf; nslookup some.example").ok()
    assert r.out.startswith("nameserver 192.0.2.1\n") and "192.0.2.77" in r.out


def test_user_mode_udp_and_random_ports(own_networks, detached):
    c = own_networks
    detached("-p", "53/udp", name="closed")
    port = json.loads(c("inspect", "closed").ok().out)[0]["NetworkSettings"]["Ports"][0]["HostPort"]
    assert port > 1023

    def arrived():
        """The image has no UDP server: its kernel counts what came to a port that nobody has."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.sendto(b"hello", ("127.0.0.1", port))
        lines = [x.split() for x in c("exec", "closed", "cat", "/proc/net/snmp").ok().out.splitlines()
                 if x.startswith("Udp:")]
        return int(dict(zip(*lines))["NoPorts"])
    assert wait_for(arrived)


def test_user_mode_ends_with_its_vm(own_networks, detached):
    c = own_networks
    detached("-p", "8080:80")
    assert wait_for(lambda: "passt" in sh("ss", "-ltnup"))
    for p in c.processes():
        if "caisson-vmm" in p or "shim" in p:
            os.kill(int(p.split()[0]), signal.SIGKILL)
    assert wait_for(lambda: "passt" not in sh("ss", "-ltnup"))
    c.remove_all()


def test_none_has_no_card(own_networks):
    r = own_networks.run("--network", "none", own_networks.image, "sh", "-c",
                         "ls /sys/class/net; mount | grep -c /etc/").out
    assert r == "lo\n0\n"


def test_annotation_is_refused_to_others(own_networks):
    """Only the command line's own sandboxes may have the host's network opened to them."""
    r = own_networks.run("--network", "none", "--annotation", "io.caisson.network=other",
                         own_networks.image, "true")
    assert r.code == 125 and "io.caisson.network" in r.err
