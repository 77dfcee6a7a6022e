#!/bin/sh
# Installs the Debian packages that are missing: tools/deps.sh KIND... (see tools/packages).
# When all are there, neither the network nor apt is touched.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
wanted=""
for kind in "$@"; do
    found=$(sed -n "s/^$kind  *//p" "$here/packages")
    [ -n "$found" ] || { echo "deps: no packages are listed for '$kind'" >&2; exit 2; }
    wanted="$wanted $found"
done

missing=""
for p in $(printf '%s\n' $wanted | sort -u); do
    case $(dpkg-query -W -f '${Status}' "$p" 2>/dev/null) in
        *" installed") ;;
        *) missing="$missing $p" ;;
    esac
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
    echo "These packages are missing; install them, or run this as root:$missing" >&2
    exit 1
fi
echo "Installing:$missing"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for try in 1 2 3; do
    if { [ "$try" = 1 ] && [ -n "$(ls /var/lib/apt/lists/*_Packages* 2>/dev/null)" ] ||
            apt-get -q update; } >"$log" 2>&1 &&
        # Services of the packages (containerd, registry) must not start on the user's machine.
        RUNLEVEL=1 apt-get -q install -y --no-install-recommends $missing >>"$log" 2>&1; then
        exit 0
    fi
    echo "Attempt $try failed; its last lines:" >&2
    tail -n 5 "$log" >&2
    sleep $((try * 3))
done
exit 1
