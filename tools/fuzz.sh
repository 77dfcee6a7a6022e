#!/bin/sh
# Runs every fuzz target for a while with libFuzzer: tools/fuzz.sh [SECONDS] [NAME]
set -eu
cd "$(dirname "$0")/.."
seconds=${1:-30}
only=${2:-}
CC=clang meson setup build/fuzz -Dpreset=fuzz >/dev/null 2>&1 || true
ninja -C build/fuzz $(ninja -C build/fuzz -t targets all | sed -n 's/^\(tests\/fuzz\/fuzz_[a-z0-9_]*\): .*/\1/p')
for target in build/fuzz/tests/fuzz/fuzz_*; do
    [ -x "$target" ] && [ -f "$target" ] || continue
    name=${target##*/fuzz_}
    [ -z "$only" ] || [ "$only" = "$name" ] || continue
    echo "== $name"
    found=build/fuzz/found/$name
    mkdir -p "$found"
    "$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 \
        -artifact_prefix="$found/crash-" "$found" "tests/fuzz/corpus/$name" 2>&1 | tail -n 3
done
