"""Tests of the image library through its test program: each with a store of its own.

The whole run moves into namespaces of its own (network with loopback only, mounts) first.
IMAGE_TOOL names the program that meson built.
"""

import os
import pathlib
import subprocess
import sys

import pytest

TOP = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(TOP / "tests/images"))
sys.path.insert(0, str(pathlib.Path(__file__).parent))


def links():
    with open("/proc/net/dev", encoding="ascii") as src:
        return [line.split(":")[0].strip() for line in src.readlines()[2:]]


def pytest_configure(config):
    if os.environ.get("IMAGE_TEST_NAMESPACES") != "1":
        capture = config.pluginmanager.getplugin("capturemanager")
        if capture:
            capture.stop_global_capturing()
        os.environ["IMAGE_TEST_NAMESPACES"] = "1"
        os.execvp("unshare", ["unshare", "--net", "--mount", "--", "sh", "-c",
                              'ip link set lo up && exec "$@"', "sh", sys.executable, "-m",
                              "pytest", *config.invocation_params.args])
    if links() != ["lo"]:
        pytest.exit("the tests must run in a network namespace of their own", returncode=3)


class Store:
    """image_tool with its own CAISSON_ROOT."""

    def __init__(self, root, tool):
        self.root = pathlib.Path(root)
        self.images = self.root / "images"
        self.tool = tool
        self.env = {"PATH": os.environ["PATH"], "CAISSON_ROOT": str(root), "HOME": str(root),
                    "CAISSON_REGISTRIES": str(self.root / "registries.json"),
                    "DOCKER_CONFIG": str(self.root), "CAISSON_REGISTRY_TIMEOUT": "3",
                    "ASAN_OPTIONS": "detect_leaks=1"}

    def start(self, *args, **env):
        return subprocess.Popen([self.tool, *map(str, args)], env={**self.env, **env},
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True, errors="surrogateescape")

    def run(self, *args, **env):
        proc = self.start(*args, **env)
        out, err = proc.communicate(timeout=120)
        assert proc.returncode in (0, 1), f"image_tool died ({proc.returncode}):\n{err}"
        return proc.returncode, out, err

    def ok(self, *args, **env):
        code, out, err = self.run(*args, **env)
        assert code == 0, err
        return out

    def fails(self, *args, **env):
        """The one error line of a run that must fail, leaving nothing in tmp/ behind."""
        code, out, err = self.run(*args, **env)
        assert code == 1, f"no error, but: {out}"
        assert len(err.strip().splitlines()) == 1, err
        assert not self.leftovers(), self.leftovers()
        return err.strip()

    def prepare(self, ref, **env):
        return dict(line.split(" ", 1) if " " in line else (line, "")
                    for line in self.ok("prepare", ref, **env).splitlines())

    def extract(self, ref, dest):
        """The tree of a prepared image, by fsck.erofs."""
        rootfs = self.prepare(ref)["rootfs"]
        subprocess.run(["fsck.erofs", f"--extract={dest}", "--preserve", rootfs], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return pathlib.Path(dest)

    def leftovers(self):
        tmp = self.images / "tmp"
        return sorted(p.name for p in tmp.iterdir()) if tmp.exists() else []

    def blobs(self):
        return {p.name for p in (self.images / "blobs/sha256").iterdir()}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "root", os.environ["IMAGE_TOOL"])
