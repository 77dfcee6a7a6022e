"""Every call to the host's kernel fails once: a container is started, entered, killed and removed while one
system call of the command line, the shim or the VM's process gives an error (fault.c). Each command then
works or says why not, in its time, and nothing is left behind.

CAISSON_FAULTS is the number of calls to try, drawn at random from all that are made, or "all";
CAISSON_FAULT names one: "PROGRAM CALL N".
"""

import os
import pathlib
import platform
import random
import shutil
import subprocess
import tempfile
import threading
import time

import pytest

from conftest import TOP, Caisson
from ctrd import wait_until

COUNT = os.environ.get("CAISSON_FAULTS", "6")
AT_A_TIME = 2
BOUND = int(os.environ.get("CAISSON_TEST_TIMEOUT", "60")) * 2
LIFE = """
c=$1 name=$2 image=$3 over=$4
$c run -d --name $name $image sleep 1000 >/dev/null && $c exec $name true && $c kill $name >/dev/null &&
    $c wait $name >/dev/null && $c rm $name >/dev/null
code=$?
touch $over
exit $code
"""

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="fault.c knows x86-64 only")


@pytest.fixture(scope="module")
def tool(tmp_path_factory):
    program = tmp_path_factory.mktemp("fault") / "fault"
    subprocess.run(["gcc", "-O1", "-o", program, TOP / "tests/e2e/fault.c"], check=True)
    return program


def live(caisson, tool, fault):
    """A life with that fault: exit code, what was said, what failed (or what was counted)."""
    report, over = caisson.run_dir.with_suffix(".report"), caisson.run_dir.with_suffix(".over")
    over.unlink(missing_ok=True)
    name = f"f{time.monotonic_ns():x}"
    command = [tool, report, *fault, "sh", "-c", LIFE, "sh", caisson.bin, name, caisson.image, over]
    p = subprocess.Popen(command, env=caisson.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                         stderr=subprocess.PIPE, text=True, cwd="/")
    try:
        # What a command that failed leaves running on purpose is removed as a user would: by its id,
        # if only its name was removed.
        wait_until(lambda: over.exists() or p.poll() is not None, BOUND)
        r = caisson("rm", "-f", name)
        assert r.code == 0, repr(r)
        caisson.remove_all()
        _, said = p.communicate(timeout=BOUND)
        return p.returncode, said, report.read_text(encoding="utf-8")
    except (TimeoutError, subprocess.TimeoutExpired) as e:
        log = "".join(f.read_text(errors="replace") for f in caisson.run_dir.glob("sandboxes/*/shim.log"))
        raise AssertionError(f"hangs: {report.read_text()} {caisson.processes()}\n{log}") from e
    finally:
        p.kill()  # and all that it traces
        p.wait()
        over.unlink(missing_ok=True)
        report.unlink(missing_ok=True)


def check(caisson, tool, fault):
    """What went wrong with it, or None; and what failed."""
    text = " ".join(fault)
    try:
        code, said, text = live(caisson, tool, fault)
        text = text.strip() or f"{' '.join(fault)} was not made"
        lines = [x for x in said.splitlines() if x.strip()]
        assert code in range(0, 128), f"exit code {code}"
        assert code == 0 or lines, "it failed without a word"
        assert all(x.startswith("caisson: ") for x in lines), said
        caisson.assert_clean(20)
        return None, f"{text} -> {code} {said.strip()}"
    except (AssertionError, subprocess.TimeoutExpired) as e:
        return f"{text}: {e}", text


def worker(caisson, tool, faults, failures):
    # Short of the bound, for a guest that cannot tell that it is up.
    settings = caisson.root / "fault-config.yaml"
    settings.write_text(f"vm:\n  boot_timeout: {BOUND // 3}s\n  agent_timeout: {BOUND // 3}s\n",
                        encoding="ascii")
    own = Caisson(caisson.stage, caisson.root, pathlib.Path(tempfile.mkdtemp(prefix="caisson-fault-")),
                  caisson.image)
    own.env["CAISSON_CONFIG"] = str(settings)
    probe = caisson.run_dir / "kvm-probe"
    if probe.exists():
        shutil.copy2(probe, own.run_dir)
    while faults:
        problem, text = check(own, tool, faults.pop())
        print(f"{'FAILED ' if problem else ''}{problem or text}", flush=True)
        if problem:
            failures.append(problem)
            own.remove_all()
            shutil.rmtree(own.run_dir, ignore_errors=True)
            own.run_dir.mkdir()
    shutil.rmtree(own.run_dir, ignore_errors=True)


def test_every_call_fails_once(caisson, tool):
    caisson.run(caisson.image, "true", timeout=120).ok()
    code, said, counted = live(caisson, tool, ("-", "-", "0"))
    assert code == 0, said
    faults = [(program, call, str(n)) for program, call, count in map(str.split, counted.splitlines())
              for n in range(1, int(count) + 1)]
    seed = int(os.environ.get("CAISSON_SEED", time.time_ns() % 1000000))
    total = len(faults)
    assert total > 500, counted
    if "CAISSON_FAULT" in os.environ:
        faults = [tuple(os.environ["CAISSON_FAULT"].split())]
    else:
        random.Random(seed).shuffle(faults)
        if COUNT != "all":
            faults = faults[:int(COUNT)]
    print(f"seed {seed}: {len(faults)} of {total} calls")
    failures = []
    threads = [threading.Thread(target=worker, args=(caisson, tool, faults, failures))
               for _ in range(AT_A_TIME)]
    for t in threads:
        t.start()
    try:
        for t in threads:
            t.join()
    finally:
        faults.clear()  # an interrupted run ends with what is under way
    assert not failures, "\n".join(failures)
