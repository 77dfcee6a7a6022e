"""A pod's network as CNI leaves it: a network namespace with links, for tests.

Everything happens in namespaces of the tests' own; the namespace that stands for the host's is
the one the tests run in.
"""

import os
import signal
import subprocess

import shimclient as sc


def ip(*args, netns=None, check=True):
    enter = ["nsenter", f"--net={netns}"] if netns else []
    return subprocess.run([*enter, *args], check=check, capture_output=True, text=True).stdout


class Netns:
    """A network namespace that lives as long as this object, or one that is there already."""

    def __init__(self, path=None):
        self.holder = None
        if path:
            self.path = path
            self.check()
            return
        self.holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep 600"],
                                       stdout=subprocess.PIPE)
        self.holder.stdout.readline()
        self.path = f"/proc/{self.holder.pid}/ns/net"
        self.check()
        self.do("ip link set lo up")

    def check(self):
        assert os.stat(self.path).st_ino != os.stat("/proc/self/ns/net").st_ino

    def do(self, *lines, check=True):
        return "".join(ip(*line.split(), netns=self.path, check=check) for line in lines)

    def pid(self):
        return self.path.split("/")[2]

    def links(self):
        return [x.split(":")[1].strip().split("@")[0] for x in self.do("ip -o link").splitlines()]

    def filters(self, link):
        return self.do(f"tc qdisc show dev {link}") + self.do(f"tc filter show dev {link} ingress",
                                                              check=False)

    def popen(self, *args, **kw):
        return subprocess.Popen(["nsenter", f"--net={self.path}", *args], **kw)

    def close(self):
        if not self.holder:
            return
        self.holder.send_signal(signal.SIGKILL)
        self.holder.wait()
        self.holder.stdout.close()


class Pod(Netns):
    """A namespace joined by veth pairs to the one of the tests."""

    def __init__(self, path=None):
        super().__init__(path)
        self.veths = []

    def veth(self, name, addresses, host_name, host_addresses, mtu=1500, mac=None):
        ip("ip", "link", "add", host_name, "mtu", str(mtu), "type", "veth", "peer", "name", name,
           "mtu", str(mtu), *(["address", mac] if mac else []), "netns", self.pid())
        self.veths.append(host_name)
        for a in host_addresses:
            ip("ip", "addr", "add", a, "dev", host_name, *(["nodad"] if ":" in a else []))
        ip("ip", "link", "set", host_name, "up")
        for a in addresses:
            self.do(f"ip addr add {a} dev {name}{' nodad' if ':' in a else ''}")
        self.do(f"ip link set {name} up")

    def spec(self, args, **more):
        caps = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_NET_RAW", "CAP_NET_BIND_SERVICE"]
        process = {"capabilities": {k: caps for k in ("bounding", "effective", "permitted")}}
        spec = sc.default_spec(args, process=process, **more)
        spec["mounts"].append({"destination": "/sys", "type": "sysfs", "source": "sysfs",
                               "options": ["nosuid", "noexec", "nodev", "ro"]})
        for n in spec["linux"]["namespaces"]:
            if n["type"] == "network":
                n["path"] = self.path
        return spec

    def close(self):
        for v in self.veths:
            ip("ip", "link", "del", v, check=False)
        super().close()
