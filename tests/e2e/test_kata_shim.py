"""Kata Containers' own shim with our kernel, initramfs and agent: containerd runs a container on it.

In the testbed, for KVM and vhost-vsock. The shim is built by tests/peers/kata, else this is skipped.
"""

import os
import pathlib
import re
import socket
import subprocess
import threading

import pytest

import ctrd as c
from conftest import build_image

PEERS = pathlib.Path(os.environ.get("CAISSON_PEERS", "/var/cache/caisson/peers"))
SHIM = PEERS / "kata/containerd-shim-kata-v2"
RUNTIME = "io.containerd.kata.v2"
FOLDER = pathlib.Path("/tmp/k")

CONFIG = """
[hypervisor.qemu]
path = "/usr/bin/qemu-system-x86_64"
valid_hypervisor_paths = ["/usr/bin/qemu-system-x86_64"]
kernel = "{guest}/vmlinux"
initrd = "{guest}/initrd.cpio"
machine_type = "q35"
cpu_features = "pmu=off"
default_vcpus = 1
default_maxvcpus = 1
default_memory = 256
disable_block_device_use = true
disable_image_nvdimm = true
disable_vhost_net = true
disable_selinux = true
disable_guest_selinux = true
shared_fs = "virtio-fs"
virtio_fs_daemon = "{dir}/virtiofsd"
valid_virtio_fs_daemon_paths = ["{dir}/virtiofsd"]
virtio_fs_cache = "auto"
entropy_source = "/dev/urandom"
valid_entropy_sources = ["/dev/urandom"]
[agent.kata]
enable_debug = true
dial_timeout = 120
[runtime]
internetworking_model = "tcfilter"
"""

VIRTIOFSD = """#!/bin/sh
lib={root}/usr/lib/x86_64-linux-gnu
exec $lib/ld-linux-x86-64.so.2 --library-path $lib {root}/usr/libexec/virtiofsd "$@"
"""


def prepare_testbed():
    for need in (SHIM, PEERS / "virtiofsd"):
        if not need.exists():
            pytest.skip(f"no {need}: run tests/peers/kata and tests/peers/get")
    return {"CAISSON_TEST_IMAGE_busybox": str(build_image("busybox"))}


def system_log():
    """The shim does not start without one."""
    log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    log.bind("/dev/log")

    def read():
        while True:
            log.recv(65536)
    threading.Thread(target=read, daemon=True).start()


@pytest.fixture
def daemon(stage):
    FOLDER.mkdir()
    # No file system of memory is beneath another's upper layer.
    subprocess.run(["mount", "-t", "tmpfs", "kata", FOLDER], check=True)
    config = FOLDER / "configuration.toml"
    config.write_text(CONFIG.format(guest=stage / "lib/caisson", dir=FOLDER), encoding="ascii")
    (FOLDER / "virtiofsd").write_text(VIRTIOFSD.format(root=PEERS / "virtiofsd"), encoding="ascii")
    (FOLDER / "virtiofsd").chmod(0o755)
    system_log()
    d = c.Containerd(stage, FOLDER, env={"KATA_CONF_FILE": str(config)})
    d.env["PATH"] = f"{SHIM.parent}:{d.env['PATH']}"
    try:
        d.start()
        d.import_layout(build_image("busybox"), "docker.io/test/busybox")
        yield d
    finally:
        d.close()


@pytest.mark.testbed(load=("kvm_amd", "vhost_vsock"), memory=3072, timeout=900)
def test_a_container(daemon):
    image, fifos = "docker.io/test/busybox:latest", daemon.dir / "fifo"
    start = ("run", "-d", "--null-io", "--runtime", RUNTIME, image, "kata", "sleep", "10000")
    assert daemon.try_ctr(*start, timeout=240).returncode == 0
    r = daemon.try_ctr("tasks", "exec", "--exec-id", "e", "--fifo-dir", fifos, "kata", "sh", "-c",
                       "uname -r; cat /proc/cmdline; echo err >&2; exit 3", timeout=120)
    assert r.returncode == 3 and "err" in r.stderr, r
    # Our kernel, the agent as Kata starts it, on the root file system that its virtiofsd shares.
    assert "caisson" in r.stdout.splitlines()[0] and "agent.log=debug" in r.stdout
    metrics = daemon.ctr("tasks", "metrics", "kata", timeout=120)
    assert int(re.search(r"memory\.usage\s+(\d+)", metrics)[1]) > 0
    daemon.ctr("tasks", "pause", "kata", timeout=120)
    assert "PAUSED" in daemon.ctr("tasks", "ls", timeout=120)
    daemon.ctr("tasks", "resume", "kata", timeout=120)
    daemon.ctr("tasks", "kill", "-s", "KILL", "kata", timeout=120)
    c.wait_until(lambda: "STOPPED" in daemon.ctr("tasks", "ls", timeout=120), 60)
    daemon.ctr("tasks", "rm", "kata", timeout=120)
