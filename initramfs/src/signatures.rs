//! Whether the capture kernel wants modules with their signatures, and whether a module has what it
//! wants.
//!
//! A module that has lost its signature is harmless on most hosts. On some it is refused, and under
//! FIPS the kernel panics when it registers a cipher (`crypto_check_module_sig`, crypto/algapi.c).
//! So signatures go only where nothing speaks for them.

use std::fs;
use std::path::Path;

use object::{Object as _, ObjectSection as _};

use crate::host::{self, read};

/// `struct module_signature` and the marker that end a signed module
/// (include/linux/module_signature.h).
const MARKER: &[u8] = b"~Module signature appended~\n";
const INFO_LEN: usize = 12;
/// `PKEY_ID_PKCS7`, the only kind that kernels take since 4.3.
const PKCS7: u8 = 2;
/// The tag of an ASN.1 SEQUENCE, by which a PKCS#7 message begins.
const SEQUENCE: u8 = 0x30;

/// What of a host decides about signatures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Lockdown mode; `none` without.
    pub lockdown: String,
    /// /proc/sys/crypto/fips_enabled.
    pub fips: String,
    /// /sys/module/module/parameters/sig_enforce.
    pub sig_enforce: String,
    /// The command line.
    pub cmdline: String,
    /// IMA's policy, as far as it can be read.
    pub ima: String,
    /// Whether the firmware started this kernel under Secure Boot.
    pub secure_boot: bool,
    /// The configuration of the capture kernel, where it is installed; empty if it is not.
    pub config: String,
}

impl Policy {
    /// Of this host, and of a kernel with these modules.
    #[must_use]
    pub fn read(release: &str, modules_dir: &Path) -> Self {
        let boot = format!("/boot/config-{release}");
        let configs =
            [Path::new(&boot).to_owned(), modules_dir.join("config"), modules_dir.join("build/.config")];
        Self {
            lockdown: host::lockdown(),
            fips: read("/proc/sys/crypto/fips_enabled"),
            sig_enforce: read("/sys/module/module/parameters/sig_enforce"),
            cmdline: read("/proc/cmdline"),
            ima: read("/sys/kernel/security/ima/policy"),
            secure_boot: is_secure_boot(Path::new("/sys/firmware/efi/efivars")),
            config: configs.iter().find_map(|path| fs::read_to_string(path).ok()).unwrap_or_default(),
        }
    }

    /// Why modules have to keep their signatures, a sentence's worth each; empty if they need not.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        let words = || self.cmdline.split_ascii_whitespace();
        let value = |name: &str| {
            let mut values = words().filter_map(|word| {
                let (key, value) = word.split_once('=').unwrap_or((word, "1"));
                (key.replace('-', "_") == name).then_some(value)
            });
            values.next_back().filter(|value| !matches!(*value, "0" | "n" | "N" | "off"))
        };
        let mut reasons = Vec::new();
        if !matches!(self.lockdown.as_str(), "none" | "") {
            reasons.push(format!("the lockdown mode is {}", self.lockdown));
        }
        if value("lockdown").is_some() && reasons.is_empty() {
            reasons.push("lockdown= is on the kernel command line".to_owned());
        }
        if !matches!(self.fips.as_str(), "0" | "") || value("fips").is_some() {
            reasons.push("the host is in FIPS mode".to_owned());
        }
        if self.sig_enforce == "Y" || value("module.sig_enforce").is_some() {
            reasons.push("module.sig_enforce is set".to_owned());
        }
        if [
            "CONFIG_MODULE_SIG_FORCE=y",
            "CONFIG_LOCK_DOWN_KERNEL_FORCE_INTEGRITY=y",
            "CONFIG_LOCK_DOWN_KERNEL_FORCE_CONFIDENTIALITY=y",
        ]
        .iter()
        .any(|option| self.config.lines().any(|line| line == *option))
        {
            reasons.push("the kernel is built to take signed modules only".to_owned());
        }
        let appraises =
            |line: &str| line.trim_start().starts_with("appraise") && line.contains("MODULE_CHECK");
        if self.ima.lines().any(appraises)
            || value("ima_policy")
                .is_some_and(|value| value.contains("secure_boot") || value.contains("appraise"))
            || value("ima_appraise").is_some_and(|value| value.contains("enforce"))
        {
            reasons.push("IMA appraises modules".to_owned());
        }
        if self.secure_boot {
            reasons.push("Secure Boot is on".to_owned());
        }
        if value("panic_on_taint").is_some() {
            reasons.push("panic_on_taint= is set, and an unsigned module taints the kernel".to_owned());
        }
        reasons
    }
}

/// The byte behind the attributes of the firmware's variable SecureBoot.
fn is_secure_boot(variables: &Path) -> bool {
    let path = variables.join("SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c");
    fs::read(path).is_ok_and(|bytes| bytes.get(4) == Some(&1))
}

/// What a module of an image says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModuleFacts {
    /// Its name.
    pub name: String,
    /// Whether it ends in a signature of the form that kernels take.
    pub signed: bool,
    /// The kernel that it was built for, and how (`vermagic`); empty if it does not say.
    pub vermagic: String,
}

impl ModuleFacts {
    /// Of the bytes of a module.
    #[must_use]
    pub fn of(name: &str, module: &[u8]) -> Self {
        let signed = split(module).is_some_and(|(_, signature)| signature.first() == Some(&SEQUENCE));
        Self { name: name.to_owned(), signed, vermagic: vermagic(module).unwrap_or_default() }
    }

    /// Whether the kernel of this release takes it, as far as its version goes: with symbol versions
    /// the release may be another one (`same_magic`, kernel/module/version.c).
    #[must_use]
    pub fn is_for(&self, release: &str) -> bool {
        let mut words = self.vermagic.split_ascii_whitespace();
        let built_for = words.next();
        built_for.is_none_or(|built_for| built_for == release) || words.any(|word| word == "modversions")
    }
}

/// A module and its PKCS#7 signature, if it has one at its end.
#[must_use]
pub fn split(module: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = module.strip_suffix(MARKER)?;
    let (rest, info) = rest.split_at_checked(rest.len().checked_sub(INFO_LEN)?)?;
    let signature_len = usize::try_from(u32::from_be_bytes(*info.last_chunk::<4>()?)).ok()?; // sig_len
    let (code, signature) = rest.split_at_checked(rest.len().checked_sub(signature_len)?)?;
    (info.get(2) == Some(&PKCS7)).then_some((code, signature))
}

fn vermagic(module: &[u8]) -> Option<String> {
    let file = object::File::parse(module).ok()?;
    let info = file.section_by_name(".modinfo")?.data().ok()?;
    let mut fields = info.split(|&byte| byte == 0);
    let value = fields.find_map(|field| field.strip_prefix(b"vermagic="))?;
    Some(String::from_utf8_lossy(value).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    type Change = fn(&mut Policy);

    fn reasons(change: impl FnOnce(&mut Policy)) -> String {
        let mut policy = Policy {
            lockdown: "none".into(),
            fips: "0".into(),
            sig_enforce: "N".into(),
            ..Policy::default()
        };
        change(&mut policy);
        policy.reasons().join("; ")
    }

    #[test]
    fn each_host_that_wants_signatures_says_why() {
        assert_eq!(reasons(|_| ()), "");
        assert_eq!(reasons(|policy| policy.cmdline = "quiet fips=0 module.sig_enforce=0 xfips=1".into()), "");
        let config = "# CONFIG_MODULE_SIG_FORCE is not set\nCONFIG_MODULE_SIG=y\n";
        assert_eq!(reasons(|policy| policy.config = config.into()), "");
        let cases: [(Change, &str); 14] = [
            (|policy| policy.fips = "1".into(), "FIPS"),
            (|policy| policy.cmdline = "quiet fips=1".into(), "FIPS"),
            (|policy| policy.lockdown = "integrity".into(), "lockdown mode is integrity"),
            (|policy| policy.cmdline = "lockdown=confidentiality".into(), "lockdown="),
            (|policy| policy.sig_enforce = "Y".into(), "sig_enforce"),
            (|policy| policy.cmdline = "module.sig_enforce".into(), "sig_enforce"),
            (|policy| policy.cmdline = "module.sig-enforce=1".into(), "sig_enforce"),
            (|policy| policy.config = "CONFIG_MODULE_SIG_FORCE=y\n".into(), "signed modules only"),
            (
                |policy| {
                    policy.ima = "measure func=X\nappraise func=MODULE_CHECK appraise_type=imasig\n".into();
                },
                "IMA",
            ),
            (|policy| policy.cmdline = "ima_policy=tcb|secure_boot".into(), "IMA"),
            (|policy| policy.cmdline = "ima_appraise=enforce".into(), "IMA"),
            (|policy| policy.secure_boot = true, "Secure Boot"),
            (|policy| policy.cmdline = "panic_on_taint=0x2000".into(), "taints"),
            (
                |policy| policy.config = "CONFIG_LOCK_DOWN_KERNEL_FORCE_INTEGRITY=y".into(),
                "signed modules only",
            ),
        ];
        for (change, words) in cases {
            let found = reasons(change);
            assert!(found.contains(words) && !found.contains(';'), "{words}: {found:?}");
        }
    }

    #[test]
    fn secure_boot_is_a_byte_of_a_variable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c");
        assert!(!is_secure_boot(dir.path()));
        for (value, is_on) in [(1, true), (0, false)] {
            fs::write(&path, [6, 0, 0, 0, value]).unwrap();
            assert_eq!(is_secure_boot(dir.path()), is_on);
        }
    }

    fn signed(kind: u8, first: u8) -> Vec<u8> {
        let mut signed = b"module bytes".to_vec();
        signed.extend([first; 30]);
        signed.extend([0, 0, kind, 0, 0, 0, 0, 0]);
        signed.extend(30_u32.to_be_bytes());
        signed.extend(MARKER);
        signed
    }

    #[test]
    fn a_signature_has_the_form_that_kernels_take() {
        assert_eq!(split(&signed(2, 0x30)).unwrap().0, b"module bytes");
        assert!(ModuleFacts::of("a", &signed(2, 0x30)).signed);
        assert!(!ModuleFacts::of("a", &signed(2, 0xaa)).signed, "no PKCS#7");
        assert!(!ModuleFacts::of("a", &signed(1, 0x30)).signed, "X.509, which is taken no more");
        assert!(!ModuleFacts::of("a", b"plain").signed);
        let mut lying = vec![0; 4];
        lying.extend([0xff; 12]);
        lying.extend(MARKER);
        assert_eq!(split(&lying), None);
    }

    #[test]
    fn a_module_is_for_its_release_or_for_any_with_symbol_versions() {
        let of = |vermagic: &str| ModuleFacts { vermagic: vermagic.into(), ..ModuleFacts::default() };
        assert!(of("6.1.0 SMP preempt mod_unload ").is_for("6.1.0"));
        assert!(!of("6.1.0 SMP preempt mod_unload ").is_for("6.1.1"));
        assert!(of("6.1.0 SMP preempt mod_unload modversions ").is_for("6.1.1"));
        assert!(of("").is_for("6.1.1"), "it does not say");
    }
}
