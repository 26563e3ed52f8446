//! The watchdogs of the running host, and the modules that drive them
//! (Documentation/ABI/testing/sysfs-class-watchdog).
//!
//! One that the production kernel's services have started goes on through a panic. If the capture
//! kernel has no driver to feed it, it resets the machine in the middle of the dump.

use std::fs;
use std::path::Path;

/// Where the kernel lists them.
const CLASS: &str = "/sys/class/watchdog";

/// A watchdog of the running kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watchdog {
    /// Name in /sys/class/watchdog.
    pub name: String,
    /// What the driver calls it.
    pub identity: String,
    /// Modules of the drivers of its device and of those that the device stands on, its own last;
    /// built-in ones left out.
    pub modules: Vec<String>,
    /// Whether there is a device behind it. softdog has none: it ends with its kernel.
    pub is_hardware: bool,
    /// Whether it runs now.
    pub is_active: bool,
    /// Seconds after which it resets the machine, if it says so.
    pub timeout: Option<u32>,
}

/// The watchdogs of this host, by name.
#[must_use]
pub fn list() -> Vec<Watchdog> {
    list_in(Path::new(CLASS))
}

fn list_in(class: &Path) -> Vec<Watchdog> {
    let entries = fs::read_dir(class).into_iter().flatten().flatten();
    let mut found: Vec<Watchdog> = entries.map(|entry| look(&entry.path())).collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

fn look(dir: &Path) -> Watchdog {
    let read = |file: &str| fs::read_to_string(dir.join(file)).unwrap_or_default().trim().to_owned();
    let device = fs::canonicalize(dir.join("device")).ok();
    let chain = device.iter().flat_map(|path| path.ancestors());
    // iTCO_wdt, for one, finds its device only when the driver of the bridge above it has made it.
    let drivers = chain.filter_map(|path| fs::canonicalize(path.join("driver/module")).ok());
    let mut modules: Vec<String> = drivers.map(|path| name(&path)).collect();
    modules.reverse();
    Watchdog {
        name: name(dir),
        identity: read("identity"),
        modules,
        is_hardware: device.is_some(),
        is_active: read("state") == "active",
        timeout: read("timeout").parse().ok(),
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_device_and_what_it_stands_on_are_driven_by_modules() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let (bridge, device) = (path("devices/pci0/1f.0"), path("devices/pci0/1f.0/iTCO_wdt.1.auto"));
        for (place, module) in [(&bridge, "lpc_ich"), (&device, "iTCO_wdt")] {
            fs::create_dir_all(path("module").join(module)).unwrap();
            fs::create_dir_all(place.join("driver")).unwrap();
            symlink(path("module").join(module), place.join("driver/module")).unwrap();
        }
        for name in ["watchdog0", "watchdog1"] {
            fs::create_dir_all(path("class").join(name)).unwrap();
        }
        symlink(&device, path("class/watchdog0/device")).unwrap();
        fs::write(path("class/watchdog0/identity"), "iTCO_wdt\n").unwrap();
        fs::write(path("class/watchdog0/state"), "active\n").unwrap();
        fs::write(path("class/watchdog0/timeout"), "30\n").unwrap();
        fs::write(path("class/watchdog1/identity"), "Software Watchdog\n").unwrap();
        let [hardware, soft] = [
            ("watchdog0", "iTCO_wdt", vec!["lpc_ich", "iTCO_wdt"], true),
            ("watchdog1", "Software Watchdog", vec![], false),
        ]
        .map(|(name, identity, modules, both)| Watchdog {
            name: name.into(),
            identity: identity.into(),
            modules: modules.into_iter().map(str::to_owned).collect(),
            is_hardware: both,
            is_active: both,
            timeout: both.then_some(30),
        });
        assert_eq!(list_in(&path("class")), [hardware, soft]);
        assert_eq!(list_in(&path("none")), []);
    }
}
