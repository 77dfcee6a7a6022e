"""What does not depend on the clock: memory of each part, and sizes of files."""

import importlib.util
import pathlib
import time

import pytest

TOP = pathlib.Path(__file__).resolve().parents[2]
MIB = 1 << 20


def load_bench(name):
    spec = importlib.util.spec_from_file_location(name, TOP / "bench" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


memory = load_bench("memory")


@pytest.fixture
def idle(caisson):
    """A container that sleeps in a guest of 128 MiB."""
    caisson("run", "-d", "--name", "idle", "--network", "none", "--annotation",
            "io.caisson.memory=128MiB", caisson.image, "sleep", "1000").ok()
    time.sleep(memory.SETTLE_SECONDS)
    yield caisson


def parts(caisson):
    found = {}
    for name, pids in memory.processes(str(caisson.run_dir)).items():
        found[name] = [sum(x) for x in zip(*map(memory.smaps, pids))]
    return found


def test_memory_of_an_idle_container(idle):
    found = parts(idle)
    assert set(found) >= {"QEMU", "caisson-vmm", "shim"}, found
    ours = found["shim"][0] + found["caisson-vmm"][0]
    print(f"PSS of shim and caisson-vmm: {ours} KiB; resident of the guest: {found['QEMU'][2]} KiB")
    assert 100 < ours <= 4096
    assert 4096 < found["QEMU"][2] <= 28 * 1024


def test_sizes(stage):
    agent = (stage / "lib/caisson/caisson-agent").stat().st_size
    kernel = (stage / "lib/caisson/vmlinux").stat().st_size
    print(f"agent: {agent} bytes; kernel: {kernel} bytes")
    assert agent <= 1.5 * MIB
    assert kernel <= 16 * MIB
