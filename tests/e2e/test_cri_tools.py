"""Pods with heavier software over the CRI: packet filters, a VPN, systemd; and images without layers."""

import json
import shutil

import pytest

import ctrd as c
from conftest import build_image
from ctrd import wait_until

pytestmark = pytest.mark.skipif(c.missing() is not None, reason=str(c.missing()))

TOOLS = "docker.io/test/tools:latest"
KEPT = ("sleep", "infinity")


@pytest.fixture(scope="module")
def daemon(stage):
    with c.cri_daemon(stage, "crt-", ("tools", "pause")) as d:
        yield d


@pytest.fixture(scope="module")
def cri(daemon):
    with c.cri_client(daemon) as client:
        yield client


def privileged(cri, name, *command, **kw):
    p = cri.pod(name, linux=dict(security_context=dict(
        privileged=True, namespace_options=dict(pid=1))))
    return p, p.run("main", *command, image=TOOLS, security=dict(privileged=True), **kw)


def test_ip6tables(cri):
    p = cri.pod("filter")
    k = p.run("main", *KEPT, image=TOOLS, security=dict(capabilities=dict(
        add_capabilities=["NET_ADMIN"])))
    for program in ("iptables", "ip6tables"):
        k.sh(f"{program} -N MINE; {program} -A INPUT -i lo -p tcp --dport 81 -j MINE; "
             f"{program} -A MINE -j REJECT; {program} -t nat -A POSTROUTING -o eth0 -j MASQUERADE")
        assert "--dport 81 -j MINE" in k.sh(f"{program} -S INPUT")
        assert "MASQUERADE" in k.sh(f"{program} -t nat -S POSTROUTING")
    code, _, err = k.exec("bash", "-c", "exec 3<>/dev/tcp/::1/81")
    assert code and "refused" in err
    p.remove()


def test_vpn_between_pods(cri):
    flags = "--dev tun --secret /key --cipher AES-256-CBC --verb 1 --ping 1"
    server_pod, server = privileged(cri, "vpn-server", *KEPT)
    client_pod, client = privileged(cri, "vpn-client", *KEPT)
    key = server.sh("openvpn --genkey secret /key && cat /key")
    address = server_pod.status().network.ip
    for k in (server, client):
        k.sh("mkdir -p /dev/net && mknod /dev/net/tun c 10 200")
    server.sh(f"openvpn --daemon --log /log --ifconfig 10.8.0.1 10.8.0.2 {flags}")
    client.sh(f"cat >/key <<E\n{key}E\nopenvpn --daemon --log /log --ifconfig 10.8.0.2 10.8.0.1 "
              f"--remote {address} {flags}")
    try:
        wait_until(lambda: client.exec("ping", "-c", "1", "-W", "2", "10.8.0.1")[0] == 0, 30)
    except TimeoutError as e:
        raise AssertionError(server.sh("cat /log; ip a") + client.sh("cat /log; ip a; ip r")) from e
    assert "tun0" in client.sh("ip route get 10.8.0.1")
    server_pod.remove()
    client_pod.remove()


def test_systemd(cri):
    p, k = privileged(cri, "systemd", "/lib/systemd/systemd",
                      envs=[dict(key="container", value="oci")])
    wait_until(lambda: k.exec("systemctl", "is-system-running")[1].strip() in ("running", "degraded"),
               120)
    assert k.sh("cat /proc/1/comm") == "systemd\n"
    k.sh("systemctl start systemd-tmpfiles-clean.service")
    assert "success" in k.sh("systemctl show -p Result systemd-tmpfiles-clean.service")
    assert "systemd-journald.service" in k.sh("systemctl list-units --state=running")
    p.remove()


def test_image_without_layers(cri, daemon):
    """It is refused with the reason, and leaves nothing."""
    layout = daemon.dir / "empty"
    shutil.copytree(build_image("pause"), layout)
    index = json.loads((layout / "index.json").read_text("ascii"))

    def blob(digest):
        return layout / "blobs" / digest.replace(":", "/")

    def put(value):
        import hashlib
        text = json.dumps(value).encode()
        digest = "sha256:" + hashlib.sha256(text).hexdigest()
        blob(digest).write_bytes(text)
        return digest, len(text)

    manifest = json.loads(blob(index["manifests"][0]["digest"]).read_bytes())
    config = json.loads(blob(manifest["config"]["digest"]).read_bytes())
    config["rootfs"]["diff_ids"], config["history"] = [], []
    manifest["layers"] = []
    manifest["config"]["digest"], manifest["config"]["size"] = put(config)
    index["manifests"][0]["digest"], index["manifests"][0]["size"] = put(manifest)
    (layout / "index.json").write_text(json.dumps(index), "ascii")
    try:
        daemon.import_layout(layout, "docker.io/test/empty", ns="k8s.io")
    except AssertionError:
        return  # this containerd does not even take it
    p = cri.pod("empty")
    with pytest.raises(Exception, match="(?i)no such file|not found|no command|layer|empty"):
        p.run("main", "/pause", image="docker.io/test/empty:latest")
    p.remove()
