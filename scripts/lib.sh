# Shared by the scripts: install what is missing, say what is done. Source it; do not run it.

say() { echo "$(basename "$0"): $*" >&2; }

die() {
    say "$*"
    exit 1
}

# need COMMAND PACKAGE: installs a command's package from the configured archive if the command is missing.
need() {
    # Administration tools are not in everyone's PATH.
    PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null || install_package "$2"
}

install_package() {
    [ "$(id -u)" = 0 ] || die "the package $1 is needed: install it, or run as root"
    update_lists
    say "installing $1"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$1" >/dev/null ||
        die "the package $1 cannot be installed"
}

# Once for a script and those that it starts: a fresh machine has no package lists, or lists with old compilers.
update_lists() {
    [ -z "${AFTERIMAGE_LISTS_ARE_NEW:-}" ] || return 0
    say "refreshing the package lists"
    apt-get update -qq >&2
    export AFTERIMAGE_LISTS_ARE_NEW=1
}

# A Rust toolchain and a C compiler (zstd and xz are C).
need_rust() {
    need gcc gcc
    [ -f /usr/include/stdio.h ] || install_package libc6-dev
    if ! command -v cargo >/dev/null; then
        need cargo cargo-web
        need rustc rustc-web
        need rustfmt rustfmt-web
        need cargo-clippy rust-web-clippy
    fi
}

# cargo-nextest: the one that cargo knows, or ours.
need_nextest() {
    PATH=$PATH:${AFTERIMAGE_CACHE:-$HOME/.cache/afterimage}/tools/bin
    cargo nextest --version >/dev/null 2>&1 || "$(dirname "$0")/fetch-nextest"
}

# longest PROFILE: prints the ten longest tests of the last run with a profile of .config/nextest.toml.
longest() {
    python3 - "${CARGO_TARGET_DIR:-target}/nextest/$1/junit.xml" <<'PYTHON' >&2
import sys
import xml.etree.ElementTree
cases = xml.etree.ElementTree.parse(sys.argv[1]).iter("testcase")
cases = sorted(((float(case.get("time")), case.get("classname"), case.get("name")) for case in cases), reverse=True)
print(f"{len(cases)} tests, {sum(case[0] for case in cases):.0f} s; the ten longest:")
for time, binary, name in cases[:10]:
    print(f"{time:6.0f} s  {binary} {name}")
PYTHON
}

# What a guest needs.
need_guests() {
    need qemu-system-x86_64 qemu-system-x86
    need mke2fs e2fsprogs
    need depmod kmod
    need xz xz-utils
    need mkfs.xfs xfsprogs
    need mkfs.btrfs btrfs-progs
    need mkfs.vfat dosfstools
    need sfdisk fdisk
    need mcopy mtools
    need lvm lvm2
    need cryptsetup cryptsetup-bin
    need ip iproute2
    need debootstrap debootstrap
    [ -f /usr/share/OVMF/OVMF_CODE_4M.fd ] || install_package ovmf
}

# Servers that targets on the network are tested against, on the loopback.
need_servers() {
    need sshd openssh-server
    need ssh-keygen openssh-client
    need nginx nginx
    need openssl openssl
    need faketime faketime
    need dnsmasq dnsmasq-base
    need ip iproute2
}

# What judges dumps: crash, gdb, and a Python for drgn.
need_readers() {
    # The newest, or the system's.
    "$(dirname "${BASH_SOURCE[0]}")/fetch-reader" crash >/dev/null || need crash crash
    need readelf binutils
    need minisign minisign
    need gdb gdb
    need python3 python3
    python3 -c 'import ensurepip' 2>/dev/null || install_package python3-venv
}

# profile_dir PROFILE: the folder of its binaries, which are static and therefore built for a named target.
profile_dir() { echo "${CARGO_TARGET_DIR:-target}/$(rustc -vV | sed -n 's/^host: //p')/$1"; }

release_dir() { profile_dir release; }
