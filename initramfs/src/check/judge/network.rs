//! Findings about a target on the network: whether it answers now, and whether what proves who we
//! are is still good.

use base::config::Target;
use base::time::utc;

use super::obstacle::Obstacle;
use crate::check::observe::network::Reach;

/// Keys that expire sooner are worth a warning, seconds.
const SOON: u64 = 3600;

pub(super) fn described(target: &Target, reach: &Reach) -> String {
    let addresses =
        if reach.addresses.is_empty() { "no address".to_owned() } else { reach.addresses.join(", ") };
    format!("{target}: {addresses}")
}

pub(super) fn obstacles(target: &Target, reach: &Reach) -> Vec<Obstacle> {
    let mut obstacles = Vec::new();
    if let Err(error) = &reach.connects {
        obstacles.push(Obstacle {
            id: "",
            found: format!("{}; it does not answer now: {error}", described(target, reach)),
            remedy: "see to the host, the name and the way there; a capture tries for `wait` seconds"
                .to_owned(),
            is_fatal: reach.addresses.is_empty(),
        });
    }
    if let Err(error) = &reach.secrets {
        obstacles.push(Obstacle {
            id: "-keys",
            found: error.clone(),
            remedy:
                "do what it says; then build the image again if the configuration has changed, and load it"
                    .to_owned(),
            is_fatal: true,
        });
    }
    let of_loaded =
        reach.loaded_expires.map(|at| (at, "the keys that are loaded", "afterimage load --refresh"));
    let on_disk =
        reach.expires.map(|at| (at, "the keys on disk", "get new ones, then `afterimage load --refresh`"));
    if let Some((at, which, remedy)) = of_loaded.or(on_disk) {
        let (time, gone) = (utc(at).unwrap_or_default(), at <= reach.now);
        if at <= reach.now.saturating_add(SOON) {
            let verb = if gone { "expired" } else { "expire" };
            let (found, remedy) = (format!("{which} {verb} at {time}"), remedy.to_owned());
            obstacles.push(Obstacle { id: "-keys", found, remedy, is_fatal: gone });
        }
    }
    obstacles
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::config::Config;

    fn judged(change: impl FnOnce(&mut Reach)) -> Vec<Obstacle> {
        let text = "[[target]]\ntype = \"nfs\"\nurl = \"nfs://filer/x\"\n";
        let target = Config::parse(text).unwrap().target.remove(0);
        let mut reach = Reach {
            addresses: vec!["192.0.2.1".into()],
            connects: Ok(()),
            secrets: Ok(()),
            expires: Some(100_000),
            loaded_expires: Some(90_000),
            now: 1000,
            modules: Ok(Vec::new()),
        };
        change(&mut reach);
        obstacles(&target, &reach)
    }

    #[test]
    fn keys_past_their_time_are_a_failure_and_a_silent_host_a_warning() {
        assert!(judged(|_| ()).is_empty());
        let [silent] = &judged(|reach| reach.connects = Err("timed out".into()))[..] else { panic!() };
        assert!(!silent.is_fatal && silent.found.contains("timed out"));
        let [unknown] =
            &judged(|reach| (reach.connects, reach.addresses) = (Err("no".into()), Vec::new()))[..]
        else {
            panic!()
        };
        assert!(unknown.is_fatal && unknown.found.contains("no address"));
        let [unread] = &judged(|reach| reach.secrets = Err("reading /x".into()))[..] else { panic!() };
        assert!(unread.is_fatal && unread.id == "-keys");
        let [soon] = &judged(|reach| reach.now = 88_000)[..] else { panic!() };
        assert!(
            !soon.is_fatal && soon.found == "the keys that are loaded expire at 1970-01-02T01:00:00Z",
            "{}",
            soon.found
        );
        let [past] = &judged(|reach| reach.now = 90_000)[..] else { panic!() };
        assert!(past.is_fatal && past.found.contains("expired") && past.remedy.contains("--refresh"));
        let [disk] = &judged(|reach| (reach.now, reach.loaded_expires) = (100_001, None))[..] else {
            panic!()
        };
        assert!(disk.is_fatal && disk.found.starts_with("the keys on disk expired"));
    }
}
