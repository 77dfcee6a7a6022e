"""Pods that come to grief, over the CRI: each ends with a reason and within its bound, can be removed,
leaves nothing, and the others go on."""

import concurrent.futures
import contextlib
import os
import pathlib
import random
import signal
import time

import grpc
import pytest

import ctrd as c
from ctrd import wait_until

pytestmark = pytest.mark.skipif(c.missing() is not None, reason=str(c.missing()))

LOOP = ("sh", "-c", "while :; do sleep 0.1; done")
AGENT_TIMEOUT = 3
ROUNDS = int(os.environ.get("CAISSON_ROUNDS", "1"))


@pytest.fixture(scope="module")
def daemon(stage):
    with c.cri_daemon(stage, "crf-", settings="annotations:\n  allow:\n    - io.caisson.*\n") as d:
        yield d


@pytest.fixture(scope="module")
def cri(daemon):
    with c.cri_client(daemon) as client:
        yield client


@pytest.fixture(scope="module")
def bystander(cri):
    """A pod that nothing happens to."""
    p = cri.pod("bystander")
    p.main = p.run("main", *LOOP)
    return p


@pytest.fixture(autouse=True)
def others_go_on(bystander):
    yield
    assert bystander.ready() and bystander.main.sh("echo alive") == "alive\n"


def stop_process(pod, name):
    pids = [x for x in c.descendants(pod.shim_pid()) if c.comm(x)[:11] == name]
    assert pids
    os.kill(pids[-1], signal.SIGSTOP)


@pytest.mark.parametrize("what", ["qemu-system", "caisson-vmm"])
def test_the_guest_hangs(cri, daemon, what):
    """Its agent does not answer any more, though nothing has ended. Whoever asks for something meanwhile
    is told, and the pod ends after twice the agent_timeout and a quarter."""
    p = cri.pod(f"hangs-{what}", annotations={"io.caisson.agent-timeout": f"{AGENT_TIMEOUT}s"})
    k = p.run("main", *LOOP)
    stop_process(p, what)
    start = time.monotonic()
    # It may fail or not, but does not wait for long.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        stop = pool.submit(k.stop, 1)
        wait_until(lambda: k.status().state == c.EXITED and not p.ready(), 4 * AGENT_TIMEOUT)
        try:
            stop.result(4 * AGENT_TIMEOUT)
        except grpc.RpcError as e:
            assert "not answered" in e.details() or "not found" in e.details(), e.details()
    assert time.monotonic() - start < 4 * AGENT_TIMEOUT
    assert k.status().exit_code == 137
    assert f"has not answered for {AGENT_TIMEOUT}000 ms" in daemon.log()
    p.remove()


def test_the_guest_runs_out_of_memory(cri, daemon):
    """A container without a limit takes all that the VM has: it ends, and its pod goes on."""
    p = cri.pod("full")
    quiet = p.run("quiet", *LOOP)
    half = "dd if=/dev/zero of=/dev/null bs=150M count=4"
    k = p.run("hungry", "sh", "-c", f"{half} & {half}; wait; exit 1")
    assert k.wait() != 0
    assert k.status().reason == "OOMKilled"
    assert p.ready() and quiet.sh("echo alive") == "alive\n"
    p.remove()


@pytest.fixture
def pod_cgroups():
    """What the kubelet makes for a pod on a host with cgroups of version 1: one in each hierarchy."""
    base = pathlib.Path("/sys/fs/cgroup")
    name = f"caissontest{os.getpid()}"
    made = {}
    for kind in ("memory", "cpu", "cpuacct", "pids"):
        if (base / kind / "cgroup.procs").exists() and not (base / kind / "cgroup.controllers").exists():
            made[kind] = base / kind / name / "pod1"
            made[kind].mkdir(parents=True)
    if set(made) != {"memory", "cpu", "cpuacct", "pids"}:
        pytest.skip("no cgroups of version 1 here")
    yield f"/{name}/pod1", made
    for path in made.values():
        path.rmdir()
        path.parent.rmdir()


def inside(path):
    return {c.comm(x)[:11] for d in path.glob("caisson-*/cgroup.procs") for x in d.read_text().split()}


def test_limits_of_a_pod_on_version_1(cri, daemon, pod_cgroups):
    """The VM is in the pod's cgroups: from the start in that of memory, in that of processor time when it
    has booted, which a small quota would have prevented. A VM that outgrows the limit is killed, which is
    told as such."""
    parent, paths = pod_cgroups
    (paths["memory"] / "memory.limit_in_bytes").write_text(str(1 << 30))
    (paths["cpu"] / "cpu.cfs_period_us").write_text("100000")
    (paths["cpu"] / "cpu.cfs_quota_us").write_text("2000")
    events = c.Events(daemon, ns="k8s.io")
    start = time.monotonic()
    p = cri.pod("limited", linux=dict(cgroup_parent=parent,
                                      security_context=dict(namespace_options=dict(pid=1))))
    for path in paths.values():
        assert {"caisson-vmm", "qemu-system"} <= inside(path), path
    throttled = int((paths["cpu"] / "cpu.stat").read_text().split("nr_throttled ")[1].split()[0])
    assert throttled < (time.monotonic() - start) * 10
    (paths["cpu"] / "cpu.cfs_quota_us").write_text("-1")
    k = p.run("main", *LOOP)
    # What containerd says of the pod is what its cgroup on the host has.
    stats = p.stats().linux
    used = int((paths["memory"] / "memory.usage_in_bytes").read_text())
    assert abs(stats.memory.usage_bytes.value / used - 1) < 0.1 and used > 30 << 20
    assert stats.cpu.usage_core_nano_seconds.value > 10 ** 8

    (paths["memory"] / "memory.limit_in_bytes").write_text(str(used + (8 << 20)))
    k.exec("dd", "if=/dev/zero", "of=/dev/shm/f", "bs=1M", "count=60")
    wait_until(lambda: k.status().state == c.EXITED and not p.ready())
    assert (k.status().exit_code, k.status().reason) == (137, "OOMKilled")
    assert "the host had no memory for it" in daemon.log()
    seen = events.of(k.id)
    events.close()
    assert seen.index("oom") < seen.index("exit"), seen
    p.remove()
    assert not [x for path in paths.values() for x in path.glob("caisson-*")]


def ours(daemon):
    """What is left of pods, of ours: what containerd itself forgets when it is killed is its own matter."""
    return [x for x in daemon.leaks() if x.split()[0] in ("process", "cgroup", "file", "bundle")]


def removed(cri):
    with contextlib.suppress(grpc.RpcError):
        cri.remove_all()
        return True
    return False


def test_containerd_is_killed_while_pods_start(stage):
    """At any moment. It is started again, and removes what it knows of; nothing else is left of us."""
    seed = int(os.environ.get("CAISSON_SEED", time.time_ns() % 1000000))
    rng = random.Random(seed)
    print(f"seed {seed}")
    with c.cri_daemon(stage, "crk-") as daemon:
        cri = c.Cri(daemon)

        def whole(name):
            with contextlib.suppress(grpc.RpcError, ValueError):
                p = cri.pod(name)
                p.run("main", *LOOP).stop(0)
                p.remove()

        for n in range(ROUNDS):
            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                futures = [pool.submit(whole, f"p{n}-{i}") for i in range(2)]
                time.sleep(rng.uniform(0, 4))
                daemon.kill(signal.SIGKILL)
                cri.close()
                for f in futures:
                    f.result(60)
            daemon.start()
            cri.connect()
            # As the kubelet does it: again, if one was being made just then.
            wait_until(lambda: removed(cri) and not ours(daemon), 60, 0.5)
        p = cri.pod("after")
        assert p.run("main", "true").wait() == 0
        p.remove()
        cri.close()
        wait_until(lambda: not ours(daemon), 15, 0.5)
