# Debian roots for guests, installed from the archive that apt is configured for. Source it after lib.sh and suite.sh,
# with $cache and $work set; do not run it. Needs root, and a mount namespace that ends with the script.

root=$work/root
# Not across a mount that is still there after a failure.
trap 'leave_root || :; rm -rf --one-file-system "$work"' EXIT

# install_root PACKAGE...: Debian with the packages in $root.
install_root() {
    local uri codename packages
    uri=$(mirror)
    [ -n "$uri" ] || die "apt is not configured for Debian's main archive of this release"
    codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
    packages=$(IFS=, && echo "$*")
    mkdir -p "$cache/debs-$codename"
    say "installing $codename with ${packages//,/, }"
    debootstrap --variant=minbase --include="$packages" --cache-dir="$cache/debs-$codename" \
        "$codename" "$root" "$uri" >"$work/debootstrap.log" ||
        die "debootstrap fails: $(tail -n 20 "$work/debootstrap.log" "$root/debootstrap/debootstrap.log" 2>&1)"
    rm -rf "$root"/var/cache/apt/*.bin "$root"/var/lib/apt/lists/*
}

# Makes $root what packages' programs expect around them, until leave_root.
enter_root() {
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs tmpfs "$root/run"
}

leave_root() {
    local directory
    for directory in dev proc run; do
        ! mountpoint -q "$root/$directory" || umount -R "$root/$directory" || return 1
    done
}

# Runs a command in $root; what it says is shown if it fails.
inside() {
    chroot "$root" /usr/bin/env -i HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
        PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@" >"$work/inside.log" 2>&1 ||
        die "$* fails: $(tail -n 20 "$work/inside.log")"
}

# make_disk FILE SIZE LABEL: $root as an ext4 file system.
make_disk() {
    say "making $1"
    rm -f "$1"
    PATH=$PATH:/usr/sbin:/sbin mke2fs -q -t ext4 -L "$3" -d "$root" "$1" "$2"
}
