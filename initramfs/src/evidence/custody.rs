//! `custody.jsonl`: each hand-over of a capture, a line each, signed by who does it. Lines are appended and
//! never rewritten: each has the SHA-256 of the line before it, and of the manifest that it is about.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base::time::utc;
use evidence::canonical::{self, CanonicalError};
use evidence::minisign::{PublicKey, SecretKey, Signature, SignatureError};
use evidence::{hex, sha256};
use nix::fcntl::{Flock, FlockArg};
use nix::libc;
use russh::keys::ssh_key::{self, HashAlg, LineEnding, SshSig};
use serde::{Deserialize, Serialize};

use super::key;
use crate::sys::wiping;
use crate::{host, who};

/// The file in the directory of a capture.
pub const NAME: &str = "custody.jsonl";
/// What signatures by SSH keys are for (`ssh-keygen -Y`, `-n`).
const NAMESPACE: &str = "afterimage-custody";
/// Bytes of a chain that is believed.
const LARGEST: u64 = 16 << 20;

/// Why a line was not added, or the chain cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum CustodyError {
    /// A file.
    #[error("{what} {path}")]
    File {
        /// What was being done.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The key is neither of SSH nor of minisign.
    #[error(
        "{path} is no private key of minisign, nor one of SSH that opens without a pass phrase: {source}"
    )]
    Key {
        /// Which.
        path: PathBuf,
        /// What minisign's reader says.
        source: SignatureError,
    },
    /// Signing failed.
    #[error("signing with an SSH key")]
    Ssh(#[from] ssh_key::Error),
    /// The line has no text.
    #[error("writing the line")]
    Text(#[from] CanonicalError),
    /// A line behind a chain that does not hold would hide that.
    #[error(
        "line {0} of the chain does not hold, so none is added: `afterimage custody show` says what is wrong"
    )]
    Broken(usize),
}

/// A hand-over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Entry {
    /// Counts from 0.
    pub number: u64,
    /// When, RFC 3339, by the clock of the machine where it was added.
    pub at: String,
    /// Who hands over.
    pub from: String,
    /// To whom.
    pub to: String,
    /// Why.
    pub why: String,
    /// The user and the machine that have added it.
    pub by: String,
    /// SHA-256 of `manifest.json`, hex.
    pub manifest: String,
    /// SHA-256 of the line before it, hex; of the first one: empty.
    pub before: String,
    /// The key that signs it: as `minisign -P` takes it, or a line of authorized_keys; empty: nobody signs.
    pub key: String,
}

/// A line of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Line {
    entry: Entry,
    /// Over the canonical JSON of the entry: a file of minisign, or of `ssh-keygen -Y sign`.
    signature: String,
}

/// A line, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// What it says.
    pub entry: Entry,
    /// Whether a key has signed it.
    pub signed: bool,
    /// Why it does not hold; empty if it does.
    pub fault: String,
}

/// Who hands a capture to whom, and why.
#[derive(Clone, Debug, Default)]
pub struct Handover {
    /// Who; empty: who runs this.
    pub from: String,
    /// To whom.
    pub to: String,
    /// Why.
    pub why: String,
    /// The private key that signs: of minisign or of SSH. None: the host's, where this process may read it.
    pub key: Option<PathBuf>,
}

enum Signer {
    Minisign(Box<SecretKey>),
    Ssh(Box<ssh_key::PrivateKey>),
    Nobody,
}

impl Signer {
    fn open(path: Option<&Path>) -> Result<Self, CustodyError> {
        wiping::begin();
        let Some(path) = path else {
            // Not made here: only `load` and `keys` make keys.
            let own = fs::read_to_string(key::PATH).ok().map(zeroize::Zeroizing::new);
            let own = own.and_then(|text| SecretKey::parse(&text).ok());
            return Ok(own.map_or(Self::Nobody, |key| Self::Minisign(Box::new(key))));
        };
        let text = fs::read_to_string(path).map_err(failed("reading", path))?;
        let text = zeroize::Zeroizing::new(text);
        match ssh_key::PrivateKey::from_openssh(text.as_bytes()) {
            Ok(key) if !key.is_encrypted() => Ok(Self::Ssh(Box::new(key))),
            _ => match SecretKey::parse(&text) {
                Ok(key) => Ok(Self::Minisign(Box::new(key))),
                Err(source) => Err(CustodyError::Key { path: path.to_owned(), source }),
            },
        }
    }

    fn public(&self) -> Result<String, CustodyError> {
        Ok(match self {
            Self::Minisign(key) => key.public().to_string(),
            Self::Ssh(key) => key.public_key().to_openssh()?,
            Self::Nobody => String::new(),
        })
    }

    fn sign(&self, entry: &Entry, text: &str) -> Result<String, CustodyError> {
        Ok(match self {
            Self::Minisign(key) => {
                key.sign(text.as_bytes(), &format!("custody {} of {}", entry.number, entry.manifest))
            }
            Self::Ssh(key) => {
                key.sign(NAMESPACE, HashAlg::Sha512, text.as_bytes())?.to_pem(LineEnding::LF)?
            }
            Self::Nobody => String::new(),
        })
    }
}

/// Appends a hand-over to the chain of a capture.
pub fn add(directory: &Path, handover: &Handover) -> Result<Entry, CustodyError> {
    let path = directory.join(NAME);
    let signer = Signer::open(handover.key.as_deref())?;
    let manifest = directory.join("manifest.json");
    let manifest = fs::read(&manifest).map_err(failed("reading", &manifest))?;
    let mut options = OpenOptions::new();
    options
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = options.open(&path).map_err(failed("opening", &path))?;
    let mut file = Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| failed("locking", &path)(errno.into()))?;
    let text = text_of(&file).map_err(failed("reading", &path))?;
    let shown = check(&text, &hex(&sha256(&manifest)));
    if let Some(broken) = shown.iter().position(|line| !line.fault.is_empty()) {
        return Err(CustodyError::Broken(broken.saturating_add(1)));
    }
    let by = format!("{} on {}", who::who(), host::read("/proc/sys/kernel/hostname"));
    let from = if handover.from.is_empty() { by.clone() } else { handover.from.clone() };
    let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    let entry = Entry {
        number: base::addr::to_u64(shown.len()),
        at: utc(now).unwrap_or_default(),
        from,
        to: handover.to.clone(),
        why: handover.why.clone(),
        by,
        manifest: hex(&sha256(&manifest)),
        before: text.lines().next_back().map(|line| hex(&sha256(line.as_bytes()))).unwrap_or_default(),
        key: signer.public()?,
    };
    let signature = signer.sign(&entry, &canonical::to_string(&entry)?)?;
    let line = canonical::to_string(&Line { entry: entry.clone(), signature })? + "\n";
    file.write_all(line.as_bytes()).and_then(|()| file.sync_all()).map_err(failed("writing", &path))?;
    Ok(entry)
}

/// Takes down that captures were copied off a device, in each directory of these files that has a manifest.
pub fn note_recovered<'a>(files: impl Iterator<Item = &'a Path>, device: &Path) {
    let directories: BTreeSet<&Path> = files.filter_map(Path::parent).collect();
    let why = format!("afterimage recover: copied off {}", device.display());
    for directory in directories.into_iter().filter(|directory| directory.join("manifest.json").exists()) {
        if let Err(error) = add(directory, &Handover { why: why.clone(), ..Handover::default() }) {
            log::warn!("no line of custody: {}", base::log::chain(&error));
        }
    }
}

/// The chain of a capture. Nothing if there is none.
pub fn show(directory: &Path) -> Result<Vec<Shown>, CustodyError> {
    let path = directory.join(NAME);
    let mut options = OpenOptions::new();
    let open = options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&path);
    let file = match open {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("opening", &path)(error)),
    };
    let text = text_of(&file).map_err(failed("reading", &path))?;
    let manifest = directory.join("manifest.json");
    let manifest = fs::read(&manifest).map_err(failed("reading", &manifest))?;
    Ok(check(&text, &hex(&sha256(&manifest))))
}

fn text_of(file: &File) -> io::Result<String> {
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(file, LARGEST), &mut text)?;
    Ok(text)
}

/// Checks a chain about the manifest with this sum.
fn check(text: &str, manifest: &str) -> Vec<Shown> {
    let mut before = String::new();
    let shown = text.lines().zip(0_u64..).map(|(text, number)| {
        let line: Line = serde_json::from_str(text).unwrap_or_default();
        let fault = fault(&line, text, number, &before, manifest).unwrap_or_default();
        before = hex(&sha256(text.as_bytes()));
        Shown { signed: !line.entry.key.is_empty(), entry: line.entry, fault }
    });
    shown.collect()
}

fn fault(line: &Line, text: &str, number: u64, before: &str, manifest: &str) -> Option<String> {
    let Line { entry, signature } = line;
    if canonical::to_string(line).ok().as_deref() != Some(text) {
        return Some("it is no line of a chain of custody".to_owned());
    }
    if entry.number != number {
        return Some(format!("its number is {}: lines are missing, or were added or moved", entry.number));
    }
    if entry.before != before {
        return Some("it was not written behind the line that stands before it".to_owned());
    }
    if entry.manifest != manifest {
        return Some("it is about another manifest".to_owned());
    }
    let text = canonical::to_string(entry).ok()?;
    signature_fault(&entry.key, text.as_bytes(), signature)
}

fn signature_fault(key: &str, text: &[u8], signature: &str) -> Option<String> {
    if key.is_empty() {
        return None;
    }
    if let Ok(public) = PublicKey::parse(key) {
        let held = Signature::parse(signature).and_then(|signature| public.verify(text, &signature));
        return held.err().map(|error| error.to_string());
    }
    let held = ssh_key::PublicKey::from_openssh(key)
        .and_then(|public| public.verify(NAMESPACE, text, &SshSig::from_pem(signature)?));
    held.err().map(|error| format!("the signature by an SSH key does not hold: {error}"))
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> CustodyError + 'a {
    move |source| CustodyError::File { what, path: path.to_owned(), source }
}

impl Shown {
    /// A line for people.
    #[must_use]
    pub fn text(&self) -> String {
        let Entry { number, at, from, to, why, .. } = &self.entry;
        let signed = if self.signed { "signed" } else { "not signed" };
        let to = if to.is_empty() { String::new() } else { format!(" to {to}") };
        let held =
            if self.fault.is_empty() { String::new() } else { format!("; DOES NOT HOLD: {}", self.fault) };
        base::text::line(&format!("{number} {at} {from}{to}: {why} ({signed}{held})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capture() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("manifest.json"), "{}").unwrap();
        let ssh = ssh_key::PrivateKey::random(&mut russh::keys::key::safe_rng(), ssh_key::Algorithm::Ed25519);
        let pem = ssh.unwrap().to_openssh(LineEnding::LF).unwrap();
        fs::write(dir.path().join("id"), pem.as_bytes()).unwrap();
        fs::write(dir.path().join("person.key"), &*SecretKey::from_seed(&[5; 32]).to_file()).unwrap();
        dir
    }

    fn handover(dir: &Path, key: &str) -> Handover {
        let key = (!key.is_empty()).then(|| dir.join(key));
        Handover { from: "ada".into(), to: "the lab".into(), why: "analysis".into(), key }
    }

    #[test]
    fn hand_overs_are_signed_by_keys_of_both_kinds_and_bound_to_each_other() {
        let dir = capture();
        for key in ["id", "person.key", "id"] {
            add(dir.path(), &handover(dir.path(), key)).unwrap();
        }
        let shown = show(dir.path()).unwrap();
        assert!(
            shown.len() == 3 && shown.iter().all(|line| line.signed && line.fault.is_empty()),
            "{shown:?}"
        );
        assert!(shown[1].text().contains("ada to the lab: analysis (signed)"), "{}", shown[1].text());
        let path = dir.path().join(NAME);
        let good = fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = good.lines().collect();
        let faults = |text: String| {
            fs::write(&path, text).unwrap();
            show(dir.path()).unwrap().iter().filter(|line| !line.fault.is_empty()).count()
        };
        assert!(faults(good.replacen("the lab", "the pub", 1)) > 0, "an SSH signature");
        assert!(
            faults(format!("{}\n{}\n", lines[0], lines[1].replace("the lab", "the pub"))) > 0,
            "minisign"
        );
        assert!(faults(format!("{}\n{}\n", lines[0], lines[2])) > 0, "one taken out");
        assert!(faults(format!("{}\n{}\n{}\n", lines[1], lines[0], lines[2])) > 0, "two changed places");
        assert!(matches!(add(dir.path(), &handover(dir.path(), "id")), Err(CustodyError::Broken(1))));
        assert_eq!(faults(good), 0);
        fs::write(dir.path().join("manifest.json"), "{\"other\":1}").unwrap();
        assert!(show(dir.path()).unwrap().iter().all(|line| line.fault == "it is about another manifest"));
    }

    #[test]
    fn a_key_that_cannot_sign_is_named() {
        let dir = capture();
        fs::write(dir.path().join("rubbish"), "rubbish").unwrap();
        let error = add(dir.path(), &handover(dir.path(), "rubbish")).unwrap_err().to_string();
        assert!(error.contains("rubbish is no private key"), "{error}");
        assert!(show(dir.path()).unwrap().is_empty());
        fs::remove_file(dir.path().join("manifest.json")).unwrap();
        assert!(
            add(dir.path(), &handover(dir.path(), "id")).is_err(),
            "there is nothing that it could be about"
        );
    }
}
