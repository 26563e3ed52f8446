//! Values that are well formed and still cannot be. Refused while they are parsed, so that the
//! error has the line.

use serde::de::{Deserialize, Deserializer, Error};

use super::duration::{Milliseconds, Seconds};
use super::planned::MAX_LIVE;
use super::{Exclude, FinalAction, Size};

/// Wraps a check for `#[serde(deserialize_with)]`.
fn checked<'de, D, T, C>(from: D, check: impl FnOnce(T) -> Result<C, String>) -> Result<C, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    check(T::deserialize(from)?).map_err(D::Error::custom)
}

pub(super) fn path<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    checked(from, |path| absolute_path(path).map(Some))
}

pub(super) fn program<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    checked(from, absolute_path)
}

pub(super) fn paths<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    checked(from, |paths: Vec<String>| paths.iter().map(|path| path_below(path)).collect())
}

pub(super) fn live_limit<'de, D: Deserializer<'de>>(from: D) -> Result<Size, D::Error> {
    checked(from, |limit: Size| {
        let fits = (1 << 16..=MAX_LIVE).contains(&limit.0);
        fits.then_some(limit)
            .ok_or_else(|| format!("{limit}: must be at least 64K and at most {}", Size(MAX_LIVE)))
    })
}

pub(super) fn keep<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    checked(from, |keep: u32| (keep > 0).then_some(Some(keep)).ok_or_else(|| "must be at least 1".to_owned()))
}

pub(super) fn seconds<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    checked(from, |Seconds(seconds)| at_least_a_second(seconds).map(Some))
}

/// A duration that may be 0.
pub(super) fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    Seconds::deserialize(from).map(|Seconds(seconds)| seconds)
}

pub(super) fn given_duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    duration(from).map(Some)
}

/// A duration that the kernel takes as 32 bits.
pub(super) fn short_duration<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    checked(from, |Seconds(seconds)| in_32_bits(seconds))
}

pub(super) fn milliseconds<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    checked(from, |Milliseconds(ms)| in_32_bits(ms))
}

fn in_32_bits(number: u64) -> Result<u32, String> {
    u32::try_from(number).map_err(|_| format!("{number}: a duration of at most {} is taken here", u32::MAX))
}

/// S3 takes no parts below 5 MiB but the last; above 64 MiB they would not fit in the memory of a
/// capture kernel.
pub(super) fn part_size<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Size>, D::Error> {
    checked(from, |size: Size| {
        let fits = (5 << 20..=64 << 20).contains(&size.0);
        fits.then_some(Some(size)).ok_or_else(|| format!("{size}: must be from 5M to 64M"))
    })
}

pub(super) fn parts<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    checked(from, |parts: u32| {
        let fits = (1..=10_000).contains(&parts);
        fits.then_some(Some(parts)).ok_or_else(|| format!("{parts}: must be from 1 to 10000"))
    })
}

pub(super) fn pins<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<String>>, D::Error> {
    checked(from, |pins: Vec<String>| {
        // 32 bytes in base64 are 43 digits and a =.
        let is_pin = |pin: &str| {
            let digits = pin.strip_prefix("sha256/").and_then(|rest| rest.strip_suffix('='));
            digits.is_some_and(|it| {
                it.len() == 43 && it.bytes().all(|c| c.is_ascii_alphanumeric() || b"+/".contains(&c))
            })
        };
        match pins.iter().find(|pin| !is_pin(pin)) {
            Some(bad) => Err(format!(
                "{bad:?} is no pin: write \"sha256/\" and the digest of the public key (SPKI) in base64"
            )),
            None => Ok(Some(pins)),
        }
    })
}

pub(super) fn classes<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Exclude>, D::Error> {
    checked(from, |names: Vec<String>| Exclude::classes(&names).map(Some).map_err(|error| error.to_string()))
}

pub(super) fn preset<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Exclude>, D::Error> {
    checked(from, |name: String| Exclude::preset(&name).map(Some).map_err(|error| error.to_string()))
}

pub(super) fn cpus<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    checked(from, |cpus: u32| {
        (1..=1024)
            .contains(&cpus)
            .then_some(cpus)
            .ok_or_else(|| format!("{cpus} CPUs: must be from 1 to 1024"))
    })
}

pub(super) fn stall_timeout<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    checked(from, |Seconds(seconds)| at_least_a_second(seconds))
}

pub(super) fn one_line<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    checked(from, line)
}

pub(super) fn command_line<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    checked(from, |text| line(text).map(Some))
}

pub(super) fn failure<'de, D: Deserializer<'de>>(from: D) -> Result<Option<FinalAction>, D::Error> {
    checked(from, |action| {
        let keeps_memory = action != FinalAction::Kexec;
        keeps_memory.then_some(Some(action)).ok_or_else(|| {
            "kexec would write the next kernel over memory that is not saved: use one of the others"
                .to_owned()
        })
    })
}

fn line(text: String) -> Result<String, String> {
    let clean = !text.contains(['\n', '\0']);
    clean.then_some(text).ok_or_else(|| "a command line must be one line without NUL".to_owned())
}

/// A directory on a target.
pub(super) fn absolute_path(path: String) -> Result<String, String> {
    let clean = path.starts_with('/')
        && path.split('/').all(|part| !matches!(part, "." | ".."))
        && !path.contains('\0');
    if clean { Ok(path) } else { Err(format!("{path:?} is not an absolute path without . and ..")) }
}

/// A path that stays below the directory that it is joined to; a leading slash means nothing.
fn path_below(path: &str) -> Result<String, String> {
    let below = path.trim_start_matches('/');
    let clean = !below.is_empty()
        && below.split('/').all(|part| !matches!(part, "" | "." | ".."))
        && !path.contains('\0');
    if clean { Ok(below.to_owned()) } else { Err(format!("{path:?} is no path below a directory")) }
}

/// A timeout of zero would end every capture before it begins.
pub(super) fn at_least_a_second(seconds: u64) -> Result<u64, String> {
    (seconds > 0).then_some(seconds).ok_or_else(|| "must be at least 1 second".to_owned())
}
