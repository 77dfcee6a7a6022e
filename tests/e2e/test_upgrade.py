"""A running shim goes on in another program, and nobody notices: `caisson upgrade`."""

import json
import os
import pathlib
import re
import signal
import subprocess
import time

import pytest

import ctrd as c
from conftest import build_image
from ctrd import Cri, Events, wait_until
from in_testbed import vm_process

LINES = 150
# A line every 30 ms or so, far apart enough for an upgrade to fall between any two.
TALK = f"i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); sleep 0.03; done"
UNTIL_DONE = "while ! [ -e /done ]; do sleep 0.1; done"
WANT = [f"line {i}" for i in range(LINES)]
LOOP = ("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done")

needs_containerd = pytest.mark.skipif(c.missing() is not None, reason=str(c.missing()))


def started_as(pid):
    return pathlib.Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").split("\0")


def descriptors(pid):
    """Those that stay: a caller that goes away has one for a moment."""
    def now():
        time.sleep(0.02)
        return len(os.listdir(f"/proc/{pid}/fd"))
    return min(now() for _ in range(20))


def pid_of(caisson, name):
    pids = [int(p.split()[0]) for p in caisson.processes()]
    return next(p for p in pids if c.comm(p).startswith(name))


# --- the command line's containers ---

def test_command_lines_container(caisson, busybox, tmp_path):
    """Its log, an exec, a terminal's input and whoever waits go on; twice."""
    cid = caisson("run", "-d", "--name", "talker", "--network", "none", busybox, "sh", "-c",
                  f"{TALK}; {UNTIL_DONE}; exit 7").ok().out.strip()
    shim = pid_of(caisson, "caisson-shim")
    with caisson.popen("exec", "-i", "talker", "sh", "-c", f"{TALK}; cat; touch /done; exit 5",
                       stdin=subprocess.PIPE, text=True) as exec_, \
            caisson.popen("wait", "talker", text=True) as wait:
        assert exec_.stdout.readline() == "line 0\n"
        exec_.stdin.write("before\n")
        exec_.stdin.flush()
        out = caisson("upgrade", "talker").ok().out
        assert out.startswith(cid) and "-handover" in started_as(shim)
        assert caisson("upgrade", "-q", "--all").ok().out == f"{cid}\n"
        exec_.stdin.write("after\n")
        out, err = exec_.communicate(timeout=60)
        assert out.splitlines() == WANT[1:] + ["before", "after"], err
        assert exec_.returncode == 5, err
        assert wait.communicate(timeout=60)[0] == "7\n"
    assert caisson("logs", "talker").ok().out.splitlines() == WANT
    caisson("rm", "-f", "talker").ok()

    # Programs that cannot take over are asked first, and nothing happens.
    caisson("run", "-d", "--name", "stays", "--network", "none", busybox, "sleep", "1000").ok()
    for program, why in (("/bin/true", "cannot take over"), ("/bin/false", "cannot take over"),
                         ("/nonexistent", "no such file"), (str(tmp_path), "permission")):
        caisson("upgrade", "--program", program, "stays").fails(
            125 if program == "/nonexistent" else 1, why)
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\necho 'version 0.0 understands 0'; exit 1\n", encoding="ascii")
    old.chmod(0o755)
    caisson("upgrade", "--program", old, "stays").fails(1, "version 0.0 understands 0")
    assert caisson("exec", "stays", "echo", "alive").ok().out == "alive\n"
    counts = []
    for _ in range(3):
        caisson("upgrade", "stays").ok()
        counts.append(descriptors(pid_of(caisson, "caisson-shim")))
    assert counts[0] == counts[1] == counts[2]
    caisson("upgrade", "nobody").fails(1, "nobody")
    caisson("upgrade").fails(125, "--all")

    # What is lost after an upgrade is noticed as before.
    os.kill(pid_of(caisson, vm_process()), signal.SIGKILL)
    assert caisson("wait", "stays").ok().out == "137\n"
    # A stopped sandbox, too, has a shim.
    caisson("rm", "-f", "stays").ok()


# --- containerd ---

@pytest.fixture(scope="module")
def daemon(stage):
    with c.cri_daemon(stage, "upgr-") as d:
        d.import_layout(build_image("busybox"), "docker.io/test/busybox")
        yield d


def upgrade(daemon, *names):
    r = subprocess.run(daemon.inside(daemon.stage / "bin/caisson", "upgrade", *names),
                       env=daemon.env, capture_output=True, text=True, timeout=60, check=False)
    assert r.returncode == 0, r.stderr
    return r.stdout


def cpu_of(daemon, name):
    text = daemon.ctr("task", "metrics", name)
    return int(re.search(r"cpu\S*usage\S*\s+(\d+)", text)[1])


@needs_containerd
def test_containerds_container(daemon):
    """An attached `ctr run` (which waits), an exec in flight, events and statistics."""
    events = Events(daemon)
    run = daemon.ctr_popen("run", "--rm", "--runtime", c.RUNTIME, "--fifo-dir", daemon.dir / "fifo",
                           "docker.io/test/busybox:latest", "talker", "sh", "-c",
                           f"{TALK}; {UNTIL_DONE}; exit 9")
    assert run.stdout.readline() == "line 0\n"
    exec_ = daemon.ctr_popen("task", "exec", "--exec-id", "e1", "--fifo-dir", daemon.dir / "fifo",
                             "talker", "sh", "-c", f"{TALK}; touch /done; exit 4")
    assert exec_.stdout.readline() == "line 0\n"
    cpu = cpu_of(daemon, "talker")
    assert upgrade(daemon, "talker")
    assert cpu_of(daemon, "talker") >= cpu
    assert upgrade(daemon, "--all")
    for proc, code in ((exec_, 4), (run, 9)):
        out, err = proc.communicate(timeout=60)
        assert out.splitlines() == WANT[1:], err
        assert proc.returncode == code, err
    events.wait("talker", "delete")
    events.close()
    assert events.of("talker") == ["create", "start", "exec-added:e1", "exec-started:e1", "exit:e1",
                                   "exit", "delete"]
    daemon.assert_clean()


@needs_containerd
@pytest.mark.parametrize("victim", [pytest.param("qemu-system-x86", marks=pytest.mark.qemu), "caisson-vmm"])
def test_death_of_a_part_afterwards(daemon, victim):
    events = Events(daemon)
    r = daemon.run("victim", "sleep", "1000", options=("-d", "--null-io"))
    assert r.returncode == 0, r.stderr
    upgrade(daemon, "victim")
    os.kill([p for p in daemon.processes() if c.comm(p)[:15] == victim][-1], signal.SIGKILL)
    events.wait("victim", "exit")
    # Its shim has nothing any more but what it must tell.
    upgrade(daemon, "victim")
    daemon.try_ctr("task", "rm", "-f", "victim")
    exits = [b for t, b in events.seen if t == "/tasks/exit"]
    events.close()
    assert [b["exit_status"] for b in exits] == [137], exits
    daemon.ctr("container", "rm", "victim")
    daemon.assert_clean()


def mount(source, target, readonly=False):
    return dict(host_path=str(source), container_path=target, readonly=readonly)


def caisson(daemon, *args, code=0):
    r = subprocess.run(daemon.inside(daemon.stage / "bin/caisson", *args), env=daemon.env,
                       capture_output=True, text=True, timeout=60, check=False)
    assert r.returncode == code, (args, r.stdout, r.stderr)
    return r.stdout + r.stderr


def look_from_the_command_line(daemon, pod, main):
    """What containerd started is there for `caisson`, too."""
    name = f"{pod.name}/main"
    assert main.id not in caisson(daemon, "ps", "-a", "--no-trunc")
    listed = json.loads(caisson(daemon, "ps", "--external", "--json", "--no-trunc"))
    assert {(x["ID"], x["Names"], x["State"]) for x in listed} >= {
        (main.id, name, "running"), (pod.id, f"{pod.name}/(pod)", "running")}
    assert caisson(daemon, "exec", name, "sh", "-c", "echo in; echo err >&2") == "in\nerr\n"
    assert caisson(daemon, "exec", main.id[:20], "sh", "-c", "exit 4", code=4) == ""
    told = json.loads(caisson(daemon, "inspect", name))[0]
    assert told["Id"] == main.id and told["Spec"]["ociVersion"] and told["Namespace"] == "k8s.io"
    stats = json.loads(caisson(daemon, "stats", "--json", name))[0]
    assert stats["MemBytes"] > 100000 and stats["Name"] == name
    assert "kubelet" in caisson(daemon, "logs", name, code=1)
    assert f'container="{main.id}"' in caisson(daemon, "metrics", pod.id)


@needs_containerd
def test_pod(daemon, tmp_path):
    """A pod: its network, volumes that are shared and followed, containers that come later."""
    config = tmp_path / "kubelet/pods/u/volumes/kubernetes.io~configmap/c"
    config.mkdir(parents=True)
    (config / "key").write_text("one", encoding="ascii")
    shared = tmp_path / "dir"
    shared.mkdir()
    cri = Cri(daemon)
    pod = cri.pod("upgraded")
    mounts = [mount(config, "/config", True), mount(shared, "/data")]
    main = pod.run("main", *LOOP, mounts=mounts)
    address = pod.status().network.ip
    look_from_the_command_line(daemon, pod, main)
    assert pod.id in upgrade(daemon, pod.id)

    assert main.sh("cat /config/key; echo two >/data/new") == "one"
    assert (shared / "new").read_text(encoding="ascii") == "two\n"
    (config / "key").write_text("three", encoding="ascii")
    wait_until(lambda: main.sh("cat /config/key") == "three", 30, 0.5)
    later = pod.run("later", "sh", "-c", "cat /config/key /data/new; ip addr show eth0", mounts=mounts)
    assert later.wait() == 0
    assert "three" in later.log() and "two" in later.log() and address in later.log()
    later.remove()
    upgrade(daemon, "--all")
    before = time.monotonic()
    main.stop(10)
    assert time.monotonic() - before < 10 and main.status().exit_code == 0
    cri.remove_all()
    cri.close()
    daemon.assert_clean()
