"""
Docker on Caisson: Debian's, which knows runtimes by the path of their OCI command line, and a newer
one (tests/peers/get), which starts the shim itself.
"""

import os
import pathlib
import pty
import shutil
import subprocess
import tempfile

import pytest

from conftest import build_image
from ctrd import wait_until
from dockerd import Dockerd, SHIM

PEERS = pathlib.Path(os.environ.get("CAISSON_PEERS", "/var/cache/caisson/peers"))
SERVE = ("mkdir -p /www; echo page >/www/index.html; httpd -p 80 -h /www; "
         "trap 'echo bye; exit 5' TERM; cat /v/file; while :; do sleep 0.1; done")


@pytest.fixture(scope="module", params=["debian", "26"])
def docker(stage, request):
    prefix, name, flags = "/", SHIM, []
    if request.param == "debian":
        name = "caisson"
        flags = [f"--add-runtime=caisson={stage}/bin/caisson-runtime"]
    else:
        prefix = str(PEERS / f"docker-{request.param}")
    if not os.path.exists(os.path.join(prefix, "usr/sbin/dockerd")):
        pytest.skip(f"no Docker in '{prefix}': install docker.io, or run tests/peers/get")
    directory = tempfile.mkdtemp(prefix="dk-")
    d = Dockerd(stage, directory, prefix, name, flags)
    d.direct = name == SHIM
    try:
        d.start()
        d.load(build_image("busybox"), "busybox:latest")
        yield d
        wait_until(lambda: not d.leaks(), 15)
    finally:
        d.close()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def web(docker):
    """A server with a published port and a volume."""
    volume = docker.dir / "volume"
    volume.mkdir()
    (volume / "file").write_text("from the volume\n", encoding="ascii")
    r = docker.run("-d", "--name", "web", "-p", "8080:80", "-v", f"{volume}:/v", "-m", "64m",
                   "busybox", "sh", "-c", SERVE)
    assert r.returncode == 0, (r.stderr, docker.log())
    yield "web"
    docker("rm", "-f", "web")


def test_run(docker):
    r = docker.run("--rm", "busybox", "sh", "-c", "uname -r; ip -o -4 addr show eth0; echo e >&2; exit 6")
    assert r.returncode == 6, (r.stderr, docker.log())
    kernel, address = r.stdout.splitlines()
    assert kernel != os.uname().release and "172.17." in address and r.stderr == "e\n"


def test_network_and_volume(docker, web):
    wait_until(lambda: docker("logs", web) == "from the volume\n")
    fetch = ("curl", "-s", "-m", "10", "http://127.0.0.1:8080/")
    assert subprocess.run(docker.inside(*fetch), stdout=subprocess.PIPE, text=True,
                          check=True).stdout == "page\n"
    assert docker("inspect", "-f", "{{.HostConfig.Runtime}} {{.State.Status}}", web).split() == [
        docker.runtime, "running"]
    docker.ask("exec", web, "sh", "-c", "echo back >/v/out")
    assert (docker.dir / "volume/out").read_text(encoding="ascii") == "back\n"


def test_exec_and_copies(docker, web):
    r = docker.ask("exec", "-i", web, "sh", "-c", "cat; exit 3", stdin=None, input="x" * 100000)
    assert (r.returncode, r.stdout) == (3, "x" * 100000), r.stderr
    docker("cp", docker.dir / "volume/file", f"{web}:/copied")
    assert docker("exec", web, "cat", "/copied") == "from the volume\n"
    docker("cp", f"{web}:/www/index.html", docker.dir / "got")
    assert (docker.dir / "got").read_text(encoding="ascii") == "page\n"
    missing = docker.ask("exec", web, "/no/such/program")
    assert missing.returncode in (126, 127)
    assert "no such file" in (missing.stdout + missing.stderr).lower()


def test_statistics_pause_and_update(docker, web):
    name, used = docker("stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}", web).strip().split(
        maxsplit=1)
    assert name == "web" and "/" in used
    if docker.direct:
        assert used.endswith("/ 64MiB"), used
    assert "caisson" in docker("top", web)
    docker("pause", web)
    assert "(Paused)" in docker("ps")
    docker("unpause", web)
    docker("update", "-m", "32m", "--memory-swap", "32m", web)
    assert docker("exec", web, "cat", "/sys/fs/cgroup/memory.max").strip() == str(32 << 20)


def test_stop_and_restart(docker, web):
    docker("stop", "-t", "20", web)
    assert docker("inspect", "-f", "{{.State.ExitCode}}", web) == "5\n"
    assert docker("logs", web).endswith("bye\n")
    docker("start", web)
    wait_until(lambda: docker("logs", web).count("from the volume") == 2)
    docker("restart", "-t", "20", web)
    assert docker("exec", web, "ip", "-o", "-4", "addr", "show", "eth0").count("172.17.") == 2


def on_terminal(docker, *args):
    """Output of docker on a terminal of its own, with CRs; and how it exited."""
    master, slave = pty.openpty()
    p = subprocess.Popen(docker.inside(docker.client, "-H", f"unix://{docker.dir}/d.sock", *args),
                         env=docker.env, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    out = b""
    try:
        while True:
            out += os.read(master, 4096)
    except OSError:
        pass
    os.close(master)
    return out.decode(), p.wait(60)


def test_terminals(docker, web):
    out, code = on_terminal(docker, "run", "--rm", "-it", "--runtime", docker.runtime, "busybox",
                            "sh", "-c", "tty; exit 4")
    assert (out, code) == ("/dev/pts/0\r\n", 4)
    out, code = on_terminal(docker, "exec", "-it", web, "sh", "-c", "test -t 1 && echo yes; exit 2")
    assert (out, code) == ("yes\r\n", 2)


def test_user_defined_network(docker):
    docker("network", "create", "lan")
    try:
        r = docker.run("--rm", "--network", "lan", "--read-only", "--user", "1000", "busybox",
                       "sh", "-c", "ip -o -4 addr show eth0; id -u; touch /x")
        lines = r.stdout.splitlines()
        assert "172.18." in lines[0] and lines[1] == "1000", (r.stdout, r.stderr)
        assert "Read-only file system" in r.stderr
    finally:
        docker("network", "rm", "lan")


def test_joined_network(docker, web):
    """A container with another one's network runs in its machine: they share the loopback, and the kernel."""
    r = docker.run("--rm", "--network", f"container:{web}", "busybox", "sh", "-c",
                   "cat /proc/sys/kernel/random/boot_id; wget -qO- http://127.0.0.1/; exit 8")
    assert r.returncode == 8, (r.stdout, r.stderr, docker.log())
    boot, page = r.stdout.splitlines()
    assert page == "page" and docker("exec", web, "cat", "/proc/sys/kernel/random/boot_id") == f"{boot}\n"
    assert docker.run("-d", "--name", "first", "busybox", "sleep", "1000").returncode == 0
    assert docker.run("-d", "--name", "second", "--network", "container:first", "busybox", "sh", "-c",
                      "trap 'echo bye; exit 6' TERM; while :; do sleep 0.1; done").returncode == 0
    docker("rm", "-f", "first")
    assert docker("exec", "second", "hostname")
    docker("stop", "-t", "20", "second")
    assert docker("inspect", "-f", "{{.State.ExitCode}}", "second") == "6\n"
    docker("rm", "second")


def test_what_is_refused(docker):
    r = docker.run("--rm", "--network", "host", "busybox", "true")
    assert r.returncode == 125 and ("virtual machine" in r.stderr or "VM" in r.stderr)
    r = docker.run("--rm", "busybox", "/no/such/program")
    assert r.returncode == 127 and "no such file" in r.stderr.lower()
