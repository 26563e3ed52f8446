//! Keys and signatures in the format of minisign (<https://jedisct1.github.io/minisign/>), so that the stock
//! program checks what is signed here, and its keys are read.
//!
//! A signature is Ed25519 over the BLAKE2b-512 of the file ("ED"), and a second one binds the comment that
//! it is shown with. Secret keys are stored without a pass phrase, as `minisign -G -W` makes them: the
//! machine that dies has nobody who types one.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use blake2::digest::consts::U32;
use blake2::{Blake2b, Blake2b512, Digest};
use ed25519_dalek::{Signature as Ed25519, Signer, SigningKey, VerifyingKey};
use zeroize::Zeroizing;

/// The algorithm of keys, and of signatures over a file itself.
const LEGACY: &[u8; 2] = b"Ed";
/// That of signatures over the BLAKE2b-512 of a file.
const HASHED: &[u8; 2] = b"ED";
/// The checksum of a secret key: BLAKE2b-256.
const CHECKSUM: &[u8; 2] = b"B2";
/// No key derivation: the key is stored as it is.
const NO_PASS_PHRASE: &[u8; 2] = &[0, 0];
const UNTRUSTED: &str = "untrusted comment: ";
const TRUSTED: &str = "trusted comment: ";
/// Characters of a comment; minisign reads no more (COMMENTMAXBYTES, TRUSTEDCOMMENTMAXBYTES).
const LONGEST_COMMENT: usize = 1000;

/// Why a text is no key or no signature, or does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Not in the format.
    #[error("it is no {0} of minisign")]
    Format(&'static str),
    /// A secret key that asks for a pass phrase.
    #[error("the secret key has a pass phrase; a key for a machine has none (`minisign -G -W`)")]
    PassPhrase,
    /// Another key has signed.
    #[error("it is by the key {found:016X}, not by {wanted:016X}")]
    OtherKey {
        /// The number of the key that has signed.
        found: u64,
        /// That of the key that was to sign.
        wanted: u64,
    },
    /// The file is not what was signed.
    #[error("the signature does not hold: the file or the signature was changed")]
    Changed,
    /// Its comment is not what was signed.
    #[error("the signature holds, its trusted comment does not: the comment was changed")]
    CommentChanged,
}

/// A key that signs. Wiped from memory when it is dropped.
#[derive(Clone)]
pub struct SecretKey {
    number: [u8; 8],
    key: SigningKey,
}

impl core::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SecretKey").field("public", &self.public()).finish_non_exhaustive()
    }
}

/// A key that checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey {
    number: [u8; 8],
    key: [u8; 32],
}

/// A signature that was read and not yet checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    is_hashed: bool,
    number: [u8; 8],
    of_file: [u8; 64],
    of_comment: [u8; 64],
    comment: String,
}

impl SecretKey {
    /// The key that 32 random bytes make. Its number is the beginning of the SHA-256 of its public half.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        use sha2::Digest as _;
        let key = SigningKey::from_bytes(seed);
        let sum: [u8; 32] = sha2::Sha256::digest(key.verifying_key().as_bytes()).into();
        Self { number: sum.first_chunk().copied().unwrap_or_default(), key }
    }

    /// Its public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey { number: self.number, key: self.key.verifying_key().to_bytes() }
    }

    /// The text of a signature file over `file`. `comment` is signed, too; characters that would end it are
    /// replaced.
    #[must_use]
    pub fn sign(&self, file: &[u8], comment: &str) -> String {
        let comment: String =
            comment.chars().map(|c| if c.is_control() { '?' } else { c }).take(LONGEST_COMMENT).collect();
        let of_file = self.key.sign(&Blake2b512::digest(file)).to_bytes();
        let signed = [of_file.as_slice(), comment.as_bytes()].concat();
        let of_comment = self.key.sign(&signed).to_bytes();
        let line = STANDARD.encode([HASHED.as_slice(), &self.number, &of_file].concat());
        let number = self.public().number();
        let global = STANDARD.encode(of_comment);
        format!("{UNTRUSTED}signature by the key {number:016X}\n{line}\n{TRUSTED}{comment}\n{global}\n")
    }

    /// The text of a file with this key, which the stock program signs with.
    #[must_use]
    pub fn to_file(&self) -> Zeroizing<String> {
        let secret = Zeroizing::new(self.key.to_keypair_bytes());
        let sum = checksum(self.number, secret.as_slice());
        // Salt and limits of a key derivation that is not used.
        let mut bytes = Zeroizing::new(Vec::with_capacity(158));
        let parts: [&[u8]; 7] =
            [LEGACY, NO_PASS_PHRASE, CHECKSUM, &[0; 48], &self.number, secret.as_slice(), &sum];
        for part in parts {
            bytes.extend_from_slice(part);
        }
        let line = Zeroizing::new(STANDARD.encode(&*bytes));
        Zeroizing::new(format!("{UNTRUSTED}minisign secret key {:016X}\n{}\n", self.public().number(), *line))
    }

    /// Reads the text of such a file.
    pub fn parse(text: &str) -> Result<Self, SignatureError> {
        let wrong = SignatureError::Format("secret key");
        let line = text.lines().nth(1).ok_or(wrong)?.trim();
        let bytes = Zeroizing::new(STANDARD.decode(line).map_err(|_| wrong)?);
        let (algorithm, rest) = bytes.split_first_chunk::<2>().ok_or(wrong)?;
        let (derivation, rest) = rest.split_first_chunk::<2>().ok_or(wrong)?;
        let (_, rest) = rest.split_first_chunk::<50>().ok_or(wrong)?; // which checksum, salt, limits
        let (number, rest) = rest.split_first_chunk::<8>().ok_or(wrong)?;
        let (secret, sum) = rest.split_first_chunk::<64>().ok_or(wrong)?;
        if algorithm != LEGACY {
            return Err(wrong);
        }
        if derivation != NO_PASS_PHRASE {
            return Err(SignatureError::PassPhrase);
        }
        let key = SigningKey::from_keypair_bytes(secret).map_err(|_| wrong)?;
        // minisign leaves the checksum of a key without a pass phrase as zeros, in some versions.
        if sum != checksum(*number, secret) && sum != [0; 32] {
            return Err(wrong);
        }
        Ok(Self { number: *number, key })
    }
}

fn checksum(number: [u8; 8], secret: &[u8]) -> [u8; 32] {
    Blake2b::<U32>::new_with_prefix(LEGACY).chain_update(number).chain_update(secret).finalize().into()
}

impl PublicKey {
    /// Its number, as minisign shows it.
    #[must_use]
    pub fn number(&self) -> u64 {
        u64::from_le_bytes(self.number)
    }

    /// Reads a key: a line of base64, or the text of a file with a comment before it.
    pub fn parse(text: &str) -> Result<Self, SignatureError> {
        let wrong = SignatureError::Format("public key");
        let line = text.lines().map(str::trim).rfind(|line| !line.is_empty()).ok_or(wrong)?;
        let bytes = STANDARD.decode(line).map_err(|_| wrong)?;
        let (algorithm, rest) = bytes.split_first_chunk::<2>().ok_or(wrong)?;
        let (number, rest) = rest.split_first_chunk::<8>().ok_or(wrong)?;
        let key: [u8; 32] = rest.try_into().map_err(|_| wrong)?;
        if algorithm != LEGACY || VerifyingKey::from_bytes(&key).is_err() {
            return Err(wrong);
        }
        Ok(Self { number: *number, key })
    }

    /// The text of a file with this key.
    #[must_use]
    pub fn to_file(&self) -> String {
        format!("{UNTRUSTED}minisign public key {:016X}\n{self}\n", self.number())
    }

    /// Checks that this key has signed `file`, and the comment.
    pub fn verify(&self, file: &[u8], signature: &Signature) -> Result<(), SignatureError> {
        if signature.number != self.number {
            let found = u64::from_le_bytes(signature.number);
            return Err(SignatureError::OtherKey { found, wanted: self.number() });
        }
        let key = VerifyingKey::from_bytes(&self.key).map_err(|_| SignatureError::Format("public key"))?;
        let of_file = Ed25519::from_bytes(&signature.of_file);
        let hashed = Blake2b512::digest(file);
        let signed = if signature.is_hashed { hashed.as_slice() } else { file };
        key.verify_strict(signed, &of_file).map_err(|_| SignatureError::Changed)?;
        let signed = [signature.of_file.as_slice(), signature.comment.as_bytes()].concat();
        let of_comment = Ed25519::from_bytes(&signature.of_comment);
        key.verify_strict(&signed, &of_comment).map_err(|_| SignatureError::CommentChanged)
    }
}

/// As `minisign -P` takes it.
impl core::fmt::Display for PublicKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&STANDARD.encode([LEGACY.as_slice(), &self.number, &self.key].concat()))
    }
}

impl Signature {
    /// Reads the text of a signature file.
    pub fn parse(text: &str) -> Result<Self, SignatureError> {
        let wrong = SignatureError::Format("signature");
        let mut lines = text.lines();
        lines.next().filter(|line| line.starts_with(UNTRUSTED)).ok_or(wrong)?;
        let bytes = STANDARD.decode(lines.next().ok_or(wrong)?.trim()).map_err(|_| wrong)?;
        let comment = lines.next().and_then(|line| line.strip_prefix(TRUSTED)).ok_or(wrong)?;
        let global = STANDARD.decode(lines.next().ok_or(wrong)?.trim()).map_err(|_| wrong)?;
        let (algorithm, rest) = bytes.split_first_chunk::<2>().ok_or(wrong)?;
        let (number, rest) = rest.split_first_chunk::<8>().ok_or(wrong)?;
        if algorithm != LEGACY && algorithm != HASHED {
            return Err(wrong);
        }
        Ok(Self {
            is_hashed: algorithm == HASHED,
            number: *number,
            of_file: rest.try_into().map_err(|_| wrong)?,
            of_comment: global.try_into().map_err(|_| wrong)?,
            comment: comment.to_owned(),
        })
    }

    /// What the signer says beside it; signed, once [`PublicKey::verify`] says so.
    #[must_use]
    pub fn comment(&self) -> &str {
        &self.comment
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(byte: u8) -> SecretKey {
        SecretKey::from_seed(&[byte; 32])
    }

    #[test]
    fn a_signature_holds_for_its_file_its_comment_and_its_key() {
        let text = key(1).sign(b"a manifest", "evidence 7\nof host h");
        let signature = Signature::parse(&text).unwrap();
        assert_eq!(signature.comment(), "evidence 7?of host h", "one line");
        let public = PublicKey::parse(&key(1).public().to_file()).unwrap();
        assert_eq!(public, PublicKey::parse(&public.to_string()).unwrap());
        assert_eq!(public.verify(b"a manifest", &signature), Ok(()));
        assert_eq!(public.verify(b"a Manifest", &signature), Err(SignatureError::Changed));
        let other = key(2).public().verify(b"a manifest", &signature).unwrap_err();
        assert!(matches!(other, SignatureError::OtherKey { .. }), "{other}");
        let changed = Signature { comment: "evidence 8".into(), ..signature };
        assert_eq!(public.verify(b"a manifest", &changed), Err(SignatureError::CommentChanged));
    }

    #[test]
    fn a_secret_key_is_read_as_it_was_written() {
        let read = SecretKey::parse(&key(3).to_file()).unwrap();
        assert_eq!(read.public(), key(3).public());
        let mut text = key(3).to_file().to_string();
        text.replace_range(60..61, if &text[60..61] == "A" { "B" } else { "A" });
        assert!(SecretKey::parse(&text).is_err());
        assert_eq!(SecretKey::parse("").unwrap_err(), SignatureError::Format("secret key"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,300}") {
            let _ = (SecretKey::parse(&text), PublicKey::parse(&text), Signature::parse(&text));
        }

        #[test]
        fn one_changed_character_is_noticed(at in 0_usize..400, with in "[A-Za-z0-9+/]") {
            let text = key(1).sign(b"a manifest", "a comment");
            let at = at % text.len();
            let mut changed = text.clone();
            changed.replace_range(at..=at, &with);
            // The first line is not signed, and says so.
            let is_signed = at > text.find('\n').unwrap();
            prop_assume!(changed != text && is_signed);
            let read = Signature::parse(&changed);
            prop_assert!(read.is_err() || key(1).public().verify(b"a manifest", &read.unwrap()).is_err());
        }
    }
}
