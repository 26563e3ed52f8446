//! Durations as people write them: `300`, `"90s"`, `"5m"`, `"1h30m"`, `"2 days"`.

use core::fmt;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// Units by their names, in milliseconds; a month or a year has no fixed length, and is none.
const UNITS: [(&[&str], u64); 5] = [
    (&["ms", "msec", "millisecond", "milliseconds"], 1),
    (&["s", "sec", "secs", "second", "seconds"], 1000),
    (&["m", "min", "mins", "minute", "minutes"], 60 * 1000),
    (&["h", "hour", "hours"], 3600 * 1000),
    (&["d", "day", "days"], 24 * 3600 * 1000),
];

/// A number of seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seconds(pub(super) u64);

/// A number of milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Milliseconds(pub(super) u64);

/// Reads a duration in milliseconds; a bare number is of `bare` milliseconds each.
fn milliseconds(text: &str, bare: u64) -> Option<u64> {
    let mut rest = text.trim();
    let mut total: Option<u64> = None;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (digits, behind) = rest.split_at(end);
        let behind = behind.trim_start();
        let end = behind.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(end);
        let unit = match unit {
            "" if total.is_none() && behind.is_empty() => bare,
            unit => UNITS.iter().find(|(names, _)| names.contains(&unit))?.1,
        };
        let part = digits.parse::<u64>().ok()?.checked_mul(unit)?;
        total = Some(total.unwrap_or(0).checked_add(part)?);
        rest = behind.trim_start();
    }
    total
}

impl Seconds {
    /// Reads a text; fractions of a second are none.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let whole = |ms: u64| ms.is_multiple_of(1000).then_some(Self(ms / 1000));
        milliseconds(text, 1000).and_then(whole).ok_or_else(|| {
            format!("{text:?} is not a duration: write seconds, or a text such as \"90s\", \"5m\", \"1h30m\" or \"2d\"")
        })
    }
}

impl Milliseconds {
    fn parse(text: &str) -> Result<Self, String> {
        milliseconds(text, 1).map(Self).ok_or_else(|| {
            format!("{text:?} is not a duration: write milliseconds, or a text such as \"100ms\" or \"1s\"")
        })
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Of;

        impl Visitor<'_> for Of {
            type Value = Seconds;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration: seconds, or a text such as \"90s\", \"5m\", \"1h30m\" or \"2d\"")
            }

            fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Seconds, E> {
                Ok(Seconds(seconds))
            }

            fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Seconds, E> {
                let negative = || E::custom(format!("{seconds}: a duration is not negative"));
                u64::try_from(seconds).map(Seconds).map_err(|_| negative())
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Seconds, E> {
                Seconds::parse(text).map_err(E::custom)
            }
        }

        from.deserialize_any(Of)
    }
}

impl<'de> Deserialize<'de> for Milliseconds {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Of;

        impl Visitor<'_> for Of {
            type Value = Milliseconds;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration: milliseconds, or a text such as \"100ms\" or \"1s\"")
            }

            fn visit_i64<E: de::Error>(self, ms: i64) -> Result<Milliseconds, E> {
                let negative = || E::custom(format!("{ms}: a duration is not negative"));
                u64::try_from(ms).map(Milliseconds).map_err(|_| negative())
            }

            fn visit_u64<E: de::Error>(self, ms: u64) -> Result<Milliseconds, E> {
                Ok(Milliseconds(ms))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Milliseconds, E> {
                Milliseconds::parse(text).map_err(E::custom)
            }
        }

        from.deserialize_any(Of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, seconds) in [
            ("0", 0),
            ("300", 300),
            ("90s", 90),
            ("5m", 300),
            ("5 min", 300),
            ("1h30m", 5400),
            ("1 hour 30 minutes", 5400),
            ("2d", 172_800),
            (" 1 day ", 86_400),
            ("3000ms", 3),
        ] {
            assert_eq!(Seconds::parse(text), Ok(Seconds(seconds)), "{text}");
        }
        for bad in
            ["", " ", "m", "-5m", "5x", "1.5h", "5M", "1h30", "30 1h", "99999999999999999d", "1500ms", "5m!"]
        {
            assert!(Seconds::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn who_is_slow_keeps_no_machine_down_for_ever() {
        const GIB: u64 = 1 << 30;
        let deadline = |text: &str, memory: u64| Config::parse(text).unwrap().deadline(memory);
        let nfs = "[[target]]\ntype = \"nfs\"\nurl = \"nfs://h/d\"\n";
        assert_eq!(deadline("", 0), Some(7200));
        assert_eq!(deadline("", 16 * GIB), Some(7200 + 1024));
        assert_eq!(deadline(nfs, 16 * GIB), Some(7200 + 16_384));
        assert_eq!(deadline(nfs, 256 * GIB), Some(86_400), "a day, where that is longer");
        assert_eq!(deadline(nfs, 4096 * GIB), deadline("", 4096 * GIB));
        assert_eq!(deadline("", u64::MAX), Some(7200 + (u64::MAX >> 20) / 16));
        assert_eq!(deadline("[capture]\ndeadline = 0\n", GIB), None);
        assert_eq!(deadline("[capture]\ndeadline = \"3h\"\n", GIB), Some(10_800));
    }

    #[test]
    fn each_duration_of_the_configuration_takes_them() {
        let target = "[[target]]\ntype = \"nfs\"\nurl = \"nfs://h/d\"\n";
        let network = "[[network]]\nname = \"a\"\ncard = \"eth0\"\naddress = [\"dhcp\"]\n";
        let bond =
            "[[network]]\nname = \"b\"\ncard = \"eth1\"\n[[network]]\nname = \"c\"\naddress = [\"dhcp\"]\n";
        for (what, text) in [
            ("stall_timeout", "[capture]\nstall_timeout = @\n".to_owned()),
            ("step_timeout", "[capture]\nstep_timeout = @\n".to_owned()),
            ("deadline", "[capture]\ndeadline = @\n".to_owned()),
            ("watchdog", "[capture]\nwatchdog = @\n".to_owned()),
            ("within", "[capture]\ncrash_loop = { crashes = 3, within = @ }\n".to_owned()),
            ("guard", "[finish]\nguard = @\n".to_owned()),
            ("hook", "[[hook]]\nwhen = \"after\"\npath = \"/h\"\ntimeout = @\n".to_owned()),
            (
                "collector",
                "[[collector]]\nname = \"c\"\nclass = \"time\"\nfiles = [\"/f\"]\ntimeout = @\n".to_owned(),
            ),
            ("target.wait", format!("{target}wait = @\n")),
            ("target.retry", format!("{target}retry = @\n")),
            ("network.wait", format!("{network}wait = @\n")),
            (
                "miimon",
                format!("{bond}bond = {{ members = [\"b\"], mode = \"active-backup\", miimon = @ }}\n"),
            ),
        ] {
            let (number, words) = if what == "miimon" { ("100", "\"100ms\"") } else { ("120", "\"2m\"") };
            let parse =
                |value: &str| Config::parse(&text.replace('@', value)).map_err(|error| error.to_string());
            assert_eq!(parse(words).unwrap(), parse(number).unwrap(), "{what}");
            for bad in ["\"soon\"", "true", "-1", "[1]"] {
                let said = parse(bad).unwrap_err();
                let is_rust = said.contains("u64") || said.contains("u32") || said.contains("i64");
                assert!(said.contains("duration") && !is_rust, "{what}: {said}");
            }
        }
    }
}
