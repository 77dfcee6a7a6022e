"""containerd as it is packaged, with our shim, and what drives it: ctr, and its CRI plugin.

containerd runs in namespaces of its own (network, mounts) and keeps all of its files in one
directory of the test, so nothing of it can reach the machine's. `Containerd.assert_clean` checks
that nothing is left of it or of our pods.
"""

import contextlib
import ctypes
import importlib.util
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import conftest
from patience import PATIENCE

HERE = pathlib.Path(__file__).resolve().parent
RUNTIME = "io.containerd.caisson.v2"
CLONE_NEWNET = 0x40000000
CNI_PLUGINS = "/usr/lib/cni"
BRIDGE = "ctrd0"

CONFIG = """
version = 2
root = "{dir}/root"
state = "{dir}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.tracing",
  "io.containerd.snapshotter.v1.aufs"{disabled}]
[grpc]
  address = "{dir}/c.sock"
[ttrpc]
  address = "{dir}/c.sock.ttrpc"
[debug]
  level = "debug"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/test/pause:latest"
  netns_mounts_under_state_dir = true
  disable_apparmor = true
  tolerate_missing_hugetlb_controller = true
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  stats_collect_period = 1
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni_bin}"
    conf_dir = "{dir}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "caisson"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.caisson]
      runtime_type = "io.containerd.caisson.v2"
      privileged_without_host_devices = true
      pod_annotations = ["io.caisson.*", "io.katacontainers.*"]
      container_annotations = ["io.caisson.*"]
"""

# containerd 2 has the Sandbox service: pods without a pause container.
SANDBOX_HANDLER = """
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.caisson-sandbox]
      runtime_type = "io.containerd.caisson.v2"
      sandboxer = "shim"
      privileged_without_host_devices = true
      pod_annotations = ["io.caisson.*", "io.katacontainers.*"]
"""

# Settings of ours in containerd's own configuration, of which its CRI plugin knows since 1.7.
OPTIONS_HANDLER = """
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.caisson-options]
      runtime_type = "io.containerd.caisson.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.caisson-options.options.vm]
        vcpus = 2
        boot_timeout = "120s"
"""

# Standard streams over the shim's own socket in place of fifos.
STREAMING_HANDLER = """
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.caisson-streaming]
      runtime_type = "io.containerd.caisson.v2"
      sandboxer = "shim"
      io_type = "streaming"
      privileged_without_host_devices = true
"""

CNI_BRIDGE = {
    "cniVersion": "0.4.0", "name": "pods", "plugins": [
        {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "ipMasq": False,
         "ipam": {"type": "host-local", "dataDir": "{dir}/ipam",
                  "ranges": [[{"subnet": "10.88.7.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
        {"type": "portmap", "capabilities": {"portMappings": True}}]}


def wait_until(what, seconds=30, step=0.05):
    end = time.monotonic() + seconds * PATIENCE
    while True:
        value = what()
        if value:
            return value
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not become true in {seconds} s")
        time.sleep(step)


def descendants(pid):
    """Pids of the children of @pid, and theirs."""
    table = conftest.parents()
    found, todo = [], [pid]
    while todo:
        up = todo.pop()
        below = [p for p, (parent, _) in table.items() if parent == up]
        found += below
        todo += below
    return found


class Containerd:
    """One containerd. Files are in @dir, which must have a short path: sockets are in it."""

    def __init__(self, stage, directory, cni=None, config="", env=None, program="containerd",
                 disabled=(), settings=""):
        """@program: containerd; its ctr is beside it. @settings: more of the shim's configuration."""
        self.stage, self.dir, self.program = stage, pathlib.Path(directory), str(program)
        self.ctr_program = os.path.join(os.path.dirname(self.program), "ctr")
        self.run_dir, self.root = self.dir / "run", self.dir / "caisson"
        self.socket = self.dir / "c.sock"
        self.log_path = self.dir / "containerd.log"
        self.proc = self.keeper = None
        for d in ("run", "caisson", "cni", "state", "root", "logs", "fifo"):
            (self.dir / d).mkdir(exist_ok=True)
        config_file = self.dir / "caisson.yaml"
        config_file.write_text("vm:\n  boot_timeout: 120s\n" + settings, encoding="ascii")
        self.config = self.dir / "config.toml"
        off = "".join(f', "{p}"' for p in disabled)
        self.config.write_text(CONFIG.format(dir=self.dir, cni_bin=CNI_PLUGINS, disabled=off)
                               + config, encoding="ascii")
        network = json.dumps(cni or CNI_BRIDGE).replace("{dir}", str(self.dir))
        (self.dir / "cni/10-test.conflist").write_text(network, encoding="ascii")
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("CAISSON_")}
        self.env.update(CAISSON_RUN=str(self.run_dir), CAISSON_ROOT=str(self.root),
                        CAISSON_CONFIG=str(config_file),
                        PATH=f"{stage}/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
                        **(env or {}))
        if "CAISSON_LIBDIR" in os.environ:
            self.env["CAISSON_LIBDIR"] = os.environ["CAISSON_LIBDIR"]
        self.cgroups = set(caisson_cgroups())
        self.orphans = set(conftest.orphan_vms())

    # --- the daemon ---

    def start_namespaces(self):
        """A process that holds the namespaces, so that containerd can be restarted in them."""
        ready = self.dir / "ns.ready"
        script = ("mount --make-rprivate / && mount --make-rshared / && "
                  "mkdir -p /run/containerd && mount -t tmpfs ctrd /run/containerd && "
                  "ip link set lo up && sysctl -qw net.ipv4.ip_forward=1 && "
                  f"touch {ready} && exec sleep 100000")
        self.keeper = subprocess.Popen(["unshare", "--net", "--mount", "--", "sh", "-c", script],
                                       stdin=subprocess.DEVNULL)
        wait_until(ready.exists)
        for kind in ("net", "mnt"):
            if os.readlink(f"/proc/{self.keeper.pid}/ns/{kind}") == os.readlink(
                    f"/proc/self/ns/{kind}"):
                raise RuntimeError("containerd would not run in namespaces of its own")

    def inside(self, *args):
        return ["nsenter", "-t", str(self.keeper.pid), "-n", "-m", "--", *map(str, args)]

    def start(self):
        if not self.keeper:
            self.start_namespaces()
        with open(self.log_path, "ab") as log:
            self.proc = subprocess.Popen(self.inside(self.program, "-c", self.config),
                                         env=self.env, stdin=subprocess.DEVNULL, stdout=log,
                                         stderr=log, start_new_session=True)
        wait_until(lambda: self.socket.exists() and self.try_ctr("version").returncode == 0, 60)
        return self

    def kill(self, signum=signal.SIGKILL):
        """containerd alone: its shims live on."""
        self.proc.send_signal(signum)
        self.proc.wait(30)
        self.proc = None

    def close(self):
        if self.proc:
            self.kill(signal.SIGTERM)
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if self.keeper:
            self.keeper.kill()
            self.keeper.wait()
            self.keeper = None

    def log(self):
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def task_file(self, ns, cid, name):
        return self.dir / "state/io.containerd.runtime.v2.task" / ns / cid / name

    # --- ctr ---

    def try_ctr(self, *args, ns="default", input=None, timeout=90):
        return subprocess.run(self.inside(self.ctr_program, "-a", self.socket, "-n", ns, *args),
                              env=self.env, input=input, stdin=subprocess.DEVNULL if input is None else None,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              timeout=timeout * PATIENCE, check=False)

    def ctr(self, *args, **kw):
        r = self.try_ctr(*args, **kw)
        assert r.returncode == 0, f"ctr {args}: {r.returncode}\n{r.stdout}\n{r.stderr}"
        return r.stdout

    def ctr_popen(self, *args, ns="default", **kw):
        kw.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.Popen(self.inside(self.ctr_program, "-a", self.socket, "-n", ns, *args),
                                env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                text=True, **kw)

    def run(self, name, *command, image="docker.io/test/busybox:latest", options=(), **kw):
        return self.try_ctr("run", "--runtime", RUNTIME, "--fifo-dir", self.dir / "fifo", *options,
                            image, name, *command, **kw)

    def import_layout(self, layout, name, ns="default"):
        """An OCI layout, as the image NAME:latest."""
        archive = self.dir / "import.tar"
        subprocess.run(["tar", "-C", f"{layout}/", "-cf", archive, "."], check=True)
        self.ctr("images", "import", "--base-name", name, archive, ns=ns)
        archive.unlink()

    # --- what runs, what is left ---

    def shims(self):
        return [int(p) for p in self.processes_named("caisson-shim")]

    def processes_named(self, name):
        return [p for p in self.processes() if comm(p) == name]

    def processes(self):
        """Pids of shims and of what they started."""
        needle = f"CAISSON_RUN={self.run_dir}".encode()
        found = set()
        own = {os.getpid(), self.keeper.pid if self.keeper else 0,
               self.proc.pid if self.proc else 0}
        for p in filter(str.isdigit, os.listdir("/proc")):
            try:
                env = pathlib.Path(f"/proc/{p}/environ").read_bytes()
            except OSError:
                continue
            if needle in env and int(p) not in own and state_of(p) != "Z":
                found.add(int(p))
        # caisson-vmm and QEMU have an environment of their own.
        for p in list(found):
            found.update(q for q in descendants(p))
        return sorted(found)

    def leaks(self):
        found = [f"process {p} {comm(p)}" for p in self.processes()]
        found += [f"process {p} (QEMU)" for p in sorted(set(conftest.orphan_vms()) - self.orphans)]
        found += [f"cgroup {g}" for g in sorted(set(caisson_cgroups()) - self.cgroups)
                  if not conftest.cgroup_busy(g)]
        for d in (self.run_dir, self.root / "scratch"):
            found += [f"file {p}" for p in conftest.files_in(d)]
        state = self.dir / "state/io.containerd.runtime.v2.task"
        found += [f"bundle {p}" for p in state.glob("*/*")]
        if self.keeper:
            mounts = pathlib.Path(f"/proc/{self.keeper.pid}/mounts").read_text(encoding="utf-8")
            found += [f"mount {line.split()[1]}" for line in mounts.splitlines()
                      if str(self.dir) in line]
            for sock in self.enter(lambda: os.listdir("/proc/self/net") and unix_sockets()):
                if "/run/containerd/s/" in sock:
                    found.append(f"socket {sock}")
            links = self.links()
            found += [f"link {n}" for n in links if n not in ("lo", BRIDGE)]
        return found

    def assert_clean(self, seconds=15):
        conftest.wait_for_none(self.leaks, seconds)

    def links(self):
        text = subprocess.run(self.inside("ip", "-o", "link"), stdout=subprocess.PIPE, text=True,
                              check=True).stdout
        return [line.split(":")[1].strip().partition("@")[0] for line in text.splitlines()]

    def enter(self, function):
        """Runs @function in a thread that is in containerd's network namespace."""
        result = {}

        def body():
            libc = ctypes.CDLL(None, use_errno=True)
            fd = os.open(f"/proc/{self.keeper.pid}/ns/net", os.O_RDONLY)
            try:
                if libc.setns(fd, CLONE_NEWNET) < 0:
                    raise OSError(ctypes.get_errno(), "setns")
                result["value"] = function()
            except BaseException as e:  # pylint: disable=broad-except
                result["error"] = e
            finally:
                os.close(fd)

        t = threading.Thread(target=body)
        t.start()
        t.join()
        if "error" in result:
            raise result["error"]
        return result["value"]


def unix_sockets():
    with open("/proc/thread-self/net/unix", encoding="utf-8", errors="replace") as f:
        return [line.split()[-1] for line in f.readlines()[1:]]


def comm(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def state_of(pid):
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return text.rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def caisson_cgroups():
    """Of VMs, wherever in the tree."""
    base = pathlib.Path("/sys/fs/cgroup")
    return [str(p) for pattern in ("caisson-*", "*/caisson-*") for p in base.glob(pattern)]


# --- the events of containerd ---

class Events:
    """`ctr events` in the background."""

    def __init__(self, ctrd, ns="default"):
        self.proc = ctrd.ctr_popen("events", ns=ns)
        self.seen = []
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def read(self):
        for line in self.proc.stdout:
            # DATE TIME +0000 UTC NAMESPACE TOPIC JSON
            parts = line.split(" ", 6)
            if len(parts) == 7 and parts[5].startswith("/"):
                self.seen.append((parts[5], json.loads(parts[6])))

    def of(self, cid):
        """Topics of one container, in the order of their arrival; of execs with their ids."""
        out = []
        for topic, body in list(self.seen):
            if topic.startswith("/tasks/") and body.get("container_id") == cid:
                other = body.get("exec_id") or body.get("id") or ""
                out.append(topic[7:] + (f":{other}" if other not in ("", cid) else ""))
        return out

    def wait(self, cid, topic, seconds=20):
        wait_until(lambda: topic in self.of(cid), seconds)

    def close(self):
        self.proc.terminate()
        self.proc.wait(10)
        self.thread.join(10)


# --- the CRI ---

def load_cri(directory):
    """The message classes, compiled from cri.proto."""
    out = pathlib.Path(directory)
    subprocess.run(["protoc", f"-I{HERE}", f"--python_out={out}", "cri.proto"], check=True)
    spec = importlib.util.spec_from_file_location("cri_pb2", out / "cri_pb2.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["cri_pb2"] = module
    spec.loader.exec_module(module)
    return module


class Cri:
    """The runtime service. Methods are called by name with fields: cri.call("StopContainer", ...)."""

    METHODS = {
        "Status": ("Empty", "RuntimeStatus"),
        "RunPodSandbox": ("RunPod", "PodId"),
        "StopPodSandbox": ("PodId", "Empty"),
        "RemovePodSandbox": ("PodId", "Empty"),
        "PodSandboxStatus": ("PodId", "PodStatusAnswer"),
        "ListPodSandbox": ("Empty", "PodList"),
        "CreateContainer": ("Create", "Id"),
        "StartContainer": ("Id", "Empty"),
        "StopContainer": ("Stop", "Empty"),
        "RemoveContainer": ("Id", "Empty"),
        "ContainerStatus": ("Id", "StatusAnswer"),
        "ListContainers": ("Empty", "List"),
        "UpdateContainerResources": ("Update", "Empty"),
        "ReopenContainerLog": ("Id", "Empty"),
        "ExecSync": ("ExecSync", "ExecSyncAnswer"),
        "Exec": ("Exec", "Url"),
        "Attach": ("Attach", "Url"),
        "PortForward": ("PortForward", "Url"),
        "ContainerStats": ("Id", "StatsAnswer"),
        "ListContainerStats": ("StatsFilterRequest", "StatsList"),
        "PodSandboxStats": ("PodId", "PodStatsAnswer"),
    }

    def __init__(self, ctrd):
        self.ctrd = ctrd
        self.pb = load_cri(ctrd.dir)
        self.calls = {}
        self.channel = None
        self.connect()

    def connect(self):
        """Also after containerd has been restarted."""
        import grpc  # only these tests need it
        if self.channel:
            self.channel.close()
        self.channel = grpc.insecure_channel(f"unix://{self.ctrd.socket}")
        for name, (question, answer) in self.METHODS.items():
            self.calls[name] = (getattr(self.pb, question), self.channel.unary_unary(
                f"/runtime.v1.RuntimeService/{name}",
                request_serializer=lambda m: m.SerializeToString(),
                response_deserializer=getattr(self.pb, answer).FromString))
        wait_until(self.serves)

    def serves(self):
        """containerd answers before it can: the CRI's part comes up later."""
        try:
            self.call("ListPodSandbox")
        except Exception as e:  # pylint: disable=broad-except
            if "not initialized" not in str(e):
                raise
            return False
        return True

    def call(self, method, **fields):
        question, function = self.calls[method]
        return function(question(**fields), timeout=120 * PATIENCE, wait_for_ready=True)

    def pod(self, name, **kw):
        return Pod(self, name, **kw)

    def remove_all(self):
        for p in self.call("ListPodSandbox").items:
            self.call("StopPodSandbox", pod_sandbox_id=p.id)
            self.call("RemovePodSandbox", pod_sandbox_id=p.id)

    def close(self):
        self.channel.close()


class Pod:
    """A running pod."""

    def __init__(self, cri, name, annotations=None, linux=None, handler="caisson", **config):
        self.cri, self.name = cri, name
        linux = dict(linux or {})
        # The kubelet's own choice: network and ipc are the pod's, pids each container's.
        linux.setdefault("security_context", dict(namespace_options=dict(pid=1)))
        self.logs = cri.ctrd.dir / "logs" / name
        self.logs.mkdir(exist_ok=True)
        self.config = dict(metadata=dict(name=name, uid=f"uid-{name}", namespace="tests"),
                           log_directory=str(self.logs), annotations=annotations or {},
                           linux=linux, **config)
        self.config.setdefault("hostname", name)
        self.id = cri.call("RunPodSandbox", config=self.config,
                           runtime_handler=handler).pod_sandbox_id

    def create(self, name, *command, image="docker.io/test/busybox:latest", security=None,
               resources=None, attempt=0, **config):
        security = dict(security or {})
        security.setdefault("namespace_options", dict(
            self.config["linux"]["security_context"].get("namespace_options", {})))
        cfg = dict(metadata=dict(name=name, attempt=attempt), image=dict(image=image),
                   command=list(command), log_path=f"{name}-{attempt}.log",
                   linux=dict(security_context=security, resources=resources or {}), **config)
        cid = self.cri.call("CreateContainer", pod_sandbox_id=self.id, config=cfg,
                            sandbox_config=self.config).container_id
        return Container(self, cid, self.logs / cfg["log_path"])

    def run(self, name, *command, **kw):
        c = self.create(name, *command, **kw)
        c.start()
        return c

    def status(self):
        return self.cri.call("PodSandboxStatus", pod_sandbox_id=self.id).status

    def ready(self):
        return self.status().state == 0

    def stats(self):
        return self.cri.call("PodSandboxStats", pod_sandbox_id=self.id).stats

    def stop(self):
        self.cri.call("StopPodSandbox", pod_sandbox_id=self.id)

    def remove(self):
        self.stop()
        self.cri.call("RemovePodSandbox", pod_sandbox_id=self.id)

    def shim_pid(self):
        found = list((self.cri.ctrd.dir / "state").glob(f"*/k8s.io/{self.id}/shim.pid"))
        return int(found[0].read_text("ascii"))


CREATED, RUNNING, EXITED = 0, 1, 2


class Container:
    """A container of a pod."""

    def __init__(self, pod, cid, log):
        self.pod, self.cri, self.id, self.log_path = pod, pod.cri, cid, log

    def start(self):
        self.cri.call("StartContainer", container_id=self.id)

    def status(self):
        return self.cri.call("ContainerStatus", container_id=self.id).status

    def wait(self, seconds=60):
        """Until it has exited; gives the exit code."""
        wait_until(lambda: self.status().state == EXITED, seconds)
        return self.status().exit_code

    def stop(self, timeout=10):
        self.cri.call("StopContainer", container_id=self.id, timeout=timeout)

    def remove(self):
        self.cri.call("RemoveContainer", container_id=self.id)

    def exec(self, *command, timeout=60):
        a = self.cri.call("ExecSync", container_id=self.id, cmd=command, timeout=timeout)
        return a.exit_code, a.stdout.decode(), a.stderr.decode()

    def sh(self, script):
        """Output of a shell script that must succeed."""
        code, out, err = self.exec("sh", "-c", script)
        assert code == 0, (code, out, err)
        return out

    def stats(self):
        return self.cri.call("ContainerStats", container_id=self.id).stats

    def update(self, **resources):
        self.cri.call("UpdateContainerResources", container_id=self.id, linux=resources)

    def log(self, stream=None):
        """What it wrote, without the time stamps: the kubelet's log format."""
        out = []
        try:
            text = self.log_path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""
        for line in text.splitlines():
            _, which, tag, rest = line.split(" ", 3)
            if stream in (None, which):
                out.append(rest + ("\n" if tag == "F" else ""))
        return "".join(out)

    def wait_log(self, text, seconds=30):
        wait_until(lambda: text in self.log(), seconds)


@contextlib.contextmanager
def cri_daemon(stage, prefix, names=("busybox", "pause"), **options):
    """A containerd that has these images of ours for the CRI."""
    directory = tempfile.mkdtemp(prefix=prefix)
    d = Containerd(stage, directory, **options)
    try:
        d.start()
        for name in names:
            d.import_layout(conftest.build_image(name), f"docker.io/test/{name}", ns="k8s.io")
        wait_until(lambda: d.ctr("images", "ls", ns="k8s.io").count("cri-containerd.image") >= len(names))
        yield d
    finally:
        d.close()
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def cri_client(daemon, seconds=15):
    """Afterwards nothing of its pods is left, after so many seconds at the most."""
    client = Cri(daemon)
    yield client
    client.remove_all()
    client.close()
    daemon.assert_clean(seconds)


def missing():
    """Why these tests cannot run, or None."""
    for program in ("containerd", "ctr", "protoc", "nsenter"):
        if not shutil.which(program):
            return f"{program} is not installed"
    if importlib.util.find_spec("grpc") is None:
        return "python3-grpcio is not installed"
    return None
