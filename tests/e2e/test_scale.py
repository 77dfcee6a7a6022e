"""Many of everything over the CRI. The counts come from the environment; by default they are small, so
that a leak per operation still shows while the tests take seconds."""

import concurrent.futures
import hashlib
import os
import pathlib
import re
import socket
import time

import pytest

import ctrd as c

pytestmark = pytest.mark.skipif(c.missing() is not None, reason=str(c.missing()))

EXECS = int(os.environ.get("CAISSON_EXECS", "60"))
OUTPUTS = int(os.environ.get("CAISSON_OUTPUTS", "1"))
PODS = int(os.environ.get("CAISSON_PODS", "4"))
CONTAINERS = int(os.environ.get("CAISSON_CONTAINERS", "8"))
ROUNDS = int(os.environ.get("CAISSON_ROUNDS", "1"))
GROWTH = 64 << 10  # bytes that a process may grow by, whatever the number of operations


@pytest.fixture(scope="module")
def daemon(stage):
    with c.cri_daemon(stage, "scale-") as d:
        yield d


@pytest.fixture
def cri(daemon):
    with c.cri_client(daemon, 60) as client:
        yield client


def anonymous(pid):
    text = pathlib.Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(re.search(r"^RssAnon:\s+(\d+)", text, re.M)[1]) << 10


def agent_resident(daemon, pod):
    """What the agent says of itself, by the sandbox's monitor socket."""
    directory = os.open(daemon.run_dir / "sandboxes" / f"k8s.io+{pod.id}", os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(60)
            s.connect(f"/proc/self/fd/{directory}/monitor.sock")
            s.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            text = b"".join(iter(lambda: s.recv(65536), b"")).decode()
    finally:
        os.close(directory)
    return int(float(re.search(r"^kata_agent_total_rss (\S+)", text, re.M)[1]))


def sizes(daemon, pod):
    shim = pod.shim_pid()
    vmm = [p for p in c.descendants(shim) if c.comm(p) == "caisson-vmm"]
    return {"shim": anonymous(shim), "caisson-vmm": anonymous(vmm[0]),
            "agent": agent_resident(daemon, pod)}


def test_execs_leave_nothing(cri, daemon):
    """Processes that are run in a pod are forgotten by all three that knew of them."""
    pod = cri.pod("execs")
    k = pod.run("main", "sleep", "100000")

    def some(n):
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for code, out, _ in pool.map(lambda i: k.exec("echo", str(i)), range(n)):
                assert code == 0 and out.strip().isdigit()

    # Until allocators and caches have what they keep, those of the question itself too.
    some(150)
    sizes(daemon, pod)
    some(10)
    before = sizes(daemon, pod)
    some(EXECS)
    after = sizes(daemon, pod)
    print(f"{EXECS} execs: {before} -> {after}")
    assert all(after[x] - before[x] <= GROWTH for x in before), (before, after)
    pod.remove()


def test_a_missing_command_fails_at_once(cri):
    """By the guest's clock, which goes on while other work has the processor: told, not judged."""
    pod = cri.pod("missing")
    k = pod.run("main", "sleep", "100000")

    def uptime():
        return float(k.sh("cat /proc/uptime").split()[0])

    took = []
    for _ in range(5):
        start = uptime()
        with pytest.raises(Exception, match="no such file"):
            k.exec("/no/such/program")
        took.append(uptime() - start)
    print(f"a missing command and one look at the clock: {min(took):.2f} to {max(took):.2f} s")
    pod.remove()


def test_long_output_is_whole(cri, daemon):
    pod = cri.pod("output")
    k = pod.run("main", "sleep", "100000")
    expected = hashlib.sha256("".join(f"{n}\n" for n in range(1, 1000001)).encode()).digest()
    for n in range(OUTPUTS):
        out = daemon.ctr("task", "exec", "--exec-id", f"out{n}", "--fifo-dir", daemon.dir / "fifo", k.id,
                         "seq", "1", "1000000", ns="k8s.io", timeout=300)
        assert hashlib.sha256(out.encode()).digest() == expected
    pod.remove()


def in_parallel(n, function):
    """Results of function(0..n-1), and how long each took."""
    def timed(i):
        start = time.monotonic()
        result = function(i)
        return result, time.monotonic() - start

    with concurrent.futures.ThreadPoolExecutor(n) as pool:
        done = list(pool.map(timed, range(n)))
    return [r for r, _ in done], sorted(t for _, t in done)


def quantile(times, q):
    return times[min(len(times) - 1, int(len(times) * q))]


def test_pods_at_once(cri):
    """However few processors there are for them, all pods come up."""
    def start(i):
        pod = cri.pod(f"many{i}")
        pod.main = pod.run("main", "sleep", "100000")
        return pod

    pods, times = in_parallel(PODS, start)
    print(f"{PODS} pods at once: p50 {quantile(times, 0.5):.1f} s, p99 {quantile(times, 0.99):.1f} s")
    for pod in pods:
        assert pod.main.status().state == c.RUNNING
    in_parallel(PODS, lambda i: pods[i].remove())


def test_containers_of_pods(cri):
    """Containers come and go in pods that stay, round after round."""
    pods = [cri.pod(f"host{i}") for i in range(max(1, min(10, CONTAINERS // 4)))]
    for n in range(ROUNDS):
        started, times = in_parallel(CONTAINERS, lambda i: pods[i % len(pods)].run(
            f"c{n}-{i}", "sh", "-c", "echo up; sleep 100000"))  # pylint: disable=cell-var-from-loop
        print(f"{CONTAINERS} containers, round {n}: p50 {quantile(times, 0.5):.2f} s, "
              f"p99 {quantile(times, 0.99):.2f} s")
        for k in started:
            k.wait_log("up")
        in_parallel(CONTAINERS, lambda i: started[i].remove())
    for pod in pods:
        pod.remove()
