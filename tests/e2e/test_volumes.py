"""Shared directories: our virtio-fs device with a real guest kernel at the other end."""

import os
import pathlib
import tempfile
import time

import pytest

from devices import Machine


@pytest.fixture(scope="module")
def where():
    base = "/var/tmp" if os.path.isdir("/var/tmp") else None
    with tempfile.TemporaryDirectory(prefix="caisson-fs-", dir=base) as d:
        for name in ["rw", "ro"]:
            os.mkdir(f"{d}/{name}")
        pathlib.Path(d, "outside").write_text("secret\n")
        pathlib.Path(d, "ro/file").write_text("read only\n")
        pathlib.Path(d, "rw/from-host").write_text("from host\n")
        os.symlink("../outside", f"{d}/rw/out")
        yield pathlib.Path(d)


@pytest.fixture(scope="module")
def vm(where):
    with Machine([("fs", where / "rw"), ("fs", where / "ro", "ro")], guest="fs-guest.c") as m:
        assert m("mount share1 /rw") == "ok"
        assert m("mount share2 /ro") == "ok"
        yield m


@pytest.mark.parametrize("name", [
    "basic", "names", "links", "escape", "attributes", "owner", "special", "big", "directory",
    "attrs", "holes", "copies", "temporary", "renames", "locks", "mapping", "whole", "parallel"])
def test_inside(vm, where, name):
    assert vm(f"{name} /rw") == "ok"
    assert sorted(os.listdir(where / "rw")) == ["from-host", "out"]


def test_read_only(vm):
    assert vm("readonly /ro") == "ok"


def test_host_and_guest_see_each_other(vm, where):
    assert vm("cat /rw/from-host") == "from host"
    (where / "rw/from-host").write_text("changed\n")
    time.sleep(1.2)
    assert vm("cat /rw/from-host") == "changed"


def test_links_do_not_lead_out(vm):
    assert vm("cat /rw/out") == "No such file or directory"
    assert vm("cat /rw/../outside") == "No such file or directory"
