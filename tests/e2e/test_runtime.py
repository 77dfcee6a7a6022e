"""caisson-runtime, the command line of OCI runtimes: by hand, and as Podman's runtime."""

import array
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import pytest

import netpod
import shimclient as sc
from conftest import orphan_vms
from ctrd import state_of, wait_until
from shimclient import default_spec


class Runtime:
    """Commands on bundles in a directory of their own; this process takes the place of conmon."""

    def __init__(self, stage, folder):
        self.program = str(stage / "bin/caisson-runtime")
        self.folder = str(folder)
        self.run = os.path.join(self.folder, "run")
        os.makedirs(self.run)
        config = os.path.join(self.folder, "config.yaml")
        with open(config, "w", encoding="ascii") as f:
            f.write("vm:\n  boot_timeout: 120s\n")
        self.env = dict(os.environ, CAISSON_RUN=self.run, CAISSON_CONFIG=config,
                        CAISSON_ROOT=os.path.join(self.folder, "root"))
        self.env.pop("TTRPC_ADDRESS", None)
        self.rootfs = sc.make_root(os.path.join(self.folder, "rootfs"))

    def __call__(self, *args, check=True, **kw):
        kw.setdefault("stdin", subprocess.DEVNULL)
        p = subprocess.run([self.program, *map(str, args)], env=self.env, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, text=True, timeout=120, check=False, **kw)
        if check:
            assert p.returncode == 0, (args, p.stdout, p.stderr)
        return p

    def bundle(self, name, args, **more):
        path = os.path.join(self.folder, "bundles", name)
        os.makedirs(path)
        spec = default_spec(args, **more)
        spec["root"] = {"path": self.rootfs}
        with open(os.path.join(path, "config.json"), "w", encoding="ascii") as f:
            json.dump(spec, f)
        return path

    def create(self, name, args, *flags, **more):
        """Creates as conmon does: with pipes, and a file for the pid. Gives pid, stdout, stderr."""
        bundle = self.bundle(name, args, **more)
        pidfile = os.path.join(bundle, "pid")
        out, out_w = os.pipe()
        err, err_w = os.pipe()
        r = subprocess.run([self.program, "create", "--bundle", bundle, "--pid-file", pidfile,
                            *flags, name], env=self.env, stdin=subprocess.DEVNULL, stdout=out_w,
                           stderr=err_w, timeout=120, check=False)
        os.close(out_w)
        os.close(err_w)
        assert r.returncode == 0, os.read(err, 4096)
        with open(pidfile, encoding="ascii") as f:
            return int(f.read()), open(out, "rb"), open(err, "rb")

    def state(self, name):
        return json.loads(self("state", name).stdout)


@pytest.fixture(scope="module", autouse=True)
def subreaper():
    """Stand-ins become children of this process, so that their status can be had."""
    import ctypes
    assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0


@pytest.fixture
def runtime(stage, tmp_path):
    before = set(orphan_vms())
    r = Runtime(stage, tmp_path)
    yield r
    left = [d for d in ("oci", "sandboxes", "s") if os.path.isdir(os.path.join(r.run, d))
            and os.listdir(os.path.join(r.run, d))]
    for name in os.listdir(os.path.join(r.run, "oci")) if "oci" in left else []:
        r("delete", "--force", name, check=False)
    assert not left, left
    # Those of other tests that end now are without their caisson-vmm for a moment.
    wait_until(lambda: set(orphan_vms()) <= before)


def test_life(runtime):
    pid, out, err = runtime.create("one", ["sh", "-c", "echo out; echo err >&2; exit 7"])
    assert runtime.state("one")["status"] == "created"
    assert runtime.state("one")["pid"] == pid
    runtime("start", "one")
    assert out.read() == b"out\n" and err.read() == b"err\n"
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    wait_until(lambda: runtime.state("one")["status"] == "stopped")
    runtime("delete", "one")
    assert "does not exist" in runtime("state", "one", check=False).stderr


def test_signals_and_exec(runtime, tmp_path):
    pid, out, _ = runtime.create("two", ["sh", "-c", "trap 'exit 9' TERM; echo up; "
                                         "while :; do sleep 0.1; done"])
    runtime("start", "two")
    assert out.readline() == b"up\n"
    assert runtime.state("two")["status"] == "running"
    r = runtime("exec", "two", "sh", "-c", "echo hello; exit 5", check=False)
    assert (r.returncode, r.stdout) == (5, "hello\n"), r.stderr
    process = tmp_path / "process.json"
    process.write_text(json.dumps(default_spec(["cat"])["process"]))
    r = subprocess.run([runtime.program, "exec", "--process", process, "two"], env=runtime.env,
                       input=b"x" * 100000, stdout=subprocess.PIPE, timeout=60, check=True)
    assert r.stdout == b"x" * 100000
    missing = runtime("exec", "two", "/no/such/program", check=False)
    assert missing.returncode and "no such file" in missing.stderr.lower()
    assert json.loads(runtime("ps", "two").stdout)
    runtime("pause", "two")
    assert runtime.state("two")["status"] == "paused"
    runtime("resume", "two")
    busy = runtime("delete", "two", check=False)
    assert busy.returncode and "running" in busy.stderr
    runtime("kill", "two", "TERM")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    runtime("delete", "two")


def test_terminal(runtime, tmp_path):
    path = str(tmp_path / "console")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(1)
    spec = {"process": {"terminal": True}}
    pid, _, _ = runtime.create("tty", ["sh"], "--console-socket", path, **spec)
    conn = listener.accept()[0]
    _, control, _, _ = conn.recvmsg(64, socket.CMSG_SPACE(4))
    fds = array.array("i")
    fds.frombytes(control[0][2][:4])
    runtime("start", "tty")
    os.write(fds[0], b"echo $((40+2)); exit 3\n")
    seen = b""
    while b"42\r\n" not in seen:
        seen += os.read(fds[0], 4096)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    runtime("delete", "tty")


@pytest.mark.parametrize("victim", ["standin", "shim"])
def test_kills(runtime, victim):
    pid, _, _ = runtime.create("killed", ["sleep", "1000"])
    runtime("start", "killed")
    if victim == "standin":
        os.kill(pid, signal.SIGKILL)
    else:
        with open(os.path.join(runtime.folder, "bundles/killed/shim.pid"), encoding="ascii") as f:
            os.kill(int(f.read()), signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == (-9 if victim == "standin" else 137)
    runtime("delete", "--force", "killed")
    runtime("delete", "--force", "killed")


def test_errors(runtime):
    r = runtime("create", "--bundle", runtime.folder, "x", check=False)
    assert r.returncode and "config.json" in r.stderr
    r = runtime("kill", "nobody", check=False)
    assert r.returncode and "does not exist" in r.stderr
    bundle = runtime.bundle("bad", ["/no/such/program"])
    log = os.path.join(runtime.folder, "log")
    r = runtime("--log", log, "--log-format", "json", "run", "--bundle", bundle, "bad", check=False)
    with open(log, encoding="ascii") as f:
        line = json.loads(f.readlines()[-1])
    assert r.returncode and line["level"] == "error" and "/no/such/program" in line["msg"]
    assert "cgroup" in json.loads(runtime("features").stdout)["linux"]
    assert "version" in runtime("--version").stdout
    assert runtime("--help").stdout.startswith("usage: caisson-runtime")
    assert "unknown command 'nonsense'" in runtime("nonsense", check=False).stderr


def test_hooks(runtime, tmp_path):
    """Those of the host run there, with the container's state, in their order."""
    seen = tmp_path / "seen"
    say = [{"path": "/bin/sh", "args": ["hook", "-c", f"echo {name} $0 $V >>{seen}; cat >>{seen}; "
                                        f"echo >>{seen}"], "env": [f"V={name}"]}
           for name in ("prestart", "createRuntime", "createContainer", "poststart", "poststop")]
    hooks = {h["env"][0][2:]: [h] for h in say}
    pid, out, _ = runtime.create("hooked", ["cat", "/proc/uptime"], hooks=hooks)
    runtime("start", "hooked")
    assert out.read()
    os.waitpid(pid, 0)
    runtime("delete", "hooked")
    lines = seen.read_text(encoding="ascii").splitlines()
    assert [line.split()[0] for line in lines[::2]] == list(hooks)
    assert lines[0].split()[1:] == ["hook", "prestart"]
    states = [json.loads(line) for line in lines[1::2]]
    assert [s["status"] for s in states] == ["creating"] * 3 + ["running", "stopped"]
    assert all(s["id"] == "hooked" and s["bundle"].endswith("/hooked") for s in states)
    assert all(s["pid"] > 1 for s in states[:4])


def test_poststop_hooks_when_the_shim_was_killed(runtime, tmp_path):
    """They run when what is left is freed, once, with the state; networks of nerdctl's depend on it."""
    seen = tmp_path / "seen"
    hook = {"path": "/bin/sh", "args": ["hook", "-c", f"echo $0 $V >>{seen}; cat >>{seen}; echo >>{seen}"],
            "env": ["V=one"], "timeout": 10}
    fails = {"path": "/bin/false"}
    pid, _, _ = runtime.create("hooked", ["sleep", "1000"], hooks={"poststop": [fails, hook]})
    runtime("start", "hooked")
    with open(os.path.join(runtime.folder, "bundles/hooked/shim.pid"), encoding="ascii") as f:
        os.kill(int(f.read()), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert not seen.exists()
    runtime("delete", "--force", "hooked")
    runtime("delete", "--force", "hooked")
    said, state = seen.read_text(encoding="ascii").splitlines()
    assert said == "hook one"
    state = json.loads(state)
    assert (state["id"], state["status"], state["pid"]) == ("hooked", "stopped", 0)


@pytest.mark.parametrize("hook, words", [
    (["-c", "echo first; echo no room; exit 3"], "hooks.createRuntime[0] '/bin/sh' failed with code 3: no room"),
    (["-c", "sleep 100"], "hooks.createRuntime[0] '/bin/sh' took too long"),
    (None, "hooks.createRuntime[0]: run '/no/such/hook': No such file"),
])
def test_hooks_that_fail(runtime, hook, words):
    bad = {"path": "/bin/sh" if hook else "/no/such/hook", "args": ["sh", *(hook or [])], "timeout": 1}
    bundle = runtime.bundle("bad", ["true"], hooks={"createRuntime": [bad]})
    r = runtime("create", "--bundle", bundle, "bad", check=False)
    assert r.returncode and words in r.stderr, r.stderr


def test_events_and_update(runtime, tmp_path):
    cgroup = {"destination": "/cg", "type": "cgroup", "source": "cgroup"}
    runtime.create("fed", ["sleep", "1000"], mounts=default_spec([])["mounts"] + [cgroup])
    runtime("start", "fed")
    event = json.loads(runtime("events", "--stats", "fed").stdout)
    assert (event["type"], event["id"]) == ("stats", "fed")
    assert event["data"]["cpu"]["usage"]["total"] > 0 and event["data"]["pids"]["current"] == 1
    assert event["data"]["memory"]["usage"]["usage"] > 0
    resources = tmp_path / "resources.json"
    resources.write_text(json.dumps({"memory": {"limit": 50 << 20}}), encoding="ascii")
    runtime("update", "--resources", resources, "fed")
    runtime("update", "--pids-limit", "77", "--cpu-quota=50000", "fed")
    look = "cd /cg; cat memory.max pids.max cpu.max"
    assert runtime("exec", "fed", "sh", "-c", look).stdout.split() == [
        str(50 << 20), "77", "50000", "100000"]
    r = runtime("update", "--memory", "much", "fed", check=False)
    assert r.returncode and "--memory: 'much' is not a number" in r.stderr
    p = subprocess.Popen([runtime.program, "events", "--interval", "1s", "fed"], env=runtime.env,
                         stdout=subprocess.PIPE, text=True)
    assert json.loads(p.stdout.readline())["type"] == "stats"
    assert json.loads(p.stdout.readline())["type"] == "stats"
    runtime("kill", "fed", "KILL")
    assert p.wait(30) == 0
    runtime("delete", "--force", "fed")


def test_joined(runtime):
    """A container with the network namespace of another one runs in its machine, which ends with the last."""
    pod = netpod.Pod()
    try:
        pod.veth("eth0", ["10.9.0.2/24"], "h0", ["10.9.0.1/24"])
        namespaces = {"linux": {"namespaces": [{"type": "mount"}, {"type": "pid"},
                                               {"type": "network", "path": pod.path}]}}
        one, _, _ = runtime.create("one", ["sleep", "1000"], **namespaces)
        runtime("start", "one")
        two, out, _ = runtime.create("two", ["sh", "-c", "cat /proc/sys/kernel/random/boot_id; sleep 1000"],
                                     **namespaces)
        runtime("start", "two")
        boot = out.readline().decode()
        assert runtime("exec", "one", "cat", "/proc/sys/kernel/random/boot_id").stdout == boot
        assert os.listdir(os.path.join(runtime.run, "sandboxes")) == ["caisson-oci+one"]
        runtime.create("three", ["true"], **namespaces)
        runtime("start", "three")
        wait_until(lambda: runtime.state("three")["status"] == "stopped")
        runtime("delete", "three")
        runtime("delete", "--force", "one")
        os.waitpid(one, 0)
        assert runtime("exec", "two", "cat", "/proc/sys/kernel/random/boot_id").stdout == boot
        runtime("kill", "two", "KILL")
        assert os.waitstatus_to_exitcode(os.waitpid(two, 0)[1]) == 137
        runtime("delete", "two")
        assert not any(x.endswith("_csn") for x in pod.links())
    finally:
        pod.close()


# --- Podman ---

class Podman:
    """In namespaces and directories of its own."""

    def __init__(self, runtime, folder, backend):
        self.runtime, self.folder = runtime, str(folder)
        conf = os.path.join(self.folder, "containers.conf")
        with open(conf, "w", encoding="ascii") as f:
            f.write("[engine]\nruntime = \"caisson-runtime\"\n"
                    "runtime_supports_nocgroup = [\"caisson-runtime\"]\n"
                    "runtime_supports_json = [\"caisson-runtime\"]\n"
                    "[engine.runtimes]\n"
                    f"caisson-runtime = [\"{runtime.program}\"]\n"
                    f"[network]\nnetwork_backend = \"{backend}\"\n")
        self.env = dict(runtime.env, CONTAINERS_CONF=conf)
        ready = os.path.join(self.folder, "ready")
        script = ("mount --make-rprivate / && mkdir -p /run/containers /run/libpod /run/netns "
                  "/var/lib/containers /var/lib/cni && for d in /run/containers /run/libpod "
                  "/run/netns /var/lib/containers /var/lib/cni; do mount -t tmpfs t $d; done && "
                  f"ip link set lo up && touch {ready} && "
                  "exec sleep 100000")
        self.keeper = subprocess.Popen(["unshare", "--net", "--mount", "--", "sh", "-c", script],
                                       stdin=subprocess.DEVNULL)
        wait_until(lambda: os.path.exists(ready))

    def command(self, *args):
        return ["nsenter", "-t", str(self.keeper.pid), "-n", "-m", "--", "podman",
                "--root", f"{self.folder}/root", "--runroot", f"{self.folder}/runroot",
                "--tmpdir", f"{self.folder}/tmp", "--network-config-dir", f"{self.folder}/net",
                "--cgroup-manager", "cgroupfs",
                "--events-backend", "file", *map(str, args)]

    def __call__(self, *args, **kw):
        return subprocess.run(
            self.command(*args), env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, timeout=120, check=False, **kw)

    def close(self):
        self.keeper.kill()
        self.keeper.wait()


@pytest.fixture(params=["cni", "netavark"])
def podman(runtime, image, request):
    if not shutil.which("podman"):
        pytest.skip("podman is not installed")
    folder = tempfile.mkdtemp(prefix="podman-")
    if request.param == "netavark" and not os.path.exists("/usr/lib/podman/netavark"):
        pytest.skip("netavark is not installed")
    p = Podman(runtime, folder, request.param)
    try:
        r = p("pull", image("busybox"))
        if r.returncode:
            pytest.skip(f"podman does not work here: {r.stderr}")
        p.image = r.stdout.split()[-1]
        yield p
        p("rm", "-f", "-a", "-t", "0")
    finally:
        p.close()
        shutil.rmtree(folder, ignore_errors=True)


def test_podman(podman):
    """With Podman's own network, profile of system calls and cgroups."""
    r = podman("run", "--rm", podman.image, "sh", "-c", "uname -r; ip -o -4 addr show eth0; "
               "grep Seccomp: /proc/self/status; echo e >&2; exit 6")
    assert r.returncode == 6, r.stderr
    kernel, address, filtered = r.stdout.splitlines()
    assert kernel != os.uname().release and "10.88." in address and filtered.endswith("2")
    assert "e" in r.stderr

    r = podman("run", "-d", "--name", "stay", "-p", "8090:80", podman.image, "sh", "-c",
               "mkdir /www; echo page >/www/index.html; httpd -p 80 -h /www; "
               "trap 'exit 4' TERM; echo up; while :; do sleep 0.1; done")
    assert r.returncode == 0, r.stderr
    wait_until(lambda: podman("logs", "stay").stdout == "up\n")
    assert "Up" in podman("ps").stdout
    r = podman("exec", "stay", "sh", "-c", "echo inside; exit 3")
    assert (r.returncode, r.stdout) == (3, "inside\n"), r.stderr
    r = subprocess.run(["nsenter", "-t", str(podman.keeper.pid), "-n", "--", "curl", "-s", "-m", "10",
                        "http://127.0.0.1:8090/"], stdout=subprocess.PIPE, text=True, check=True)
    assert r.stdout == "page\n"
    assert podman("stop", "-t", "20", "stay").returncode == 0
    assert podman("inspect", "-f", "{{.State.ExitCode}}", "stay").stdout == "4\n"
    assert podman("rm", "stay").returncode == 0


def test_podman_pod(podman):
    """A pod is one machine: its containers share the loopback."""
    r = podman("pod", "create", "--name", "pod", "--infra-image", podman.image, "--infra-command", "sleep 1000")
    assert r.returncode == 0, r.stderr
    for name, script in (("server", "mkdir /www; echo page >/www/index.html; exec httpd -f -p 80 -h /www"),
                         ("client", "exec sleep 1000")):
        r = podman("run", "-d", "--pod", "pod", "--name", name, podman.image, "sh", "-c", script)
        assert r.returncode == 0, r.stderr
    r = podman("exec", "client", "sh", "-c", "for i in 1 2 3 4 5; do wget -qO- http://127.0.0.1/ && break; sleep 1; "
               "done; cat /proc/sys/kernel/random/boot_id")
    assert r.stdout.startswith("page\n"), (r.stdout, r.stderr)
    boot = r.stdout.splitlines()[1]
    r = podman("exec", "server", "cat", "/proc/sys/kernel/random/boot_id")
    assert r.stdout.strip() == boot, r.stderr
    r = podman("pod", "rm", "-f", "-t", "0", "pod")
    assert r.returncode == 0, r.stderr


@pytest.mark.parametrize("podman", ["netavark"], indirect=True)
def test_podman_while_it_runs(podman):
    """Health checks, pause, statistics, attach; what cannot be is said."""
    r = podman("run", "-d", "--name", "well", "--health-cmd", "test -e /healthy", "--health-interval", "disable",
               "-m", "96m", podman.image, "sh", "-c", "trap 'exit 0' TERM; while :; do echo tick; sleep 0.2; done")
    assert r.returncode == 0, r.stderr
    assert podman("healthcheck", "run", "well").returncode == 1
    assert podman("exec", "well", "touch", "/healthy").returncode == 0
    assert podman("healthcheck", "run", "well").returncode == 0
    assert podman("pause", "well").returncode == 0
    assert podman("inspect", "-f", "{{.State.Status}}", "well").stdout == "paused\n"
    assert podman("unpause", "well").returncode == 0
    # Of the cgroup on the host, with the stand-in in it.
    assert podman("stats", "--no-stream", "--format", "{{.Name}}", "well").stdout == "well\n"
    r = podman("container", "checkpoint", "well")
    assert r.returncode != 0 and "checkpoint" in r.stderr.lower(), r.stderr
    assert podman("inspect", "-f", "{{.State.Status}}", "well").stdout == "running\n"
    attached = subprocess.Popen(podman.command("attach", "--no-stdin", "well"), env=podman.env,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    assert attached.stdout.readline() == "tick\n"
    assert podman("stop", "-t", "20", "well").returncode == 0
    attached.communicate(timeout=60)
