//! GRUB's grub.cfg and environment block, as far as they say which kernel is started if nobody
//! chooses. grub.cfg is a script; what is read of it is what grub-mkconfig writes: menu entries
//! with `linux` and `initrd` lines, and `set default=`. Values only.

use std::collections::BTreeMap;

/// Menus in each other; grub-mkconfig writes one.
const MAX_DEPTH: usize = 8;

/// A menu entry; paths begin at the root of the file system that GRUB looks at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// What the menu shows.
    pub title: String,
    /// The kernel.
    pub linux: String,
    /// Its initrds.
    pub initrd: Vec<String>,
    /// Its command line.
    pub options: String,
}

/// A line of a menu.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Item {
    title: String,
    id: String,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Entry(Entry),
    Menu(Vec<Item>),
}

/// Parses an environment block: `name=value` lines behind a first line, filled up with `#`.
#[must_use]
pub fn environment(text: &str) -> BTreeMap<String, String> {
    let pairs = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.replace("\\\\", "\\"))).collect()
}

/// Replaces `$name` and `${name}`; what is not known becomes nothing.
#[must_use]
pub fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('$') {
        out.push_str(before);
        let braced = behind.strip_prefix('{').and_then(|inside| inside.split_once('}'));
        let (name, after) = braced.unwrap_or_else(|| {
            let end = behind.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(behind.len());
            behind.split_at_checked(end).unwrap_or_default()
        });
        out.extend(variables.get(name).map(String::as_str));
        rest = after;
    }
    out.push_str(rest);
    out
}

/// The entry that the configuration starts; `None` if there is none with a kernel.
#[must_use]
pub fn default_entry(text: &str, variables: &BTreeMap<String, String>) -> Option<Entry> {
    let mut lines = text.lines().map(str::trim);
    let items = menu(&mut lines, 0, variables);
    let wanted = default(text, variables);
    find(&items, &wanted).or_else(|| first(&items)).cloned()
}

/// The last `set default=` that is not of the once-only entry.
fn default(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut values = text.lines().filter_map(|line| line.trim().strip_prefix("set default="));
    let value = values.rfind(|value| !value.contains("next_entry")).unwrap_or("0");
    let value = expand(value.trim_matches(['"', '\'']), variables);
    if value.is_empty() { "0".to_owned() } else { value }
}

/// `0`, `1>2`, or titles or ids for numbers; a `>` in a title is written twice.
fn find<'a>(items: &'a [Item], wanted: &str) -> Option<&'a Entry> {
    let wanted = wanted.replace(">>", "\0");
    let (step, rest) = wanted.split_once('>').unwrap_or((&wanted, ""));
    let name = step.replace('\0', ">");
    let named = items.iter().find(|item| item.title == name || (!item.id.is_empty() && item.id == name));
    let item = named.or_else(|| items.get(name.parse::<usize>().ok()?))?;
    match &item.kind {
        Kind::Entry(entry) => (!entry.linux.is_empty()).then_some(entry),
        Kind::Menu(items) if rest.is_empty() => first(items),
        Kind::Menu(items) => find(items, &rest.replace('\0', ">>")),
    }
}

fn first(items: &[Item]) -> Option<&Entry> {
    items.iter().find_map(|item| match &item.kind {
        Kind::Entry(entry) => (!entry.linux.is_empty()).then_some(entry),
        Kind::Menu(items) => first(items),
    })
}

/// Reads items up to the brace that closes the menu.
fn menu(
    lines: &mut dyn Iterator<Item = &str>,
    depth: usize,
    variables: &BTreeMap<String, String>,
) -> Vec<Item> {
    let mut items = Vec::new();
    while let Some(line) = lines.next() {
        let words = words(line);
        let opens = line.ends_with('{');
        let is = |name: &str| words.first().is_some_and(|word| word == name);
        let titled = |kind| {
            let title = words.get(1).cloned().unwrap_or_default();
            let is_id = |word: &&String| word.contains("menuentry_id_option") || *word == "--id";
            let id = words.iter().skip_while(|word| !is_id(word)).nth(1).cloned().unwrap_or_default();
            Item { title, id, kind }
        };
        if line == "}" && depth > 0 {
            break;
        } else if is("menuentry") && opens {
            let mut entry = entry(lines, variables);
            entry.title = words.get(1).cloned().unwrap_or_default();
            items.push(titled(Kind::Entry(entry)));
        } else if is("submenu") && opens && depth < MAX_DEPTH {
            let inner = menu(lines, depth.saturating_add(1), variables);
            items.push(titled(Kind::Menu(inner)));
        } else if opens {
            skip(lines);
        }
    }
    items
}

/// Reads an entry up to its closing brace.
fn entry(lines: &mut dyn Iterator<Item = &str>, variables: &BTreeMap<String, String>) -> Entry {
    let mut entry = Entry::default();
    for line in lines.take_while(|line| *line != "}") {
        let Some((command, rest)) = line.split_once([' ', '\t']) else { continue };
        let rest = expand(rest.trim(), variables);
        match command {
            "linux" | "linux16" | "linuxefi" => {
                let (kernel, options) = rest.split_once([' ', '\t']).unwrap_or((&rest, ""));
                kernel.clone_into(&mut entry.linux);
                entry.options = options.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
            }
            "initrd" | "initrd16" | "initrdefi" => {
                entry.initrd.extend(rest.split_ascii_whitespace().map(str::to_owned));
            }
            _ => (),
        }
    }
    entry
}

/// The body of a function.
fn skip(lines: &mut dyn Iterator<Item = &str>) {
    let mut depth: usize = 1;
    for line in lines {
        if line.ends_with('{') {
            depth = depth.saturating_add(1);
        } else if line == "}" {
            depth = depth.saturating_sub(1);
        }
        if depth == 0 {
            break;
        }
    }
}

/// The words of a line, without their quotes.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            ('\\', None | Some('"')) => word.get_or_insert_default().extend(chars.next()),
            (c, None) if c.is_ascii_whitespace() => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As grub-mkconfig of Debian writes it, shortened.
    const DEBIAN: &str = r#"
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="0"
fi
function load_video {
  if [ x$feature_all_video_module = xy ]; then
    insmod all_video
  fi
}
function gfxmode {
	set gfxpayload="${1}"
}
menuentry 'Debian GNU/Linux' --class debian --class os $menuentry_id_option 'gnulinux-simple-0a1b' {
	load_video
	insmod gzio
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	search --no-floppy --fs-uuid --set=root 0a1b
	echo	'Loading Linux 6.1.0-18-amd64 ...'
	linux	/boot/vmlinuz-6.1.0-18-amd64 root=UUID=0a1b ro  quiet ${extra}
	initrd	/boot/initrd.img-6.1.0-18-amd64
}
submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'gnulinux-advanced-0a1b' {
	menuentry 'Debian GNU/Linux, with Linux 6.1.0-18-amd64' --class os $menuentry_id_option 'gnulinux-6.1.0-18-amd64-advanced-0a1b' {
		linux	/boot/vmlinuz-6.1.0-18-amd64 root=UUID=0a1b ro  quiet
		initrd	/boot/initrd.img-6.1.0-18-amd64
	}
	menuentry 'Debian GNU/Linux, with Linux 6.1.0-17-amd64' --class os $menuentry_id_option 'gnulinux-6.1.0-17-amd64-advanced-0a1b' {
		linux	/boot/vmlinuz-6.1.0-17-amd64 root=UUID=0a1b ro  quiet
		initrd	/boot/early.cpio /boot/initrd.img-6.1.0-17-amd64
	}
}
menuentry "System setup" $menuentry_id_option 'uefi-firmware' {
	fwsetup
}
"#;

    fn with_default(default: &str, saved: &str) -> Option<Entry> {
        let text = DEBIAN.replace("set default=\"0\"", &format!("set default=\"{default}\""));
        let block = format!("# GRUB Environment Block\nsaved_entry={saved}\nextra=x=1\n#########");
        default_entry(&text, &environment(&block))
    }

    #[test]
    fn the_first_entry_unless_another_is_set() {
        let simple = with_default("0", "").unwrap();
        assert_eq!(simple.title, "Debian GNU/Linux");
        assert_eq!(simple.linux, "/boot/vmlinuz-6.1.0-18-amd64");
        assert_eq!(simple.options, "root=UUID=0a1b ro quiet x=1");
        assert_eq!(simple.initrd, ["/boot/initrd.img-6.1.0-18-amd64"]);
        let second = "/boot/vmlinuz-6.1.0-17-amd64";
        for default in [
            "1>1",
            "gnulinux-advanced-0a1b>gnulinux-6.1.0-17-amd64-advanced-0a1b",
            "Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux 6.1.0-17-amd64",
            "${saved_entry}",
        ] {
            let entry = with_default(default, "1>1").unwrap();
            assert_eq!((entry.linux.as_str(), entry.initrd.len()), (second, 2), "{default}");
        }
        assert_eq!(with_default("gone", "").unwrap(), simple);
        assert_eq!(with_default("2", "").unwrap(), simple, "the firmware's menu is no kernel");
        assert_eq!(with_default("${saved_entry}", "").unwrap(), simple);
    }

    #[test]
    fn a_script_without_entries_has_none() {
        for text in ["", "}", "menuentry 'x' {", "submenu 'x' {\nmenuentry 'y' {\n}\n}\n}", "blscfg\n"] {
            assert_eq!(default_entry(text, &BTreeMap::new()), None, "{text}");
        }
        let deep = "submenu 'x' {\n".repeat(10_000);
        assert_eq!(default_entry(&deep, &BTreeMap::new()), None);
    }

    #[test]
    fn variables_and_words() {
        let variables = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
        assert_eq!(expand("x$a${a}$b-$", &variables), "x11-");
        assert_eq!(expand("${a", &variables), "{a", "an open brace stays what it is");
        assert_eq!(
            words(r#"menuentry 'a b' --id "c \"d" e\ f"#),
            ["menuentry", "a b", "--id", "c \"d", "e f"]
        );
    }
}
