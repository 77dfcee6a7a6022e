"""deploy/install on a node that is a directory; containerd understands what it leaves."""

import os
import shutil
import subprocess

import pytest

from conftest import TOP


@pytest.fixture
def node(stage, tmp_path):
    release = tmp_path / "caisson"
    shutil.copytree(stage, release, symlinks=True)
    shutil.copytree(TOP / "deploy", release / "deploy")
    host = tmp_path / "host"
    (host / "etc").mkdir(parents=True)
    restarts = tmp_path / "restarts"

    def install(*args, check=True):
        env = dict(os.environ, FROM=str(release), HOST=str(host),
                   RESTART=f"sh -c echo\\ x>>{restarts}")
        script = tmp_path / "restart"
        script.write_text(f"#!/bin/sh\necho x >>{restarts}\n")
        script.chmod(0o755)
        env["RESTART"] = str(script)
        return subprocess.run([release / "deploy/install", *args], env=env, check=check,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    install.host, install.release = host, release
    install.restarts = lambda: restarts.read_text().count("x") if restarts.exists() else 0
    return install


def test_install_and_remove(node):
    node()
    host = node.host
    assert os.access(host / "opt/caisson/bin/caisson-vmm", os.X_OK)
    assert (host / "opt/caisson/lib/caisson/vmlinux").exists()
    link = host / "usr/local/bin/containerd-shim-caisson-v2"
    assert os.readlink(link) == "/opt/caisson/bin/containerd-shim-caisson-v2"
    assert "conf.d/*.toml" in (host / "etc/containerd/config.toml").read_text()
    assert node.restarts() == 1
    node()
    assert node.restarts() == 1
    (node.release / "bin/caisson-vmm").write_text("newer")
    node()
    assert node.restarts() == 2 and (host / "opt/caisson/bin/caisson-vmm").read_text() == "newer"
    node("--remove")
    assert not (host / "opt/caisson").exists() and not link.is_symlink()
    assert not (host / "etc/containerd/conf.d/caisson.toml").exists()
    node("--remove")


def test_a_configuration_of_ones_own(node):
    config = node.host / "etc/containerd/config.toml"
    config.parent.mkdir()
    config.write_text("version = 2\n")
    r = node(check=False)
    assert r.returncode and "imports" in r.stderr
    config.write_text('version = 3\nimports = ["/etc/containerd/conf.d/*.toml"]\n')
    node()
    assert 'sandboxer = "shim"' in (node.host / "etc/containerd/conf.d/caisson.toml").read_text()


@pytest.mark.skipif(not shutil.which("containerd"), reason="containerd is not installed")
def test_containerd_reads_it(tmp_path):
    config = tmp_path / "config.toml"
    config.write_text(f'version = 2\nimports = ["{TOP}/deploy/containerd/caisson.toml"]\n')
    out = subprocess.run(["containerd", "-c", config, "config", "dump"], check=True,
                         stdout=subprocess.PIPE, text=True).stdout
    assert 'runtime_type = "io.containerd.caisson.v2"' in out


def manifests():
    yaml = pytest.importorskip("yaml", reason="python3-yaml is missing")
    folder = TOP / "deploy/kubernetes"
    return {p.name: yaml.safe_load(p.read_text(encoding="utf-8")) for p in sorted(folder.glob("*.yaml"))}


def test_manifests_fit_together():
    """What kustomize takes is there; class, containerd's configuration and the installer mean the same."""
    found = manifests()
    assert set(found["kustomization.yaml"]["resources"]) == set(found) - {"kustomization.yaml"}
    runtime, daemon = found["runtimeclass.yaml"], found["daemonset.yaml"]
    assert (runtime["kind"], daemon["kind"]) == ("RuntimeClass", "DaemonSet")
    for name in ("caisson.toml", "caisson-v3.toml"):
        text = (TOP / "deploy/containerd" / name).read_text(encoding="utf-8")
        assert f".runtimes.{runtime['handler']}]" in text
    pod = daemon["spec"]["template"]
    assert pod["spec"]["nodeSelector"] == runtime["scheduling"]["nodeSelector"]
    assert daemon["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    mounts = {m["name"]: m["mountPath"] for m in pod["spec"]["containers"][0]["volumeMounts"]}
    assert mounts == {"host": "/host"} and pod["spec"]["hostPID"]
    # The installer's image starts what the test above has run.
    assert "/caisson/deploy/install" in (TOP / "deploy/Dockerfile").read_text(encoding="utf-8")
    assert runtime["overhead"]["podFixed"]["memory"].endswith("Mi")
