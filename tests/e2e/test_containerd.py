"""containerd runs containers on Caisson: the packaged containerd, driven by ctr."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time

import pytest

import ctrd as c
from conftest import build_image
from ctrd import Containerd, Events, wait_until
from shimclient import Connection, default_spec, make_root

pytestmark = pytest.mark.skipif(c.missing() is not None, reason=str(c.missing()))


@pytest.fixture(scope="module")
def daemon(stage):
    directory = tempfile.mkdtemp(prefix="ctrd-")
    d = Containerd(stage, directory)
    try:
        d.start()
        d.import_layout(build_image("busybox"), "docker.io/test/busybox")
        yield d
    finally:
        d.close()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def ctrd(daemon):
    """After each test nothing is left, and containerd knows of nothing."""
    yield daemon
    if not daemon.proc:
        daemon.start()
    for name in daemon.ctr("task", "ls", "-q").split():
        daemon.try_ctr("task", "rm", "-f", name)
    for name in daemon.ctr("container", "ls", "-q").split():
        daemon.try_ctr("container", "rm", name)
    daemon.assert_clean()


@pytest.fixture
def detached(ctrd):
    """Starts a container in the background."""
    def start(name, *command, options=()):
        r = ctrd.run(name, *(command or ("sleep", "1000")), options=("-d", "--null-io", *options))
        assert r.returncode == 0, r.stderr
        return name
    return start


@pytest.fixture
def trap(ctrd, detached):
    """Starts a container that leaves with @code at @signame; gives back when it would."""
    def start(name, signame, code):
        detached(name, "sh", "-c", f"trap 'exit {code}' {signame}; touch /ready; "
                 "while :; do sleep 0.1; done")
        wait_until(lambda: exec_(ctrd, name, "test", "-e", "/ready").returncode == 0)
    return start


def exec_(ctrd, name, *command, exec_id=None, **kw):
    return ctrd.try_ctr("task", "exec", "--exec-id", exec_id or f"e{time.monotonic_ns()}",
                        "--fifo-dir", ctrd.dir / "fifo", name, *command, **kw)


def stopped(ctrd, name):
    return re.search(rf"^{name} .*STOPPED", ctrd.ctr("task", "ls"), re.M)


def removed_with(ctrd, name):
    """Removes a task that has ended; gives its exit code, which ctr tells in words."""
    r = ctrd.try_ctr("task", "rm", name)
    assert r.returncode == 0, r.stderr
    m = re.search(r"non-zero exit code (\d+)", r.stderr)
    return int(m[1]) if m else 0


@pytest.mark.both
def test_run(ctrd):
    r = ctrd.run("hello", "sh", "-c", "echo out; echo err >&2; uname -r; touch /made; exit 3",
                 options=("--rm",))
    assert r.returncode == 3, r.stderr
    out = r.stdout.splitlines()
    assert out[0] == "out" and out[1] != os.uname().release
    assert "err" in r.stderr


def test_options_of_the_runtime(ctrd):
    """A file of settings that containerd's client names, in place of the host's."""
    settings = ctrd.dir / "options.yaml"
    settings.write_text("vm:\n  vcpus: 2\n  boot_timeout: 120s\n")
    options = ("--rm", "--runtime-config-path", settings)
    r = ctrd.run("two", "nproc", options=options)
    assert (r.returncode, r.stdout) == (0, "2\n"), r.stderr
    settings.write_text("vm:\n  vcpus: 2\n  vpcus: 3\n")
    r = ctrd.run("bad", "true", options=options)
    assert r.returncode and f"{settings}:3: unknown key 'vpcus' in 'vm'" in r.stderr
    ctrd.assert_clean()


def test_standard_input_and_large_output(ctrd, detached):
    """By exec: ctr 1.6 tells the end of its input there only."""
    detached("pipe")
    r = exec_(ctrd, "pipe", "sh", "-c", "md5sum; seq 1 100000", input="x" * 100000)
    assert r.returncode == 0, r.stderr
    lines = r.stdout.splitlines()
    want = subprocess.run(["md5sum"], input="x" * 100000, text=True, stdout=subprocess.PIPE,
                          check=True).stdout.split()[0]
    assert lines[0].split()[0] == want
    assert lines[1:] == [str(n) for n in range(1, 100001)]


def check_fields(ctrd, body):
    """What is told of a container's life: topic -> the last event's fields."""
    create, end, gone = (body[f"/tasks/{t}"] for t in ("create", "exit", "delete"))
    pid = create["pid"]
    assert create["bundle"] == str(ctrd.task_file("default", "life", "").parent / "life")
    assert create["rootfs"][0]["type"] == "overlay" and "options" in create["rootfs"][0]
    assert "io" in create
    assert body["/tasks/start"]["pid"] == pid > 0
    assert body["/tasks/exec-added"]["exec_id"] == "e2"
    assert body["/tasks/exec-started"]["exec_id"] == "e1" and body["/tasks/exec-started"]["pid"] > 0
    assert (end["id"], end["pid"], end["exit_status"]) == ("life", pid, 7)
    assert (gone["pid"], gone["exit_status"], gone["exited_at"]) == (pid, 7, end["exited_at"])


@pytest.mark.both
def test_life_of_a_task(ctrd, detached):
    """exec, ps, pause, metrics, kill, rm; with the events of all of it in order."""
    events = Events(ctrd)
    detached("life", "sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.1; done")
    r = exec_(ctrd, "life", "sh", "-c", "echo inside; exit 5", exec_id="e1")
    assert (r.returncode, r.stdout) == (5, "inside\n"), r.stderr
    missing = exec_(ctrd, "life", "/no/such/program", exec_id="e2")
    assert missing.returncode != 0 and "no such file" in missing.stderr.lower(), missing.stderr
    assert "RUNNING" in ctrd.ctr("task", "ls")
    assert re.search(r"^\d+", ctrd.ctr("task", "ps", "life").splitlines()[1])

    ctrd.ctr("task", "pause", "life")
    assert "PAUSED" in ctrd.ctr("task", "ls")
    ctrd.ctr("task", "resume", "life")
    assert "RUNNING" in ctrd.ctr("task", "ls")

    metrics = json.loads(ctrd.ctr("task", "metrics", "--format", "json", "life"))
    assert metrics, "no statistics"

    ctrd.ctr("task", "kill", "life")
    wait_until(lambda: stopped(ctrd, "life"))
    assert removed_with(ctrd, "life") == 7
    events.wait("life", "delete")
    seen = events.of("life")
    events.close()
    assert seen == ["create", "start", "exec-added:e1", "exec-started:e1", "exit:e1",
                    "exec-added:e2", *[x for x in seen if x == "exit:e2"],
                    "paused", "resumed", "exit", "delete"], seen
    body = {t: b for t, b in events.seen if "life" in (b.get("container_id"), b.get("id"))}
    check_fields(ctrd, body)


def test_signals(ctrd, trap):
    trap("sig", "USR1", 42)
    ctrd.ctr("task", "kill", "--signal", "SIGUSR1", "sig")
    wait_until(lambda: stopped(ctrd, "sig"))
    again = ctrd.try_ctr("task", "kill", "--signal", "SIGKILL", "sig")
    assert again.returncode != 0 and "finished" in again.stderr or "not found" in again.stderr
    assert removed_with(ctrd, "sig") == 42


def test_error_codes(ctrd, detached):
    """What containerd tells its clients apart by code."""
    detached("codes")
    taken = ctrd.try_ctr("task", "start", "-d", "codes")
    assert taken.returncode and "already exists" in taken.stderr
    running = ctrd.try_ctr("task", "rm", "codes")
    assert running.returncode and "running" in running.stderr
    assert "not found" in ctrd.try_ctr("task", "kill", "nobody").stderr
    ctrd.ctr("task", "rm", "-f", "codes")
    r = ctrd.run("bad", "/no/such/program", options=("--rm",))
    assert r.returncode and "/no/such/program" in r.stderr, r.stderr


def test_log_goes_to_containerd(ctrd):
    assert ctrd.run("logged", "true", options=("--rm",)).returncode == 0
    assert "the agent is ready" in ctrd.log()


def test_output_to_a_file_and_to_a_program(ctrd, tmp_path):
    target = tmp_path / "log.txt"
    r = ctrd.run("tofile", "sh", "-c", "echo one; echo two >&2",
                 options=("-d", "--log-uri", f"file://{target}"))
    assert r.returncode == 0, r.stderr
    wait_until(lambda: stopped(ctrd, "tofile"))
    assert sorted(target.read_text().split()) == ["one", "two"]
    ctrd.try_ctr("task", "rm", "tofile")

    logger = tmp_path / "logger"
    logger.write_text("#!/bin/sh\n"
                      f"echo \"$CONTAINER_ID $CONTAINER_NAMESPACE\" >{tmp_path}/who\n"
                      f"cat <&4 >{tmp_path}/err & exec 5>&-; cat <&3 >{tmp_path}/out; wait\n")
    logger.chmod(0o755)
    r = ctrd.run("toprog", "sh", "-c", "echo one; echo two >&2",
                 options=("-d", "--log-uri", f"binary://{logger}"))
    assert r.returncode == 0, r.stderr
    wait_until(lambda: stopped(ctrd, "toprog"))
    wait_until(lambda: (tmp_path / "out").exists() and (tmp_path / "out").read_text() == "one\n")
    wait_until(lambda: (tmp_path / "err").read_text() == "two\n")
    assert (tmp_path / "who").read_text() == "toprog default\n"
    ctrd.try_ctr("task", "rm", "toprog")


NETWORK_HOOK = """#!/bin/sh
pid=$(sed 's/.*"pid":\\([0-9]*\\).*/\\1/')
case $1 in
up)
	ip link add nerd0 type veth peer name eth0 netns "$pid" && nsenter -t "$pid" -n sh -c \
		'ip addr add 10.4.0.2/24 dev eth0 && ip link set eth0 up' && ip link set nerd0 up ;;
down) ip link del nerd0; echo gone >>"$0.down" ;;
esac
"""


def test_a_container_as_nerdctl_makes_it(ctrd, tmp_path):
    """A namespace of its own, labels, hooks that connect the network, and a logging program."""
    hook, logger = tmp_path / "hook", tmp_path / "logger"
    hook.write_text(NETWORK_HOOK)
    logger.write_text(f"#!/bin/sh\necho \"$@\" >{tmp_path}/args\nexec 5>&-; cat <&3 >{tmp_path}/out\n")
    for p in (hook, logger):
        p.chmod(0o755)
    spec = default_spec(["sh", "-c", "ip -o -4 addr show eth0; exec sleep 1000"],
                        annotations={"nerdctl/name": "web", "nerdctl/state-dir": str(tmp_path)},
                        hooks={k: [{"path": str(hook), "args": ["hook", a], "env": [f"PATH={os.environ['PATH']}"]}]
                               for k, a in (("createRuntime", "up"), ("poststop", "down"))})
    spec["root"] = {"path": make_root(str(tmp_path / "root"))}
    (tmp_path / "config.json").write_text(json.dumps(spec))
    try:
        ctrd.ctr("run", "-d", "--runtime", c.RUNTIME, "--config", tmp_path / "config.json", "--label",
                 "nerdctl/name=web", "--log-uri", f"binary://{logger}?_NERDCTL_INTERNAL_LOGGING=/x", "web", ns="nerd")
        wait_until(lambda: (tmp_path / "out").exists() and "10.4.0.2/24" in (tmp_path / "out").read_text())
        assert (tmp_path / "args").read_text() == "_NERDCTL_INTERNAL_LOGGING /x\n"
        assert "web" in ctrd.ctr("container", "ls", "labels.\"nerdctl/name\"==web", ns="nerd")
        assert "nerd0" in ctrd.links() and "web" not in ctrd.ctr("task", "ls")
        ctrd.ctr("task", "kill", "-s", "KILL", "web", ns="nerd")
        wait_until(lambda: "STOPPED" in ctrd.ctr("task", "ls", ns="nerd"))
    finally:
        ctrd.try_ctr("task", "rm", "-f", "web", ns="nerd")
        ctrd.try_ctr("container", "rm", "web", ns="nerd")
    assert (tmp_path / "hook.down").read_text() == "gone\n" and "nerd0" not in ctrd.links()


def test_limits_mounts_and_users(ctrd, tmp_path):
    (tmp_path / "data").write_text("shared")
    r = ctrd.run("limits", "sh", "-c", "cat /mnt/data; id -u; cat /proc/meminfo | head -n 1; "
                 "cat /sys/fs/cgroup/memory.max 2>/dev/null; touch /mnt/x 2>&1; nproc",
                 options=("--rm", "--memory-limit", str(64 << 20), "--cpus", "2",
                          "--mount", f"type=bind,src={tmp_path},dst=/mnt,options=rbind:ro"))
    assert r.returncode == 0, r.stderr
    assert r.stdout.startswith("shared0\n"), r.stdout
    total = int(re.search(r"MemTotal: *(\d+)", r.stdout)[1])
    assert 64 << 10 < total < 512 << 10
    assert "Read-only" in r.stdout


def test_containerd_is_restarted(ctrd, trap):
    """Killed and started again it finds the running container, and misses no end."""
    trap("stay", "TERM", 9)
    ctrd.kill(signal.SIGKILL)
    ctrd.start()
    assert "RUNNING" in ctrd.ctr("task", "ls")
    r = exec_(ctrd, "stay", "echo", "alive")
    assert r.stdout == "alive\n", r.stderr
    ctrd.ctr("task", "kill", "stay")
    wait_until(lambda: stopped(ctrd, "stay"))
    assert removed_with(ctrd, "stay") == 9


def test_events_wait_for_containerd(ctrd, trap):
    """What happens while containerd is away is told when it is back."""
    trap("away", "TERM", 4)
    ctrd.kill(signal.SIGKILL)
    # The end of the container, without containerd.
    address = ctrd.task_file("default", "away", "address").read_text()
    shim = ctrd.enter(lambda: Connection(f"/proc/{ctrd.keeper.pid}/root/{address[7:]}"))
    shim.call("Kill", [(1, "away"), (3, signal.SIGTERM)])
    assert shim.call("Wait", [(1, "away")])[1] == [4]
    shim.close()
    ctrd.start()
    events = Events(ctrd)
    wait_until(lambda: stopped(ctrd, "away"))
    events.wait("away", "exit")
    events.close()
    assert removed_with(ctrd, "away") == 4


@pytest.mark.parametrize("victim", ["caisson-shim", "caisson-vmm",
                                    pytest.param("qemu-system-x86", marks=pytest.mark.qemu)])
def test_kill_of_a_part(ctrd, detached, victim):
    """Whatever dies, containerd learns that the container has ended, with 137, and can remove it."""
    events = Events(ctrd)
    detached("victim")
    pids = [p for p in ctrd.processes() if c.comm(p)[:15] == victim[:15]]
    assert pids, [c.comm(p) for p in ctrd.processes()]
    os.kill(pids[-1], signal.SIGKILL)
    events.wait("victim", "exit")
    assert "delete" not in events.of("victim")[:3]
    # A shim that died is not there to answer; the end of a VM is no error for its removal.
    r = ctrd.try_ctr("task", "rm", "-f", "victim")
    assert r.returncode == 0 or victim == "caisson-shim", r.stderr
    exits = [b for t, b in events.seen if t == "/tasks/exit"]
    events.close()
    assert [b["exit_status"] for b in exits] == [137], exits
    ctrd.ctr("container", "rm", "victim")


def removed(ctrd, name):
    """Removal is tried again, as a client does while containerd finds out what has died."""
    r = ctrd.try_ctr("task", "rm", "-f", name)
    listed = name in ctrd.ctr("task", "ls", "-q").split()
    if listed:
        print(f"{name}: {r.stderr.strip()}")
    return not listed


def test_kills_at_any_moment(ctrd):
    """Wherever in a container's start or life one of its processes is killed, nothing is left."""
    dice = random.Random()
    seed = dice.randrange(1 << 32)
    print(f"seed {seed}")
    dice.seed(seed)
    for n in range(6):
        p = ctrd.ctr_popen("run", "-d", "--null-io", "--runtime", c.RUNTIME,
                           "docker.io/test/busybox:latest", f"dice{n}", "sleep", "1000")
        time.sleep(dice.uniform(0.05, 1.5))
        running = ctrd.processes()
        if running:
            try:
                os.kill(dice.choice(running), signal.SIGKILL)
            except ProcessLookupError:
                pass
        p.communicate(timeout=60)
        wait_until(lambda: removed(ctrd, f"dice{n}"))
        ctrd.try_ctr("container", "rm", f"dice{n}")
        ctrd.assert_clean(20)


def test_info(ctrd):
    out = subprocess.run([ctrd.stage / "bin/containerd-shim-caisson-v2", "-info"],
                         stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True).stdout
    assert b"io.containerd.caisson.v2" in out
