#!/bin/sh
# Makes an empty Debian with debootstrap, installs what the README asks for, clones this repository into it and runs
# `make run PRESET=smoke` and `make test` there. Needs root, debootstrap and some GB; packages come from the mirrors
# that this machine's apt and pip use.
# usage: tests/clean_machine.sh FOLDER [SUITE]
set -eu
folder=${1:?usage: tests/clean_machine.sh FOLDER [SUITE]}
suite=${2:-$(. /etc/os-release && echo "$VERSION_CODENAME")}
repository=$(cd "$(dirname "$0")/.." && pwd)
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | head -n 1)
needed="ca-certificates git make python3.11 python3.11-venv"
tests="chromium libatomic1 postgresql-15 procps"

test ! -e "$folder" || { echo "$folder exists already: name a folder that does not" >&2; exit 2; }
debootstrap --variant=minbase "$suite" "$folder" "$mirror"
trap 'umount "$folder/proc" "$folder/dev" 2>/dev/null || true' EXIT
mount -t proc proc "$folder/proc"
mount --bind /dev "$folder/dev"
cp /etc/resolv.conf "$folder/etc/resolv.conf"
for file in /etc/apt/sources.list /etc/apt/sources.list.d /etc/apt/apt.conf.d /etc/apt/trusted.gpg.d /etc/pip.conf; do
    test ! -e "$file" || cp -rL "$file" "$(dirname "$folder$file")/"
done
test ! -d /usr/local/share/ca-certificates || cp -r /usr/local/share/ca-certificates "$folder/usr/local/share/"

inside() { chroot "$folder" /usr/bin/env -i HOME=/srv PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 \
    ${PIP_INDEX_URL:+PIP_INDEX_URL="$PIP_INDEX_URL"} ${http_proxy:+http_proxy="$http_proxy"} \
    ${https_proxy:+https_proxy="$https_proxy"} sh -euc "$1"; }

inside "apt-get update -q && apt-get install -qy --no-install-recommends $needed && update-ca-certificates"
git clone --quiet --no-hardlinks "$repository" "$folder/srv/pref-restore"
inside "cd /srv/pref-restore && make run PRESET=smoke"
# the tests also drive a browser (whose driver needs libatomic) and a database
inside "apt-get install -qy --no-install-recommends $tests"
inside "cd /srv/pref-restore && make test"
echo "clean machine: $suite, $needed: the graph ran; with $tests: all tests passed"
