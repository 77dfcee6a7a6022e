#!/bin/sh
# Formatting, static analysis, spelling, shell scripts, layers. Nothing is changed.
set -u
cd "$(dirname "$0")/.." || exit 1
bad=0
tools/check-includes.sh || bad=1
tools/check-text.sh || bad=1
tools/check-docs.py || bad=1
shellcheck -S warning tools/*.sh .ci/run guest/kernel/build deploy/install tests/peers/get tests/peers/kata || bad=1
codespell -q 3 -L crate,ede,fo,hist,passt,ro,te,ue src docs README.md CONTRIBUTING.md || bad=1
[ -d build/lint ] || CC=clang meson setup build/lint -Dpreset=dev >/dev/null
ninja -C build/lint >/dev/null || bad=1
git ls-files 'src/*.c' | xargs -n 8 -P 2 clang-tidy -quiet -p build/lint || bad=1
exit "$bad"
