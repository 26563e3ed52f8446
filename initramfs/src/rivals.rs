//! Services of other crash tools that are enabled on this host: at the next boot, or when CPUs and
//! memory change, they load an image of their own in place of ours.

use std::fs;
use std::path::{Path, PathBuf};

/// The services by which distributions load a panic kernel.
const SERVICES: &[&str] = &["kdump-tools", "kdump", "kdump-early", "fadump", "kexec-kdump"];
/// Where systemd keeps what is enabled.
const SYSTEMD: &[&str] = &["etc/systemd/system", "run/systemd/system", "run/systemd/generator"];

/// A service that loads something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rival {
    /// Its name: `kdump-tools.service`.
    pub name: String,
    /// What says that it is enabled.
    pub by: PathBuf,
}

impl Rival {
    /// How it is switched off.
    #[must_use]
    pub fn remedy(&self) -> String {
        let name = &self.name;
        match name.strip_suffix(".service") {
            Some(_) => format!("systemctl disable --now {name}; then afterimage load again"),
            None => format!(
                "take {} away, with the tools of your init; then afterimage load again",
                self.by.display()
            ),
        }
    }
}

/// The services that are enabled here.
#[must_use]
pub fn list() -> Vec<Rival> {
    list_in(Path::new("/"))
}

fn list_in(root: &Path) -> Vec<Rival> {
    let mut found: Vec<Rival> = Vec::new();
    for service in SERVICES {
        let by = SYSTEMD.iter().find_map(|dir| wanted_by(&root.join(dir), &format!("{service}.service")));
        let masked = SYSTEMD.iter().any(|dir| is_masked(&root.join(dir).join(format!("{service}.service"))));
        match by.filter(|_| !masked) {
            Some(by) => found.push(Rival { name: format!("{service}.service"), by }),
            // Without systemd: System V's links, and OpenRC's.
            None if !root.join("run/systemd/system").is_dir() => {
                let by = started_by(root, service);
                found.extend(by.map(|by| Rival { name: (*service).to_owned(), by }));
            }
            None => (),
        }
    }
    found
}

/// The link by which a target wants a unit.
fn wanted_by(dir: &Path, unit: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut links: Vec<PathBuf> = entries
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.ends_with(".wants") || name.ends_with(".requires")
        })
        .map(|entry| entry.path().join(unit))
        .collect();
    links.sort();
    links.into_iter().find(|link| link.symlink_metadata().is_ok())
}

fn is_masked(unit: &Path) -> bool {
    fs::read_link(unit).is_ok_and(|to| to == Path::new("/dev/null"))
}

fn started_by(root: &Path, service: &str) -> Option<PathBuf> {
    let runlevels = ["etc/rc2.d", "etc/rc3.d", "etc/rc5.d", "etc/rc.d/rc3.d", "etc/runlevels/default"];
    let links = runlevels.iter().flat_map(|dir| fs::read_dir(root.join(dir)).into_iter().flatten().flatten());
    let mut links = links.filter(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name == service
            || name
                .strip_prefix('S')
                .is_some_and(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()) == service)
    });
    links.next().map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn found(links: &[(&str, &str)], systemd: bool) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        if systemd {
            fs::create_dir_all(path("run/systemd/system")).unwrap();
        }
        for (link, to) in links {
            fs::create_dir_all(path(link).parent().unwrap()).unwrap();
            symlink(to, path(link)).unwrap();
        }
        list_in(dir.path()).into_iter().map(|rival| rival.name).collect()
    }

    #[test]
    fn each_distributions_service_is_found() {
        let wants = "etc/systemd/system/multi-user.target.wants";
        assert!(found(&[], true).is_empty());
        for service in ["kdump-tools", "kdump", "kdump-early"] {
            let unit = format!("{service}.service");
            let link = format!("{wants}/{unit}");
            assert_eq!(found(&[(&link, "/lib/x")], true), [unit.as_str()]);
            let masked = format!("etc/systemd/system/{unit}");
            assert!(found(&[(&link, "/lib/x"), (&masked, "/dev/null")], true).is_empty(), "masked");
        }
        assert_eq!(
            found(&[("etc/systemd/system/basic.target.requires/kdump.service", "/x")], true),
            ["kdump.service"]
        );
        assert!(found(&[(&format!("{wants}/sshd.service"), "/x")], true).is_empty());
    }

    #[test]
    fn other_inits_have_links_of_their_own() {
        assert_eq!(found(&[("etc/rc3.d/S03kdump-tools", "../init.d/kdump-tools")], false), ["kdump-tools"]);
        assert_eq!(found(&[("etc/runlevels/default/kdump", "/etc/init.d/kdump")], false), ["kdump"]);
        assert!(found(&[("etc/rc3.d/K03kdump-tools", "x")], false).is_empty());
        // Under systemd such links are of no matter.
        assert!(found(&[("etc/rc3.d/S03kdump-tools", "x")], true).is_empty());
    }
}
