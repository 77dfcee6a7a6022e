#!/bin/sh
# All tests, or a part: tools/test.sh [all|unit|e2e] [pytest arguments of e2e...]
#   tools/test.sh e2e test_run.py -k exec           files, tests
#   tools/test.sh e2e --backend kvm test_run.py     on the built-in monitor, in the testbed
# Ends with "N passed, N failed, N skipped"; the exit code is 0 only if nothing failed.
#
# Whatever opens a socket runs in a network namespace of its own: no test reaches the network of
# the machine, and none can break it.
set -u
cd "$(dirname "$0")/.." || exit
part=${1:-all}
[ $# -gt 0 ] && shift
out=build/test-results
passed=0 failed=0 skipped=0
rm -rf "$out"
mkdir -p "$out"

started=$(date +%s)
say() { printf '== %4ss  %s\n' "$(($(date +%s) - started))" "$*"; }

finish() {
    echo
    echo "$passed passed, $failed failed, $skipped skipped"
    [ "$failed" = 0 ]
    exit
}

# step NAME COMMAND...: a thing that only passes or fails
step() {
    name=$1
    shift
    say "$name"
    if "$@" >"$out/step.log" 2>&1; then
        passed=$((passed + 1))
    else
        tail -n 60 "$out/step.log"
        echo "FAILED: $name"
        failed=$((failed + 1))
        return 1
    fi
}

in_own_network() {
    unshare --net -- sh -c 'ip link set lo up && exec "$@"' sh "$@"
}

build() {
    preset=$1
    tests=$2
    [ -f "build/$preset/build.ninja" ] ||
        meson setup "build/$preset" -Dpreset="$preset" -Dtests="$tests" || return 1
    ninja -C "build/$preset"
}

# Adds a test program's counts, "passed failed skipped", to the sums.
add() {
    passed=$((passed + $1))
    failed=$((failed + $2))
    skipped=$((skipped + $3))
}

unit() {
    step "build with sanitizers" build dev true || finish
    say "unit tests, corpora, interop"
    # An earlier run's results must not stand in for those of a run that never began.
    logs=build/dev/meson-logs
    rm -f "$logs/testlog.json" "$logs/again.json"
    in_own_network meson test -C build/dev --no-rebuild --print-errorlogs >"$out/unit.log" 2>&1 ||
        tail -n 150 "$out/unit.log"
    failed_tests=$(python3 tools/count.py meson-failed "$logs/testlog.json")
    if [ -n "$failed_tests" ]; then
        say "once more, those that failed"
        # shellcheck disable=SC2086
        in_own_network meson test -C build/dev --no-rebuild --print-errorlogs --logbase again \
            $failed_tests 2>&1 | tail -n 100
    fi
    # shellcheck disable=SC2046
    add $(python3 tools/count.py meson "$logs/testlog.json" "$logs/again.json")
}

# The end-to-end tests' own run of pytest, a file to each worker at a time; one worker for each processor
# (CAISSON_WORKERS), since an emulated guest keeps one busy. Failed ones get a second chance, alone, and are
# named: a VM under emulation on a busy machine can miss a deadline.
e2e() {
    files='' before=''
    for arg; do
        shift
        case $before,$arg in
            --backend,*) export CAISSON_TEST_BACKEND="$arg" ;;
            *,--backend) ;;
            *,test_*) set -- "$@" "tests/e2e/$arg"; files=named ;;
            *,tests/*) set -- "$@" "$arg"; files=named ;;
            *) set -- "$@" "$arg" ;;
        esac
        before=$arg
    done
    [ "$files" ] || set -- tests/e2e "$@"
    step "build as released" build release false || finish
    step "stage, guest kernel included" tools/stage.sh build/release || finish
    # Made here because the tests themselves have no network.
    step "images from Debian's packages" \
        tests/images/build busybox debian nginx python3 postgresql tools || finish
    # Tests that need one that cannot be had are skipped.
    say "peers from newer Debian suites"
    tests/peers/get >"$out/peers.log" 2>&1 || tail -n 1 "$out/peers.log"
    tests/testbed/run --prepare >"$out/testbed.log" 2>&1 || tail -n 1 "$out/testbed.log"
    workers=${CAISSON_WORKERS:-$(nproc)}
    say "end-to-end tests, $workers at a time"
    CAISSON_STAGE=$PWD/build/release/stage
    export CAISSON_STAGE
    # Short: sockets' paths are at most 107 bytes long.
    base=$(mktemp -d /tmp/cXXXX)
    in_own_network /usr/bin/python3 -m pytest -q -rs --junitxml="$out/e2e.xml" \
        --basetemp="$base/t" \
        -o cache_dir="$PWD/$out/cache" -n "$workers" --dist loadfile "$@" 2>&1 |
        tee "$out/e2e.log"
    if /usr/bin/python3 tools/count.py failed "$out/e2e.xml"; then
        say "once more, those that failed"
        in_own_network /usr/bin/python3 -m pytest -q -rs --junitxml="$out/e2e-again.xml" \
            -o cache_dir="$PWD/$out/cache" --last-failed --last-failed-no-failures none "$@" 2>&1 |
            tee "$out/e2e-again.log"
        # shellcheck disable=SC2046
        add $(python3 tools/count.py junit "$out/e2e.xml" "$out/e2e-again.xml")
    else
        # shellcheck disable=SC2046
        add $(python3 tools/count.py junit "$out/e2e.xml")
    fi
    rm -rf "$base"
    python3 tools/count.py slowest "$out/e2e.xml"
}

step "packages" tools/deps.sh build run demo test || finish
step "layers: includes never point up" tools/check-includes.sh
step "text" tools/check-text.sh
case $part in
    all) unit && e2e "$@" ;;
    unit) unit ;;
    e2e) e2e "$@" ;;
    *) echo "usage: tools/test.sh [all|unit|e2e]" >&2; exit 2 ;;
esac
finish
