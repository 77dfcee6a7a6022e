"""A Docker daemon with Caisson as one of its runtimes, in network, mount and pid namespaces of its own."""

import os
import pathlib
import signal
import subprocess

import conftest
from ctrd import descendants, wait_until
from patience import PATIENCE

SHIM = "io.containerd.caisson.v2"


class Dockerd:
    """
    Files are in @dir, which must have a short path. @prefix: where Docker is unpacked; "/" for the
    installed one. @name: how the runtime is called.
    """

    def __init__(self, stage, directory, prefix="/", name=SHIM, flags=()):
        self.dir, self.runtime = pathlib.Path(directory), name
        self.client = os.path.join(prefix, "usr/bin/docker")
        self.daemon = os.path.join(prefix, "usr/sbin/dockerd")
        self.log_path = self.dir / "log"
        self.run_dir = self.dir / "run"
        self.run_dir.mkdir()
        settings = self.dir / "caisson.yaml"
        settings.write_text("vm:\n  boot_timeout: 120s\n", encoding="ascii")
        path = [f"{stage}/bin", f"{prefix}/usr/bin", f"{prefix}/usr/sbin"]
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("CAISSON_")}
        self.env.update(CAISSON_RUN=str(self.run_dir), CAISSON_ROOT=str(self.dir / "root"),
                        CAISSON_CONFIG=str(settings),
                        PATH=":".join(path + ["/usr/sbin:/usr/bin:/sbin:/bin"]))
        if "CAISSON_LIBDIR" in os.environ:
            self.env["CAISSON_LIBDIR"] = os.environ["CAISSON_LIBDIR"]
        self.flags = [f"--data-root={self.dir}/data", f"--exec-root={self.dir}/exec",
                      f"--pidfile={self.dir}/pid", f"--host=unix://{self.dir}/d.sock", *flags]
        self.orphans = set(conftest.orphan_vms())
        self.keeper = None

    def start(self):
        """The keeper is pid 1 of the daemon's namespace: whatever is in it ends with it."""
        script = ("mount --make-rprivate / && mount --make-rshared / && "
                  "mkdir -p /run/docker /run/containerd && mount -t tmpfs t /run/docker && "
                  f"mount -t tmpfs t /run/containerd && mkdir -p {self.dir}/data && "
                  f"mount -t tmpfs t {self.dir}/data && ip link set lo up && "
                  f'"$@" >{self.log_path} 2>&1 & sleep 100000')
        self.keeper = subprocess.Popen(
            ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--",
             "sh", "-c", script, "sh", self.daemon, *self.flags],
            stdin=subprocess.DEVNULL, env=self.env)
        wait_until(lambda: descendants(self.keeper.pid))
        self.init = min(descendants(self.keeper.pid))
        if os.readlink(f"/proc/{self.init}/ns/net") == os.readlink("/proc/self/ns/net"):
            raise RuntimeError("Docker would not run in namespaces of its own")
        wait_until(lambda: self.ask("version").returncode == 0, 60)
        return self

    def inside(self, *args):
        return ["nsenter", "-t", str(self.init), "-n", "-m", "-p", "--", *map(str, args)]

    def ask(self, *args, **kw):
        kw.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run(self.inside(self.client, "-H", f"unix://{self.dir}/d.sock", *args),
                              env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True, timeout=120 * PATIENCE, check=False, **kw)

    def __call__(self, *args, **kw):
        r = self.ask(*args, **kw)
        assert r.returncode == 0, f"docker {args}: {r.returncode}\n{r.stdout}\n{r.stderr}\n{self.log()}"
        return r.stdout

    def run(self, *args, **kw):
        return self.ask("run", "--runtime", self.runtime, *args, **kw)

    def log(self):
        return self.log_path.read_text(encoding="utf-8", errors="replace")[-4000:]

    def load(self, layout, name):
        archive = self.dir / "image.tar"
        subprocess.run(["skopeo", "copy", "-q", f"oci:{layout}:latest",
                        f"docker-archive:{archive}:{name}"], check=True)
        self("load", "-i", archive)
        archive.unlink()

    def leaks(self):
        found = [f"process {p} (QEMU)" for p in set(conftest.orphan_vms()) - self.orphans]
        for d in ("sandboxes", "oci", "s"):
            if (self.run_dir / d).is_dir():
                found += [f"file {p}" for p in conftest.files_in(self.run_dir / d)]
        return found

    def close(self):
        if self.keeper:
            self.keeper.send_signal(signal.SIGKILL)
            self.keeper.wait()
            self.keeper = None
