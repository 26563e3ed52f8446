//! Findings about the final actions: what is known to keep them from their work. The dump is saved
//! whatever they say.

use crate::boot_entry::foresee::{self, Circumstances};
use crate::check::finding::Finding;
use crate::check::observe::host::Host;

pub(super) fn findings(host: &Host) -> Vec<Finding> {
    let Ok(config) = &host.config else { return Vec::new() };
    let circumstances = Circumstances {
        lockdown: &host.lockdown,
        has_watchdog: host.watchdogs.iter().any(|watchdog| watchdog.is_hardware),
        reservation: host.reservation,
        cpus: host.cpus,
    };
    let concerns = foresee::concerns(config, &host.next, circumstances);
    let found = match host.next.boot.as_ref().and_then(|boot| boot.as_ref().ok()) {
        Some(boot) => format!("{}; the next kernel is {} on {}", config.finish, boot.kernel, boot.device),
        None => config.finish.to_string(),
    };
    let warnings =
        concerns.into_iter().map(|concern| Finding::warning(concern.id, concern.found, concern.remedy));
    std::iter::once(Finding::ok("finish", found)).chain(warnings).chain(modules(host)).collect()
}

/// What the image lacks to reach the device of the next kernel or of the root.
fn modules(host: &Host) -> Vec<Finding> {
    let Ok(image) = &host.image else { return Vec::new() };
    let packed = &image.contents.manifest.modules;
    let finding = |(device, modules): &(String, Result<Vec<String>, String>)| {
        let found = match modules {
            Err(error) => format!("{device}, which a final action needs: {error}"),
            Ok(wanted) => {
                let missing: Vec<_> =
                    wanted.iter().filter(|name| !packed.contains(name)).map(String::as_str).collect();
                if missing.is_empty() {
                    return None;
                }
                format!("{device}, which a final action needs: not in the image: {}", missing.join(", "))
            }
        };
        Some(Finding::warning(
            "finish-modules",
            found,
            "build the image again, without image.modules or with these in it",
        ))
    };
    host.next_modules.iter().filter_map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot_entry::Next;
    use crate::check::observe::host::testing::{CONFIG, healthy};
    use crate::check::{Level, Report};
    use base::config::Config;

    #[test]
    fn what_becomes_of_a_kexec_is_a_warning() {
        let mut host = healthy();
        assert_eq!(findings(&host), [Finding::ok("finish", "reboot")]);
        host.config = Ok(Config::parse(&format!("{CONFIG}[finish]\nplanned.success = \"kexec\"\n")).unwrap());
        host.next = Next { boot: Some(Err("no entry".into())), root: None };
        host.watchdogs.clear();
        let found = findings(&host);
        assert_eq!(
            found.iter().map(|finding| finding.id.as_str()).collect::<Vec<_>>(),
            ["finish", "finish-kernel", "finish-guard"]
        );
        assert!(found[1].found.ends_with("no entry"), "{found:?}");
        assert!(Report::of(&host).verdict < Level::Failure, "a dump is saved all the same");
    }

    #[test]
    fn modules_that_lead_to_the_next_kernel_are_in_the_image() {
        let mut host = healthy();
        let mut finding = |modules: &[&str]| {
            let modules = modules.iter().map(|&name| name.to_owned()).collect();
            host.next_modules = vec![("UUID=b".into(), Ok(modules))];
            findings(&host).get(1).map(|finding| finding.found.clone())
        };
        assert_eq!(finding(&["virtio_blk"]), None);
        assert!(finding(&["virtio_blk", "nvme"]).unwrap().ends_with("not in the image: nvme"));
    }
}
