//! The configuration and the facts: what is accepted can be written out and read back, also after
//! the command line has had its say.
//!
//! Input: TOML text, NUL, a kernel command line, NUL, the text of /proc/iomem.

use base::config::Config;
use base::facts::{Facts, parse_iomem};

const FULL: &str = r#"
[dump]
level = 0
compress = "zstd:3"
[[target]]
type = "filesystem"
device = "UUID=00112233-4455-6677-8899-AABBCCDDEEFF"
path = "/crash"
fstype = "xfs"
wait = 5
[capture]
cpus = 2
stall_timeout = 60
deadline = 600
log = "debug"
cmdline_append = "irqpoll"
cmdline_remove = ["quiet"]
[finish]
action = "poweroff"
planned.success = "kexec"
failure = "shell"
min_cpus = 2
guard = 60
[boot]
kernel = "default"
cmdline = "quiet"
root = "UUID=a-1"
init = "/sbin/init"
[image]
compress = "xz"
modules = ["nvme"]
strip = "never"
"#;
const CMDLINE: &str = "quiet afterimage.level=1 afterimage.compress=zlib afterimage.action=halt \
                       afterimage.log=warn \
    afterimage.device=LABEL=x afterimage.path=/x afterimage.stall_timeout=9 afterimage.deadline=9 \
    afterimage.nope";
const FACTS: &str = "host = \"x\"\nboot_id = \"y\"\nloaded_at = 7\n[[memory_map]]\nstart = 1\nlast = 2\nkind \
                     = \"System RAM\"\n";
const IOMEM: &str =
    "00001000-0009fbff : System RAM\n  00002000-00003000 : inner\n100000000-1bfffffff : System RAM\n";

/// Reads these bytes; panics where a promise is broken.
pub(crate) fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut parts = text.splitn(3, '\0').map(str::to_owned);
    let mut part = || parts.next().unwrap_or_default();
    let (toml, cmdline, iomem) = (part(), part(), part());
    let mut config = match Config::parse(&toml) {
        Ok(config) => config,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            Config::default()
        }
    };
    check_round_trip(&config);
    let refused = config.apply_cmdline(&cmdline);
    assert!(refused.len() <= cmdline.split_ascii_whitespace().count());
    check_round_trip(&config);
    let again = config.clone();
    config.apply_cmdline(&cmdline);
    assert_eq!(config, again, "the same command line changes nothing more");

    let mut facts = Facts::parse(&toml).unwrap_or_default();
    facts.memory_map.extend(parse_iomem(&iomem));
    assert_eq!(Facts::parse(&facts.to_toml()), Ok(facts));
}

/// First inputs.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    vec![
        format!("{FULL}\0{CMDLINE}\0{IOMEM}").into_bytes(),
        format!("[[target]]\ntype=\"filesystem\"\ndevice=\"/dev/vda\"\n\0{CMDLINE}\0").into_bytes(),
        format!("{FACTS}\0\0").into_bytes(),
    ]
}

fn check_round_trip(config: &Config) {
    let text = config.to_toml();
    match Config::parse(&text) {
        Ok(again) => assert_eq!(&again, config, "{text}"),
        Err(error) => panic!("{error}: {text}"),
    }
}
