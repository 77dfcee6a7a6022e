"""Volumes of network file systems, which the guest mounts itself, from a real server.

The server (NFS-Ganesha, in user space) runs in the test's own network, mount and process namespaces, at the
gateway of a network of the command line. Nothing of NFS happens in the host's kernel.
"""

import os
import shutil
import socket
import subprocess
import time

import pytest

from test_cli_network import namespace, own_networks  # pylint: disable=unused-import  # fixtures

MODULE = "/usr/lib/x86_64-linux-gnu/ganesha/libfsalvfs.so"
CONFIG = """
NFS_CORE_PARAM { Protocols = 3, 4; NFS_Port = 2049; MNT_Port = 20048; Enable_NLM = false;
                 Enable_RQUOTA = false; Enable_UDP = False; }
NFSV4 { Graceless = true; RecoveryBackend = fs_ng; RecoveryRoot = %(dir)s/recovery; Only_Numeric_Owners = true; }
EXPORT { Export_Id = 1; Path = %(dir)s/export; Pseudo = /srv; Access_Type = RW; Squash = No_Root_Squash;
         SecType = sys; Protocols = 3, 4; Transports = TCP; FSAL { Name = VFS; } }
"""

pytestmark = [
    pytest.mark.skipif(not os.path.exists(MODULE), reason="nfs-ganesha-vfs is not installed"),
    pytest.mark.skipif(not os.path.exists("/usr/lib/cni/bridge"),
                       reason="containernetworking-plugins is not installed"),
]


@pytest.fixture
def server(own_networks, tmp_path):  # pylint: disable=redefined-outer-name
    """The server's address, the directory it exports, and the command line with a network to it."""
    own_networks("network", "create", "--subnet", "10.89.77.0/24", "lan").ok()
    # The bridge comes with the first container; the server wants the address before.
    holder = own_networks.run("-d", "--network", "lan", own_networks.image, "sleep", "1000").ok().out.strip()
    # Handles of files need a real file system.
    d = subprocess.check_output(["mktemp", "-d", "/var/tmp/caisson-nfs-XXXXXX"], text=True).strip()
    os.makedirs(f"{d}/export")
    os.makedirs(f"{d}/recovery")
    (tmp_path / "ganesha.conf").write_text(CONFIG % {"dir": d})
    log = tmp_path / "ganesha.log"
    with subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", f"mount -t tmpfs none /run && mkdir -p /run/ganesha && rpcbind -w && "
             f'exec ganesha.nfsd -F -f {tmp_path}/ganesha.conf -L {log} -p {d}/pid -N NIV_EVENT']) as p:
        end = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("10.89.77.1", 2049), 1).close()
                break
            except OSError:
                if p.poll() is not None or time.monotonic() > end:
                    p.kill()
                    pytest.fail("the NFS server does not start:\n" + log.read_text())
                time.sleep(0.2)
        yield "10.89.77.1", f"{d}/export", own_networks
        own_networks("rm", "-f", holder)
        p.kill()
    shutil.rmtree(d)


def test_nfs_volumes(server):
    address, export, c = server
    with open(f"{export}/file", "w", encoding="ascii") as f:
        f.write("from the server\n")
    c("volume", "create", "-o", "type=nfs4", "-o", f"o=addr={address}", "-o", "device=:/srv", "four").ok()
    r = c.run("--network", "lan", "-v", "four:/data", c.image, "sh", "-c",
              "grep ' /data ' /proc/mounts; cat /data/file; echo from the guest > /data/new; mkdir /data/d;"
              "mv /data/file /data/d/moved; ls /data").ok()
    assert r.out.startswith(f"{address}:/srv /data nfs4 rw") and r.out.endswith("from the server\nd\nnew\n")
    with open(f"{export}/new", encoding="ascii") as f:
        assert f.read() == "from the guest\n"
    # Version 3, without a port mapper and a lock manager; the address is that of the source.
    c("volume", "create", "-o", "type=nfs", "-o", f"o=addr={address},vers=3,port=2049,mountport=20048,proto=tcp,"
      "mountproto=tcp,ro", "-o", f"device={address}:{export}", "three").ok()
    r = c.run("--network", "lan", "-v", "three:/data", c.image, "sh", "-c",
              "grep -c ' /data nfs ' /proc/mounts; cat /data/d/moved; touch /data/x 2>&1; true").ok()
    assert r.out.startswith("1\nfrom the server\n") and "Read-only" in r.out
    # What cannot be: one line each, in time, and nothing is left.
    c("volume", "create", "-o", "type=nfs4", "-o", f"o=addr={address}", "-o", "device=:/nothing", "none").ok()
    c.run("--network", "lan", "-v", "none:/data", c.image, "true").fails(125, f"{address}:/nothing", "no such file")
    c("volume", "create", "-o", "type=nfs4", "-o", f"o=addr={address},port=2050", "-o", "device=:/srv", "closed").ok()
    c.run("--network", "lan", "-v", "closed:/data", c.image, "true").fails(125, "refused")
    c("volume", "create", "-o", "type=nfs4", "-o", "o=addr=10.89.77.200", "-o", "device=:/srv", "gone").ok()
    start = time.monotonic()
    r = c.run("--network", "lan", "-v", "gone:/data", c.image, "true")
    assert r.code == 125 and ("does not answer" in r.err or "No route" in r.err or "timed out" in r.err.lower()), r
    assert time.monotonic() - start < 60
    c("volume", "rm", "four", "three", "none", "closed", "gone").ok()
