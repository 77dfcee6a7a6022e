"""Kubernetes' pods on Caisson: the CRI plugin of the packaged containerd, as the kubelet uses it."""

import base64
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import pytest

import ctrd as c
import wsclient as ws
from conftest import TOP
from ctrd import wait_until
from in_testbed import vm_process
from wsclient import Stream

pytestmark = pytest.mark.skipif(c.missing() is not None, reason=str(c.missing()))

LOOP = ("sh", "-c", "trap 'exit 0' TERM; touch /tmp/ready; while :; do sleep 0.1; done")


@pytest.fixture(scope="module")
def daemon(stage):
    with c.cri_daemon(stage, "cri-") as d:
        yield d


@pytest.fixture(scope="module")
def cri(daemon):
    with c.cri_client(daemon) as client:
        yield client


@pytest.fixture(scope="module")
def pod(cri):
    """A pod for many tests, with one container that stays."""
    p = cri.pod("shared", linux=dict(sysctls={"kernel.shm_rmid_forced": "1",
                                               "net.core.somaxconn": "1234"}))
    p.main = p.run("main", *LOOP)
    return p


def test_a_pod_is_ready(cri, pod):
    status = cri.call("Status").status.conditions
    assert {x.type: x.status for x in status}["RuntimeReady"]
    assert pod.ready()
    assert pod.main.status().state == c.RUNNING
    assert pod.main.exec("uname", "-r")[1].strip() != os.uname().release


# --- what a container is given ---

def test_environment_arguments_and_directory(pod):
    k = pod.run("env", "sh", "-c", "echo $A-$B; pwd; echo \"$@\"; hostname", "sh",
                args=["x", "y z"], working_dir="/var/log",
                envs=[dict(key="A", value="one"), dict(key="B", value="two words")])
    assert k.wait() == 0
    assert k.log() == "one-two words\n/var/log\nx y z\nshared\n"


def test_exec(pod):
    assert pod.main.exec("sh", "-c", "echo out; echo err >&2; exit 7") == (7, "out\n", "err\n")
    big = pod.main.exec("seq", "1", "100000")[1]
    assert big == "".join(f"{n}\n" for n in range(1, 100001))
    start = time.monotonic()
    with pytest.raises(Exception, match="no such file"):
        pod.main.exec("/no/such/program")
    assert time.monotonic() - start < 20
    # A probe that takes too long is ended, and the container goes on.
    with pytest.raises(Exception, match="(?i)deadline|timeout"):
        pod.main.exec("sleep", "1000", timeout=1)
    assert "sleep 1000" not in pod.main.sh("ps | grep -v grep")


def test_names_and_resolver(cri):
    p = cri.pod("dns", hostname="box.example", dns_config=dict(
        servers=["10.9.8.7", "10.9.8.6"], searches=["svc.test", "test"], options=["ndots:5"]))
    k = p.run("main", *LOOP)
    text = k.sh("cat /etc/resolv.conf; cat /etc/hostname; hostname")
    assert re.search(r"nameserver 10.9.8.7\nnameserver 10.9.8.6", text), text
    assert "search svc.test test" in text and "options ndots:5" in text
    assert text.count("box.example") == 2
    p.remove()


def test_security_context(pod):
    k = pod.run("secure", "sh", "-c", "id; grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status; "
                "touch /made; touch /tmp/made", security=dict(
                    run_as_user=dict(value=1000), run_as_group=dict(value=2000),
                    supplemental_groups=[3000, 3001], readonly_rootfs=True, no_new_privs=True,
                    seccomp=dict(profile_type=0)))
    assert k.wait() != 0
    text = k.log()
    assert "uid=1000" in text and "gid=2000" in text
    assert "3000" in text and "3001" in text
    assert "Read-only file system" in text
    assert re.search(r"NoNewPrivs:\s+1", text) and re.search(r"Seccomp:\s+2", text)
    assert re.search(r"CapEff:\s+0{16}", text)


def test_seccomp_profile_of_the_node(pod, daemon):
    """A file that the kubelet has put there."""
    profile = daemon.dir / "profile.json"
    profile.write_text(json.dumps(dict(defaultAction="SCMP_ACT_ALLOW", architectures=["SCMP_ARCH_X86_64"],
                                       syscalls=[dict(names=["mkdir", "mkdirat"], action="SCMP_ACT_ERRNO")])))
    k = pod.run("profile", "mkdir", "/tmp/x", security=dict(
        seccomp=dict(profile_type=2, localhost_ref=str(profile))))
    assert k.wait() == 1 and "Operation not permitted" in k.log()
    k.remove()


def test_capabilities(pod):
    def effective(**caps):
        k = pod.run(f"caps{time.monotonic_ns()}", "grep", "CapEff", "/proc/self/status",
                    security=dict(capabilities=caps))
        assert k.wait() == 0
        bits = int(k.log().split()[1], 16)
        k.remove()
        return bits

    NET_ADMIN, CHOWN, SYS_ADMIN = 12, 0, 21
    base = effective()
    assert base >> CHOWN & 1 and not base >> NET_ADMIN & 1
    more = effective(add_capabilities=["NET_ADMIN"], drop_capabilities=["CHOWN"])
    assert more >> NET_ADMIN & 1 and not more >> CHOWN & 1 and not more >> SYS_ADMIN & 1
    assert effective(drop_capabilities=["ALL"]) == 0


def test_privileged(cri):
    """It may do anything to the guest, and has the guest's devices, none of the host's."""
    p = cri.pod("priv", linux=dict(security_context=dict(
        privileged=True, namespace_options=dict(pid=1))))
    k = p.run("main", *LOOP, security=dict(privileged=True))
    k.sh("mount -t tmpfs none /mnt 2>/dev/null || { mkdir -p /mnt && mount -t tmpfs none /mnt; }")
    k.sh("echo 1 >/proc/sys/kernel/sysrq")
    bits = int(k.sh("grep CapEff /proc/self/status").split()[1], 16)
    assert bits >> 21 & 1
    host_disks = {n for n in os.listdir("/sys/block") if n.startswith(("vd", "sd", "nvme"))}
    assert not host_disks & set(k.sh("ls /dev").split())
    p.remove()


def test_sysctls(pod):
    assert pod.main.sh("cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/core/somaxconn") == "1\n1234\n"


# --- volumes ---

@pytest.fixture
def volume(daemon):
    d = pathlib.Path(tempfile.mkdtemp(prefix="vol-", dir=daemon.dir))
    yield d
    shutil.rmtree(d, ignore_errors=True)


def mount(host, inside, readonly=False):
    return dict(host_path=str(host), container_path=inside, readonly=readonly)


def test_volumes(pod, volume):
    (volume / "dir").mkdir()
    (volume / "file").write_text("content")
    k = pod.run("vol", *LOOP, mounts=[mount(volume / "dir", "/data"),
                                      mount(volume / "file", "/etc/one", True),
                                      mount(volume / "dir", "/ro", True)])
    assert k.sh("cat /etc/one") == "content"
    k.sh("echo hello >/data/new; chown 1000:2000 /data/new; chmod 640 /data/new")
    st = (volume / "dir/new").stat()
    assert (st.st_uid, st.st_gid, st.st_mode & 0o777) == (1000, 2000, 0o640)
    assert k.exec("touch", "/ro/x")[0] != 0
    assert k.exec("sh", "-c", "echo x >/etc/one")[0] != 0
    assert k.sh("cat /ro/new") == "hello\n"
    k.remove()
    assert (volume / "dir/new").read_text() == "hello\n"


def write_config(volume, name, **files):
    """As the kubelet does it: a new folder, and a symbolic link that is switched over."""
    new = volume / f"..{name}"
    new.mkdir()
    for key, value in files.items():
        (new / key).write_text(value)
        if not (volume / key).is_symlink():
            (volume / key).symlink_to(f"..data/{key}")
    (volume / "..data_tmp").symlink_to(new.name)
    (volume / "..data_tmp").rename(volume / "..data")


def test_config_volumes_change(pod, volume):
    """A config map that changes is seen in the container, all of it at once."""
    write_config(volume, "one", a="1", b="1")
    k = pod.run("config", *LOOP, mounts=[mount(volume, "/config", True)])
    assert k.sh("cat /config/a /config/b; readlink /config/a") == "11..data/a\n"
    write_config(volume, "two", a="2", b="2", c="2")
    wait_until(lambda: k.sh("cat /config/a /config/b") == "22", 30, 0.5)
    assert k.sh("cat /config/c") == "2"
    k.remove()


def test_sub_path_and_nested_mounts(pod, volume):
    (volume / "a/b").mkdir(parents=True)
    (volume / "a/b/f").write_text("deep")
    (volume / "secret").mkdir()
    (volume / "secret/key").write_text("s3")
    (volume / "a/secret").mkdir()
    k = pod.run("nested", *LOOP, mounts=[mount(volume / "a/b", "/sub"), mount(volume / "a", "/a"),
                                         mount(volume / "secret", "/a/secret", True)])
    assert k.sh("cat /sub/f /a/b/f /a/secret/key") == "deepdeeps3"
    k.remove()


def test_containers_share_a_volume(pod, volume):
    server = pod.run("server", "sh", "-c", "nc -lk -p 1 -e true 2>/dev/null & echo from-one >/v/f; "
                     "touch /v/done; " + LOOP[2], mounts=[mount(volume, "/v")])
    reader = pod.run("reader", "sh", "-c", "while ! [ -e /v/done ]; do sleep 0.1; done; cat /v/f",
                     mounts=[mount(volume, "/v")])
    assert reader.wait() == 0 and reader.log() == "from-one\n"
    server.remove()
    reader.remove()


def test_init_containers(pod, volume):
    first = pod.run("init", "sh", "-c", "echo prepared >/v/f", mounts=[mount(volume, "/v")])
    assert first.wait() == 0
    k = pod.run("after", "cat", "/v/f", mounts=[mount(volume, "/v", True)])
    assert k.wait() == 0 and k.log() == "prepared\n"
    first.remove()
    k.remove()


def test_termination_message(pod, volume):
    (volume / "message").write_text("")
    k = pod.run("message", "sh", "-c", "echo why >/dev/termination-log; exit 3",
                mounts=[mount(volume / "message", "/dev/termination-log")])
    assert k.wait() == 3
    assert (volume / "message").read_text() == "why\n"
    k.remove()


# --- lives and ends ---

def test_logs(pod):
    k = pod.run("logs", "sh", "-c", "echo out; echo err >&2; seq 1 20000; printf end")
    assert k.wait() == 0
    assert k.log("stderr") == "err\n"
    assert k.log("stdout") == "out\n" + "".join(f"{n}\n" for n in range(1, 20001)) + "end"
    k.remove()


def test_log_rotation(cri, pod):
    k = pod.run("rotate", "sh", "-c", "while :; do date +%s%N; sleep 0.1; done")
    wait_until(lambda: k.log().count("\n") > 3)
    k.log_path.rename(k.log_path.with_suffix(".old"))
    cri.call("ReopenContainerLog", container_id=k.id)
    wait_until(lambda: k.log().count("\n") > 3)
    k.stop(0)
    k.remove()


def test_container_restarts(pod):
    """A container that ended is made anew in the same pod; the virtual machine goes on."""
    boot = pod.main.sh("cat /proc/sys/kernel/random/boot_id")
    for attempt in range(3):
        k = pod.run("again", "sh", "-c", "ls /mark 2>/dev/null; touch /mark; exit 1",
                    attempt=attempt)
        assert k.wait() == 1
        assert k.log() == ""
        k.remove()
    assert pod.main.sh("cat /proc/sys/kernel/random/boot_id") == boot


def test_all_containers_of_a_pod_may_go(cri):
    """The pod lives as long as its sandbox, not as its containers."""
    p = cri.pod("lonely")
    for attempt in range(2):
        k = p.run("only", "sh", "-c", "cat /proc/sys/kernel/random/boot_id", attempt=attempt)
        assert k.wait() == 0
        if attempt == 0:
            boot = k.log()
        assert k.log() == boot
        k.remove()
    assert p.ready()
    p.remove()


def test_graceful_stop(pod, volume):
    """One SIGTERM, time to leave, SIGKILL only after that."""
    k = pod.run("graceful", "sh", "-c", "trap 'echo term >>/v/f; sleep 1; exit 5' TERM; touch /v/r; "
                "while :; do sleep 0.1; done", mounts=[mount(volume, "/v")])
    wait_until((volume / "r").exists)
    k.stop(30)
    assert k.status().exit_code == 5
    assert (volume / "f").read_text() == "term\n"
    k.remove()

    k = pod.run("stubborn", "sh", "-c", "trap '' TERM; touch /v/s; while :; do sleep 0.1; done",
                mounts=[mount(volume, "/v")])
    wait_until((volume / "s").exists)
    k.stop(1)
    assert k.status().exit_code == 137
    k.remove()


def test_out_of_memory(pod):
    k = pod.run("oom", "sh", "-c", "head -c 200m /dev/zero | tail", resources=dict(
        memory_limit_in_bytes=20 << 20))
    code = k.wait()
    status = k.status()
    assert code != 0
    assert (status.reason, pod.ready()) == ("OOMKilled", True), status
    k.remove()


def test_shared_pid_namespace(cri):
    p = cri.pod("pids", linux=dict(security_context=dict(namespace_options=dict(pid=0))))
    a = p.run("a", "sleep", "1111")
    b = p.run("b", "sleep", "2222")
    listed = a.sh("ps")
    assert "sleep 1111" in listed and "sleep 2222" in listed and "/pause" in listed
    b.sh("kill -9 $(ps | awk '/[s]leep 1111/ {print $1}')")
    assert a.wait() == 137
    assert b.status().state == c.RUNNING and p.ready()
    p.remove()


def test_ipc_is_the_pods(pod):
    other = pod.run("ipc", "sh", "-c", "echo mine >/dev/shm/f; " + LOOP[2])
    wait_until(lambda: pod.main.exec("cat", "/dev/shm/f")[1] == "mine\n")
    other.remove()


def test_a_whole_pod_is_stopped(cri):
    p = cri.pod("whole")
    k = p.run("main", *LOOP)
    k.sh("while ! [ -e /tmp/ready ]; do sleep 0.1; done")
    p.stop()
    assert not p.ready()
    assert k.status().state == c.EXITED
    p.stop()
    p.remove()
    assert p.id not in [x.id for x in cri.call("ListPodSandbox").items]


# --- figures ---

def test_statistics(cri, pod):
    k = pod.run("load", "sh", "-c", "dd if=/dev/zero of=/dev/shm/load bs=1M count=30 2>/dev/null; "
                "echo ready; " + LOOP[2], resources=dict(memory_limit_in_bytes=128 << 20))
    k.wait_log("ready")
    mem = k.stats().memory
    assert 30 << 20 < mem.working_set_bytes.value < 60 << 20
    assert mem.usage_bytes.value >= mem.working_set_bytes.value
    # What the guest itself says before and after is what is reported, in between.
    def guest():
        text = k.sh("cat /sys/fs/cgroup/memory.current; grep usage_usec /sys/fs/cgroup/cpu.stat; "
                    "cat /sys/fs/cgroup/memory.stat")
        memory, _, cpu = text.split()[:3]
        return int(memory), int(cpu) * 1000, int(re.search(r"^anon (\d+)", text, re.M)[1])

    before, stats, after = guest(), None, None
    def settled():
        nonlocal before, stats, after
        before, stats, after = guest(), k.stats(), guest()
        return before[1] < stats.cpu.usage_core_nano_seconds.value < after[1]
    wait_until(settled)
    assert abs(stats.memory.usage_bytes.value / after[0] - 1) < 0.1
    assert stats.memory.page_faults.value > 0
    listed = cri.call("ListContainerStats", filter=dict(pod_sandbox_id=pod.id)).stats
    assert k.id in [x.attributes.id for x in listed]
    k.remove()


def test_limits_are_changed_in_place(pod):
    k = pod.run("resize", *LOOP, resources=dict(memory_limit_in_bytes=64 << 20, cpu_period=100000,
                                                cpu_quota=50000))
    k.update(memory_limit_in_bytes=96 << 20, cpu_period=100000, cpu_quota=80000)
    text = k.sh("cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max 2>/dev/null || "
                "cat /sys/fs/cgroup/memory/memory.limit_in_bytes "
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.cfs_period_us")
    assert text.split() == [str(96 << 20), "80000", "100000"]
    k.remove()


def test_the_virtual_machine_follows_the_limits(cri):
    p = cri.pod("follows")
    k = p.run("main", *LOOP, resources=dict(memory_limit_in_bytes=64 << 20))
    other = p.run("other", *LOOP, resources=dict(cpu_period=100000, cpu_quota=50000))

    def size():
        text = other.sh("nproc; grep MemTotal /proc/meminfo")
        return int(text.split()[0]), int(text.split()[2]) >> 10

    cpus, memory = size()
    assert cpus == 1 and memory < 256
    k.update(memory_limit_in_bytes=700 << 20, cpu_period=100000, cpu_quota=120000)
    grown = size()
    # 700 and the overhead, less 256, in blocks of 128: four; the kernel's tables are not counted.
    assert grown[0] == 2 and 500 <= grown[1] - memory <= 512, grown
    # It can be used.
    assert "1+0 records out" in k.sh("dd if=/dev/zero of=/dev/null bs=400M count=1 2>&1")
    k.update(memory_limit_in_bytes=64 << 20, cpu_period=100000, cpu_quota=50000)
    cpus, after = size()
    assert cpus == 1 and after - memory <= 128, (memory, after)
    # Once more, and the container's end counts as well.
    k.update(memory_limit_in_bytes=700 << 20, cpu_period=100000, cpu_quota=120000)
    assert size() == grown
    p.remove()


# --- failures ---

@pytest.mark.parametrize("victim", ["caisson-shim", "caisson-vmm",
                                    pytest.param("qemu-system-x86", marks=pytest.mark.qemu)])
def test_kill_of_a_part(cri, daemon, pod, victim):
    """Whatever dies, the pod is reported as gone, can be removed, and others go on."""
    p = cri.pod(f"killed-{victim[:9].strip('-')}")
    k = p.run("main", *LOOP)
    mine = [p.shim_pid(), *c.descendants(p.shim_pid())]
    pids = [x for x in mine if c.comm(x)[:15] == victim[:15]]
    assert pids, [c.comm(x) for x in mine]
    os.kill(pids[-1], signal.SIGKILL)
    wait_until(lambda: k.status().state == c.EXITED and not p.ready(), 40)
    assert k.status().exit_code in (137, 255)
    assert pod.ready() and pod.main.sh("echo alive") == "alive\n"
    p.remove()


def test_kernel_of_a_guest_panics(cri, daemon, pod):
    p = cri.pod("panics", linux=dict(security_context=dict(privileged=True)))
    k = p.run("main", *LOOP, security=dict(privileged=True))
    k.exec("sh", "-c", "echo c > /proc/sysrq-trigger; sleep 20")
    wait_until(lambda: k.status().state == c.EXITED)
    assert k.status().exit_code == 255
    assert not p.ready()
    assert "reason=panic text=\"the guest's kernel panicked: sysrq triggered crash" in daemon.log()
    p.remove()
    assert pod.main.status().state == c.RUNNING


def test_containerd_is_restarted(cri, daemon, pod):
    daemon.kill(signal.SIGKILL)
    daemon.start()
    cri.connect()
    wait_until(pod.ready)
    assert pod.main.status().state == c.RUNNING
    assert pod.main.sh("echo alive") == "alive\n"
    k = pod.run("later", "true")
    assert k.wait() == 0
    k.remove()


# --- streams ---

@pytest.fixture
def stream(cri, daemon):
    """Opens the stream of an Exec, Attach or PortForward."""
    def start(method, protocol="v4.channel.k8s.io", query="", **fields):
        url = cri.call(method, **fields).url
        return daemon.enter(lambda: Stream(url + query, protocol))
    return start


def test_exec_stream(pod, stream):
    s = stream("Exec", container_id=pod.main.id, cmd=["sh", "-c", "read x; echo got-$x; echo e >&2; "
               "exit 3"], stdin=True, stdout=True, stderr=True)
    s.send(ws.STDIN, b"line\n")
    got = s.finish()
    assert got[ws.STDOUT] == b"got-line\n" and got[ws.STDERR] == b"e\n"
    result = json.loads(got[ws.RESULT])
    assert result["reason"] == "NonZeroExitCode" and result["details"]["causes"][0]["message"] == "3"


def test_exec_on_a_terminal(pod, stream):
    s = stream("Exec", container_id=pod.main.id, cmd=["sh"], tty=True, stdin=True, stdout=True)
    s.send(ws.SIZE, json.dumps(dict(Width=91, Height=33)).encode())
    s.send(ws.STDIN, b"stty size; tty\n")
    s.wait(ws.STDOUT, b"33 91")
    s.wait(ws.STDOUT, b"/dev/pts/")
    s.send(ws.STDIN, b"exit 0\n")
    assert json.loads(s.finish()[ws.RESULT])["status"] == "Success"


def test_attach(pod, stream):
    k = pod.run("attach", "sh", "-c", "while read x; do echo got-$x; [ $x = end ] && exit 6; done",
                stdin=True)
    s = stream("Attach", container_id=k.id, stdin=True, stdout=True, stderr=True)
    s.send(ws.STDIN, b"one\n")
    s.wait(ws.STDOUT, b"got-one\n")
    s.send(ws.STDIN, b"end\n")
    s.wait(ws.STDOUT, b"got-end\n")
    s.close()
    assert k.wait() == 6
    assert k.log() == "got-one\ngot-end\n"
    k.remove()


# --- network ---

WEB = ("sh", "-c", "mkdir /www; hostname >/www/index.html; httpd -f -p {port} -h /www")


def web(port):
    return [x.format(port=port) for x in WEB]


def fetch(address, port, path="/index.html"):
    with socket.create_connection((address, port), 20) as s:
        s.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        data = b""
        while part := s.recv(65536):
            data += part
    return data.partition(b"\r\n\r\n")[2].decode()


def test_pods_reach_each_other(cri, daemon, pod):
    p = cri.pod("web", port_mappings=[dict(container_port=80, host_port=18080)])
    k = p.run("main", *web(80))
    address = p.status().network.ip
    assert address.startswith("10.88.7.")
    assert pod.status().network.ip != address
    wait_until(lambda: k.exec("wget", "-qO-", "http://127.0.0.1/index.html")[1] == "web\n")
    assert daemon.enter(lambda: fetch(address, 80)) == "web\n"
    assert pod.main.sh(f"wget -qO- http://{address}/index.html") == "web\n"
    # A port of the node leads to it (CNI's portmap).
    assert daemon.enter(lambda: fetch("10.88.7.1", 18080)) == "web\n"
    # The pod's containers have one loopback.
    other = p.run("other", *LOOP)
    assert other.sh("wget -qO- http://127.0.0.1/index.html") == "web\n"
    assert "eth0" in k.sh("ip addr") and address in k.sh("ip addr")
    p.remove()


def test_port_forward(cri, pod, stream):
    p = pod.run("server", *web(8080))
    wait_until(lambda: p.exec("wget", "-qO-", "http://127.0.0.1:8080/index.html")[0] == 0)
    for _ in range(3):
        s = stream("PortForward", query="?port=8080", pod_sandbox_id=pod.id, port=[8080])
        s.send(0, b"GET /index.html HTTP/1.0\r\n\r\n")
        assert b"shared\n" in s.wait(0, b"shared\n")
        s.close()
    # Nothing listens there.
    s = stream("PortForward", query="?port=8081", pod_sandbox_id=pod.id, port=[8081])
    s.send(0, b"hello")
    assert len(s.finish().get(0, b"")) <= 2  # the port's number only
    p.remove()


# --- sizes and cgroups ---

@pytest.fixture
def pod_cgroup():
    """What the kubelet makes for a pod: a cgroup of version 2, wherever that is mounted."""
    base = pathlib.Path("/sys/fs/cgroup/unified")
    if not (base / "cgroup.procs").exists():
        base = pathlib.Path("/sys/fs/cgroup")
    if not (base / "cgroup.controllers").exists():
        pytest.skip("no cgroup v2 here")
    made = base / f"caissontest{os.getpid()}/pod1"
    made.mkdir(parents=True)
    yield "/" + str(made.relative_to(base)), made
    made.rmdir()
    made.parent.rmdir()


@pytest.mark.parametrize("kind, resources, cpus, more_than", [
    ("guaranteed", dict(memory_limit_in_bytes=400 << 20, cpu_period=100000, cpu_quota=150000), 2, 400),
    ("burstable", dict(cpu_shares=512), 1, 128),
    ("besteffort", dict(cpu_shares=2), 1, 128)])
def test_virtual_machine_is_in_the_pods_cgroup(cri, pod_cgroup, kind, resources, cpus, more_than):
    """So that the kubelet's limits hold for all of it; and its size follows the pod's limits."""
    parent, path = pod_cgroup
    p = cri.pod(f"qos-{kind}", linux=dict(cgroup_parent=parent, resources=resources,
                security_context=dict(namespace_options=dict(pid=1))))
    k = p.run("main", *LOOP)
    inside = [x for d in path.glob("caisson-*/cgroup.procs") for x in d.read_text().split()]
    names = {c.comm(x)[:11] for x in inside}
    assert {"caisson-vmm", vm_process()} <= names, names
    assert k.sh("nproc") == f"{cpus}\n"
    assert int(k.sh("head -n 1 /proc/meminfo").split()[1]) > more_than << 10
    p.remove()
    assert not list(path.glob("*/"))


# --- what the kubelet makes of exec ---

def test_probes_and_hooks(pod, volume):
    """Probes by exec and lifecycle hooks are commands beside the container's own."""
    k = pod.run("probed", "sh", "-c", "touch /healthy; " + LOOP[2], mounts=[mount(volume, "/v")])
    assert k.exec("sh", "-c", "echo post-start >/v/started")[0] == 0   # postStart
    wait_until(lambda: k.exec("cat", "/healthy")[0] == 0)
    k.sh("rm /healthy")
    assert k.exec("cat", "/healthy")[0] == 1                            # the probe fails
    assert k.exec("sh", "-c", "echo pre-stop >/v/stopping")[0] == 0     # preStop
    k.stop(10)
    assert (volume / "started").read_text() == "post-start\n"
    assert (volume / "stopping").read_text() == "pre-stop\n"
    k.remove()


def test_files_are_copied_with_tar(pod, stream, volume):
    """kubectl cp: tar on both sides of an exec."""
    s = stream("Exec", container_id=pod.main.id, cmd=["sh", "-c", "mkdir -p /in; tar -xf - -C /in"],
               stdin=True, stdout=True, stderr=True)
    (volume / "f").write_bytes(bytes(range(256)) * 100)
    archive = subprocess.run(["tar", "-C", volume, "-cf", "-", "f"], stdout=subprocess.PIPE,
                             check=True).stdout
    for i in range(0, len(archive), 30000):
        s.send(ws.STDIN, archive[i:i + 30000])
    wait_until(lambda: pod.main.exec("sh", "-c", "wc -c </in/f")[1] == "25600\n")
    s.close()
    out = stream("Exec", container_id=pod.main.id, cmd=["tar", "-cf", "-", "-C", "/in", "f"],
                 stdout=True, stderr=True).finish()
    (volume / "out.tar").write_bytes(out[ws.STDOUT])
    (volume / "f").unlink()
    subprocess.run(["tar", "-C", volume, "-xf", volume / "out.tar"], check=True)
    assert (volume / "f").read_bytes() == bytes(range(256)) * 100


def test_all_processes_of_a_container_end(pod):
    """Also those that left their parent and session."""
    k = pod.run("family", "sh", "-c", "setsid sh -c 'sleep 4321 & sleep 4321' & " + LOOP[2])
    k.sh("while ! ps | grep -q '[s]leep 4321'; do sleep 0.1; done")
    k.stop(0)
    k.remove()
    assert "4321" not in pod.main.sh("ps")


@pytest.fixture(scope="module")
def helper(daemon):
    """A program to mount into containers."""
    program = daemon.dir / "helper"
    subprocess.run(["gcc", "-static", "-Os", "-o", program, TOP / "tests/e2e/pod-helper.c"],
                   check=True)
    return mount(program, "/helper", True)


def pod_volume(daemon, kind, name):
    """A folder where the kubelet would have it."""
    path = daemon.dir / f"pods/uid-shared/volumes/kubernetes.io~{kind}/{name}"
    path.mkdir(parents=True)
    return path


def test_sockets_between_containers(pod, daemon, helper):
    """A Unix socket in an emptyDir that two containers have."""
    volumes = [mount(pod_volume(daemon, "empty-dir", "socket"), "/s"), helper]
    server = pod.run("listen", "/helper", "serve", "/s/sock", mounts=volumes)
    wait_until(lambda: server.exec("test", "-S", "/s/sock")[0] == 0)
    client = pod.run("connect", "/helper", "call", "/s/sock", mounts=volumes)
    assert client.wait() == 0 and client.log() == "olleh\n"
    assert server.wait() == 0
    server.remove()
    client.remove()


def test_changes_are_announced(pod, daemon, helper):
    """A program that watches a config map (inotify) is woken when it changes."""
    config = pod_volume(daemon, "configmap", "watched")
    write_config(config, "one", key="1")
    k = pod.run("watch", "sh", "-c", "/helper watch /config; while ! grep -q 2 /config/key; do "
                "sleep 0.1; done; readlink /config/key",
                mounts=[mount(config, "/config", True), helper])
    k.wait_log("watching")
    write_config(config, "two", key="2")
    assert k.wait() == 0
    assert k.log() == "watching\nwoken\n..data/key\n"
    k.remove()


def test_out_of_memory_is_told_before_the_end(cri, daemon, pod):
    events = c.Events(daemon, ns="k8s.io")
    k = pod.run("oom2", "sh", "-c", "head -c 200m /dev/zero | tail", resources=dict(
        memory_limit_in_bytes=20 << 20))
    k.wait()
    events.wait(k.id, "exit")
    seen = events.of(k.id)
    events.close()
    assert "oom" in seen and seen.index("oom") < seen.index("exit"), seen
    k.remove()


# --- more volumes, more pods ---

def test_groups_own_volumes(pod, daemon):
    """fsGroup: the kubelet gives the folder to a group, and a process that is not root writes."""
    path = pod_volume(daemon, "empty-dir", "group")
    os.chown(path, 0, 2000)
    path.chmod(0o2775)
    k = pod.run("group", "sh", "-c", "touch /v/f && stat -c '%u %g' /v/f; stat -c '%a %g' /v",
                mounts=[mount(path, "/v")], security=dict(
                    run_as_user=dict(value=1000), run_as_group=dict(value=1000),
                    supplemental_groups=[2000]))
    assert k.wait() == 0
    assert k.log() == "1000 2000\n2775 2000\n"
    k.remove()


def test_block_volumes_and_devices(pod, daemon, volume):
    """A volume in block mode, one that is mounted in the guest, and a hostPath in /dev."""
    raw, formatted = volume / "raw", volume / "formatted"
    raw.write_bytes(b"on the host\n".ljust(1 << 20, b"\0"))
    with open(formatted, "wb") as f:
        f.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", formatted], check=True)
    loop = subprocess.run(["losetup", "--find", "--show", raw], capture_output=True, text=True, check=False)
    if loop.returncode:
        pytest.skip(f"no loop devices here: {loop.stderr.strip()}")
    device = loop.stdout.strip()
    mounted = pod_volume(daemon, "csi", "disk")
    info = pathlib.Path("/run/kata-containers/shared/direct-volumes") / base64.urlsafe_b64encode(
        str(mounted).encode()).decode()
    info.mkdir(parents=True)
    try:
        (info / "mountInfo.json").write_text(json.dumps({
            "volume-type": "block", "device": str(formatted), "fstype": "ext4", "metadata": {}, "options": []}))
        k = pod.run("disks", *LOOP, mounts=[mount(mounted, "/disk"), mount("/dev/zero", "/dev/zzero")],
                    devices=[dict(container_path="/dev/xvda", host_path=device, permissions="rwm")])
        assert k.sh("head -c 11 /dev/xvda; echo guest | dd of=/dev/xvda conv=fsync 2>/dev/null") == "on the host"
        assert raw.read_bytes().startswith(b"guest\n")
        assert "ext4 rw" in k.sh("grep ' /disk ' /proc/mounts; echo x >/disk/f")
        assert not os.listdir(mounted)
        assert k.sh("head -c 2 /dev/zzero | wc -c").strip() == "2"
        k.remove()
    finally:
        subprocess.run(["losetup", "-d", device], check=True)
        shutil.rmtree(info)


@pytest.mark.parametrize("kind", ["configmap", "secret", "projected"])
def test_empty_and_filled_volumes(pod, daemon, kind):
    """Optional ones that are missing are empty folders; secrets keep their modes."""
    empty, filled = pod_volume(daemon, kind, "empty"), pod_volume(daemon, kind, "filled")
    write_config(filled, "one", user="admin", password="1f2d")
    (filled / "..one/password").chmod(0o400)
    k = pod.run(f"kind-{kind}", "sh", "-c", "ls /empty | wc -l; cat /filled/user /filled/password; "
                "stat -L -c ' %a' /filled/password; echo x >/filled/new",
                mounts=[mount(empty, "/empty", True), mount(filled, "/filled", True)])
    assert k.wait() != 0
    assert k.log("stdout") == "0\nadmin1f2d 400\n"
    assert "Read-only file system" in k.log("stderr")
    k.remove()


def test_pods_in_parallel(cri, daemon):
    """All of one kind: their guests come from one template."""
    before = daemon.log().count("starting from the template")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        def whole(n):
            p = cri.pod(f"parallel{n}")
            k = p.run("main", "sh", "-c", f"echo job-{n}")
            code, text = k.wait(), k.log()
            p.remove()
            return code, text
        assert list(pool.map(whole, range(4))) == [(0, f"job-{n}\n") for n in range(4)]
    cri.pod("parallel4").remove()
    assert daemon.log().count("starting from the template") > before
