"""Container root file systems and OCI specs for the tests of the agent."""

import os
import pathlib
import shutil
import subprocess

import pytest

from agentclient import METHODS

APPLETS = ["sh", "cat", "echo", "true", "false", "sleep", "id", "env", "head", "wc", "ls", "stty",
           "kill", "seq", "mount", "hostname", "dd", "yes", "ps", "md5sum", "touch", "ip", "tail",
           "stat", "printf", "nproc", "trap", "usleep", "df", "test"]

DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9),
           "tty": (5, 0)}


def make_rootfs(where):
    """A directory with busybox and the libraries it needs."""
    program = shutil.which("busybox")
    if not program:
        pytest.skip("busybox is not installed")
    where = pathlib.Path(where)
    for d in ["bin", "dev", "etc", "proc", "sys", "tmp", "root", "run"]:
        (where / d).mkdir(parents=True, exist_ok=True)
    shutil.copy(program, where / "bin/busybox")
    ldd = subprocess.run(["ldd", program], stdout=subprocess.PIPE, text=True,
                         stderr=subprocess.DEVNULL, check=False).stdout
    for word in ldd.split():
        if word.startswith("/") and os.path.exists(word):
            target = where / word.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(word, target)
    for name in APPLETS:
        link = where / "bin" / name
        if not link.exists():
            link.symlink_to("busybox")
    (where / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n")
    (where / "etc/group").write_text("root:x:0:\nuser:x:1000:\n")
    return where


def process(args, terminal=False, env=(), cwd="/", uid=0, gid=0):
    p = METHODS["ExecProcess"][1]().process
    p.Terminal = terminal
    p.User.UID, p.User.GID = uid, gid
    p.Args.extend(args)
    p.Env.extend(["PATH=/bin", *env])
    p.Cwd = cwd
    return p


def spec(root, args, hostname="", **kw):
    s = METHODS["CreateContainer"][1]().OCI
    s.Version = "1.1.0"
    s.Process.CopyFrom(process(args, **kw))
    s.Root.Path = str(root)
    s.Hostname = hostname
    for destination, kind, options in [
            ("/proc", "proc", []), ("/dev", "tmpfs", ["nosuid", "mode=755", "size=65536k"]),
            ("/dev/pts", "devpts", ["newinstance", "ptmxmode=0666", "mode=0620"]),
            ("/sys", "sysfs", ["nosuid", "noexec", "nodev", "ro"])]:
        s.Mounts.add(destination=destination, type=kind, source=kind, options=options)
    for kind in ["pid", "ipc", "uts", "mount", "network", "cgroup"]:
        s.Linux.Namespaces.add(Type=kind)
    s.Linux.Resources.Devices.add(Allow=True, Type="a", Major=-1, Minor=-1, Access="rwm")
    return s
