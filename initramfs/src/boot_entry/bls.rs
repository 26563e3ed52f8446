//! Entries by the Boot Loader Specification (uapi-group.org), as GRUB of Fedora and its kin and
//! systemd-boot read them: parsed, put in order, and one of them chosen. Values only.

use core::cmp::Ordering;
use std::collections::BTreeMap;

use super::grub::expand;

/// An entry; paths begin at the root of the file system that it is on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// File name without `.conf` and without what counts boots.
    pub id: String,
    /// For people.
    pub title: String,
    /// What entries are sorted by.
    pub version: String,
    /// The kernel.
    pub linux: String,
    /// Its initrds.
    pub initrd: Vec<String>,
    /// Its command line.
    pub options: String,
}

/// Parses the entry in the file `name`; `None` if it starts no kernel file. Variables of GRUB's in
/// it are replaced.
#[must_use]
pub fn parse(name: &str, text: &str, variables: &BTreeMap<String, String>) -> Option<Entry> {
    let stem = name.strip_suffix(".conf")?;
    let id = stem.split_once('+').map_or(stem, |(id, _)| id);
    let mut entry = Entry { id: id.to_owned(), ..Entry::default() };
    let mut options = Vec::new();
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    for (key, value) in lines.filter_map(|line| line.split_once([' ', '\t'])) {
        let value = expand(value.trim(), variables);
        match key {
            "title" => entry.title = value,
            "version" => entry.version = value,
            "linux" => entry.linux = value,
            "initrd" => entry.initrd.extend(value.split_ascii_whitespace().map(str::to_owned)),
            "options" => options.push(value),
            _ => (),
        }
    }
    entry.options = options.join(" ").split_ascii_whitespace().collect::<Vec<_>>().join(" ");
    (!entry.linux.is_empty()).then_some(entry)
}

/// The entry that is started if nobody chooses: `wanted` is an id, a title, a number from 0 or a
/// pattern with `*`; without it, or where it fits none, the newest.
#[must_use]
pub fn choose(mut entries: Vec<Entry>, wanted: Option<&str>) -> Option<Entry> {
    entries.sort_by(|a, b| compare(&b.version, &a.version).then_with(|| compare(&b.id, &a.id)));
    let wanted = wanted.map(|wanted| wanted.strip_suffix(".conf").unwrap_or(wanted));
    let found = wanted.and_then(|wanted| {
        let named = entries.iter().find(|entry| fits(wanted, &entry.id) || entry.title == wanted);
        named.or_else(|| entries.get(wanted.parse::<usize>().ok()?)).cloned()
    });
    found.or_else(|| entries.first().cloned())
}

/// `default` in systemd-boot's loader.conf.
#[must_use]
pub fn loader_default(text: &str) -> Option<&str> {
    let mut lines = text.lines().map(str::trim);
    let value = lines.find_map(|line| line.strip_prefix("default")?.strip_prefix([' ', '\t']));
    // @saved is in an EFI variable, and what was saved there is one of the entries; the newest is
    // as good a guess.
    value.map(str::trim).filter(|value| !value.starts_with('@'))
}

/// Whether `*` and what stands around it fits.
fn fits(pattern: &str, text: &str) -> bool {
    let Some((front, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(front) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        let Some((_, behind)) = text.split_once(part) else { return false };
        text = behind;
    }
    text.ends_with(last)
}

/// Versions: runs of digits by number, the rest by text.
fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let ((run_a, digits_a), (run_b, digits_b)) = (run(a), run(b));
        if run_a.is_empty() || run_b.is_empty() {
            return run_a.len().cmp(&run_b.len());
        }
        let order = if digits_a && digits_b {
            let (x, y) = (run_a.trim_start_matches('0'), run_b.trim_start_matches('0'));
            x.len().cmp(&y.len()).then_with(|| x.cmp(y))
        } else {
            run_a.cmp(run_b)
        };
        if order != Ordering::Equal {
            return order;
        }
        a = a.get(run_a.len()..).unwrap_or_default();
        b = b.get(run_b.len()..).unwrap_or_default();
    }
}

/// The first run of digits, or of what is none.
fn run(text: &str) -> (&str, bool) {
    let digits = text.starts_with(|c: char| c.is_ascii_digit());
    let end = text.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(text.len());
    (text.get(..end).unwrap_or_default(), digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Fedora writes it.
    const FEDORA: &str = "title Fedora Linux (6.8.5-301.fc40.x86_64) 40 (Server Edition)\n\
        version 6.8.5-301.fc40.x86_64\n\
        linux /vmlinuz-6.8.5-301.fc40.x86_64\n\
        initrd /initramfs-6.8.5-301.fc40.x86_64.img $tuned_initrd\n\
        options root=UUID=0a1b ro rootflags=subvol=root  $tuned_params\n\
        grub_users $grub_users\ngrub_class fedora\n";
    /// As kernel-install writes it for systemd-boot.
    const SYSTEMD: &str = "# Boot Loader Specification type#1 entry\n\
        title      Debian GNU/Linux 13 (trixie)\nversion    6.12.6-amd64\nmachine-id 0123\nsort-key   \
        debian\n\
        options    root=PARTUUID=9 rw\noptions    quiet\n\
        linux      /0123/6.12.6-amd64/linux\ninitrd     /0123/6.12.6-amd64/initrd.img\n";

    fn entry(id: &str, version: &str) -> Entry {
        Entry { id: id.into(), version: version.into(), title: format!("T {id}"), ..Entry::default() }
    }

    #[test]
    fn both_dialects_are_read() {
        let variables = BTreeMap::from([("tuned_params".to_owned(), "skew_tick=1".to_owned())]);
        let fedora = parse("0123-6.8.5.conf", FEDORA, &variables).unwrap();
        assert_eq!(fedora.linux, "/vmlinuz-6.8.5-301.fc40.x86_64");
        assert_eq!(fedora.initrd, ["/initramfs-6.8.5-301.fc40.x86_64.img"]);
        assert_eq!(fedora.options, "root=UUID=0a1b ro rootflags=subvol=root skew_tick=1");
        let systemd = parse("0123-6.12.6-amd64+2-1.conf", SYSTEMD, &BTreeMap::new()).unwrap();
        assert_eq!(systemd.id, "0123-6.12.6-amd64");
        assert_eq!(systemd.initrd, ["/0123/6.12.6-amd64/initrd.img"]);
        assert_eq!(systemd.options, "root=PARTUUID=9 rw quiet");
        assert_eq!(parse("a.conf", "title Firmware\nefi /shell.efi\n", &BTreeMap::new()), None);
        assert_eq!(parse("a.conf.bak", FEDORA, &BTreeMap::new()), None);
    }

    #[test]
    fn the_saved_entry_or_the_newest_is_chosen() {
        let all =
            || vec![entry("m-6.8.5", "6.8.5"), entry("m-6.10.1", "6.10.1"), entry("m-0-rescue", "0-rescue")];
        let chosen = |wanted| choose(all(), wanted).unwrap().id;
        assert_eq!(chosen(None), "m-6.10.1");
        assert_eq!(chosen(Some("m-6.8.5")), "m-6.8.5");
        assert_eq!(chosen(Some("m-6.8.5.conf")), "m-6.8.5");
        assert_eq!(chosen(Some("T m-0-rescue")), "m-0-rescue");
        assert_eq!(chosen(Some("1")), "m-6.8.5");
        assert_eq!(chosen(Some("m-6.8*")), "m-6.8.5");
        assert_eq!(chosen(Some("gone")), "m-6.10.1");
        assert_eq!(choose(Vec::new(), Some("0")), None);
    }

    #[test]
    fn versions_are_compared_by_number() {
        for (less, more) in [("6.8.5", "6.10"), ("6.1", "6.1.1"), ("6.1.09", "6.1.10"), ("a", "b"), ("", "1")]
        {
            assert_eq!(
                (compare(less, more), compare(more, less)),
                (Ordering::Less, Ordering::Greater),
                "{less}"
            );
        }
        assert_eq!(compare("6.01", "6.1"), Ordering::Equal);
    }

    #[test]
    fn patterns() {
        assert_eq!(loader_default("timeout 3\ndefault  0123-*\n"), Some("0123-*"));
        assert_eq!(loader_default("default @saved\n"), None);
        assert_eq!(loader_default("#default x\ndefaults y\n"), None);
        for (pattern, text, is) in [
            ("a*", "abc", true),
            ("*c", "abc", true),
            ("a*b*c", "axbxc", true),
            ("a*d", "abc", false),
            ("ab", "abc", false),
        ] {
            assert_eq!(fits(pattern, text), is, "{pattern}");
        }
    }
}
