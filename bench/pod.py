#!/usr/bin/env python3
"""Start and memory of a Kubernetes pod, beside runc's with the same containerd. Prints Markdown.

A pod is started as the kubelet does it, over the CRI: RunPodSandbox, CreateContainer, StartContainer,
and then a first exec is answered. Rounds alternate between the runtimes, so that a busy machine is busy
for both. Memory is the proportional set size of all processes of a pod that idles: the shim and what is
below it, the guest's memory included, which QEMU has mapped.

pod.py [ROUNDS [CONTAINERD]]; needs a staged build (CAISSON_STAGE); runs as root.
"""

import os
import pathlib
import re
import statistics
import sys
import time

TOP = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOP / "tests/e2e"))
import ctrd  # noqa: E402  pylint: disable=wrong-import-position

SETTLE_SECONDS = 5
STEPS = ("RunPodSandbox", "CreateContainer", "StartContainer", "first exec", "stop and remove")
STARTING = 3  # of the steps: what a pod's start is
PARENT = f"/caissonbench{os.getpid()}"

RUNC = """
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"""


def start(cri, handler, name):
    """The pod, and the seconds that each of the first steps took."""
    marks = [time.monotonic()]
    pod = cri.pod(name, handler=handler, linux=dict(cgroup_parent=PARENT))
    marks.append(time.monotonic())
    container = pod.create("main", "sleep", "100000")
    marks.append(time.monotonic())
    container.start()
    marks.append(time.monotonic())
    container.exec("true")
    marks.append(time.monotonic())
    return pod, [b - a for a, b in zip(marks, marks[1:])]


def measure_time(cri, handlers, rounds):
    """Handler -> step -> seconds of each round."""
    times = {h: [] for h in handlers}
    for n in range(rounds + 1):
        for handler in handlers:
            pod, seconds = start(cri, handler, f"bench-{handler}-{n}")
            begin = time.monotonic()
            pod.remove()
            seconds.append(time.monotonic() - begin)
            if n:  # the first leaves caches and a template
                times[handler].append(seconds)
    return {h: list(zip(*rows)) for h, rows in times.items()}


def shim_of(pod):
    """Its process: the one with a shim's name and the pod's id among its arguments."""
    for p in filter(str.isdigit, os.listdir("/proc")):
        try:
            argv = pathlib.Path(f"/proc/{p}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"containerd-shim" in argv[0] and pod.id.encode() in argv:
            return int(p)
    raise RuntimeError(f"no shim of pod {pod.name}")


def pss(pid):
    try:
        text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    except OSError:
        return 0


def measure_memory(cri, handlers):
    """Handler -> program -> KiB, of a pod that idles; the pods are there at once."""
    pods = {h: start(cri, h, f"bench-memory-{h}")[0] for h in handlers}
    time.sleep(SETTLE_SECONDS)
    found = {}
    for handler, pod in pods.items():
        parts = found[handler] = {}
        shim = shim_of(pod)
        for pid in [shim, *ctrd.descendants(shim)]:
            parts[ctrd.comm(pid)] = parts.get(ctrd.comm(pid), 0) + pss(pid)
    for pod in pods.values():
        pod.remove()
    return found


def remove_cgroups():
    for path in pathlib.Path("/sys/fs/cgroup").glob(f"**{PARENT}"):
        for d in (*path.glob("*/"), path):
            d.rmdir()


def print_times(times, rounds, version):
    print(f"containerd {version}, image busybox, network by CNI's bridge, {rounds} alternating rounds.\n")
    print("| median, s | " + " | ".join(times) + " | ratio |\n|---|" + "---:|" * (len(times) + 1))
    rows = [(step, [statistics.median(t[i]) for t in times.values()]) for i, step in enumerate(STEPS)]
    whole = [[sum(x) for x in zip(*t[:STARTING])] for t in times.values()]
    rows.insert(STARTING, ("**start of a pod**", [statistics.median(w) for w in whole]))
    rows.insert(STARTING + 1, ("fastest start", [min(w) for w in whole]))
    for name, values in rows:
        print(f"| {name} | " + " | ".join(f"{v:.3f}" for v in values) + f" | {values[-1] / values[0]:.1f} |")


def print_memory(memory):
    print("\n| PSS of an idle pod, KiB | parts | sum |\n|---|---|---:|")
    for handler, parts in memory.items():
        text = ", ".join(f"{name} {kib}" for name, kib in sorted(parts.items(), key=lambda x: -x[1]))
        print(f"| {handler} | {text} | {sum(parts.values())} |")
    text = (TOP / "deploy/kubernetes/runtimeclass.yaml").read_text(encoding="ascii")
    print(f"\nThe runtime class' overhead is {re.search(r'memory: (.*)', text)[1].strip()}.")


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    program = sys.argv[2] if len(sys.argv) > 2 else "containerd"
    if ctrd.missing():
        sys.exit(f"pod.py: {ctrd.missing()}")
    stage = pathlib.Path(os.environ.get("CAISSON_STAGE", TOP / "build/release/stage"))
    if not (stage / "bin/caisson").exists():
        sys.exit("pod.py: no staged build; set CAISSON_STAGE")
    try:
        with ctrd.cri_daemon(stage, "pb-", program=program, config=RUNC) as daemon, \
                ctrd.cri_client(daemon) as cri:
            version = daemon.ctr("--version").split()[2]
            handlers = ("runc", "caisson")
            times = measure_time(cri, handlers, rounds)
            memory = measure_memory(cri, handlers)
    finally:
        remove_cgroups()
    print_times(times, rounds, version)
    print_memory(memory)


if __name__ == "__main__":
    main()
