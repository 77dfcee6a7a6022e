#!/bin/sh
# Copies a staged build: tools/install.sh BUILDDIR PREFIX. `make build` comes first.
set -eu
top=$(cd "$(dirname "$0")/.." && pwd)
stage=${1:?usage: tools/install.sh BUILDDIR PREFIX}/stage
prefix=${2:?usage: tools/install.sh BUILDDIR PREFIX}
[ -x "$stage/bin/caisson" ] || { echo "install: nothing is built in '$1'; run 'make build' first" >&2; exit 1; }

install -d "$prefix/bin" "$prefix/lib/caisson" "$prefix/share/man/man1" \
    "$prefix/share/bash-completion/completions" "$prefix/share/zsh/site-functions"
install -m 0755 "$stage"/bin/* "$prefix/bin/"
install -m 0644 "$stage"/lib/caisson/* "$prefix/lib/caisson/"
chmod 0755 "$prefix/lib/caisson/caisson-agent"
for page in "$top"/docs/man/*.1; do
    [ -e "$page" ] && install -m 0644 "$page" "$prefix/share/man/man1/"
done
"$stage/bin/caisson" --help | sed -n 's/^  \([a-z][a-z ]*[a-z]\)   *[A-Z].*/\1/p' | while read -r command; do
    # shellcheck disable=SC2086 # two words are two arguments
    "$stage/bin/caisson" help --mdoc $command >"$prefix/share/man/man1/caisson-$(echo "$command" | tr ' ' -).1"
done
"$stage/bin/caisson" completion bash >"$prefix/share/bash-completion/completions/caisson"
"$stage/bin/caisson" completion zsh >"$prefix/share/zsh/site-functions/_caisson"
