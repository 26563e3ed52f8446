# Packages of one suite that apt is not configured for, from the mirror that it is configured for. Source it after
# lib.sh, with $cache and $work set before use_suite; do not run it.
#
#   $cache/apt-SUITE/   package lists of its own: those of the system are not touched

# Options that make apt-get and apt-cache work on the chosen suite; none as long as none is chosen.
apt=()

# Chooses a suite, the system's own sources without one, for what follows. Its lists may be missing: see update_suite.
use_suite() {
    local suite=${1:-} uri
    apt=()
    [ -n "$suite" ] || return 0
    # Two scripts may use one suite, and apt-get update fails on lists that are locked. Chosen anew, the last is let go.
    exec 8>"$cache/apt-$suite.lock"
    flock 8
    uri=$(mirror) || die "apt-get indextargets failed"
    [ -n "$uri" ] ||
        die "apt is not configured for Debian's main archive of this release, so there is no mirror to ask for $suite"
    configure_suite "$suite" "$uri"
    apt=(-c "$work/$suite.conf")
}

# Refreshes the lists of the chosen suite.
update_suite() {
    if [ ${#apt[@]} = 0 ]; then
        update_lists
    else
        say "refreshing the package lists of $(basename "${apt[1]}" .conf)"
        apt-get "${apt[@]}" update -qq >&2
    fi
}

# Prints one field of the newest version of a package; nothing if there is none.
field() {
    local package=$1 name=$2
    apt-cache "${apt[@]}" show --no-all-versions "$package" 2>/dev/null | sed -n "s/^$name: //p" | head -n 1
}

# The address from which apt gets the main archive of the running release.
mirror() {
    local codename
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    # Label tells the archive from the security updates. A mirror that is named twice is asked once.
    apt-get indextargets --format '$(CREATED_BY) $(LABEL) $(CODENAME) $(COMPONENT) $(REPO_URI)' |
        awk -v wanted="Packages Debian $codename main" '$1 " " $2 " " $3 " " $4 == wanted { print $5; exit }'
}

# Writes $work/SUITE.conf, which points apt at the private state and at one suite of `uri`.
configure_suite() {
    local suite=$1 uri=$2 state=$cache/apt-$1 keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    {
        echo "Types: deb"
        echo "URIs: $uri"
        echo "Suites: $suite"
        echo "Components: main"
        # Else the keys that apt trusts for every source.
        [ ! -e "$keyring" ] || echo "Signed-By: $keyring"
    } >"$work/$suite.sources"
    mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
    # No package counts as installed, and the hooks of the system's configuration stay out of this.
    : >"$state/status"
    cat >"$work/$suite.conf" <<END
Dir::State "$state";
Dir::State::status "$state/status";
Dir::Cache "$state/cache";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "srcpkgcache.bin";
Dir::Etc::sourcelist "$work/$suite.sources";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Default-Release;
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
APT::Sandbox::User "$(id -un)";
END
}
