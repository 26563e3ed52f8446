//! Findings about the image on disk and the files that it was built from. An image that is loaded
//! already saves a crash whatever has become of these, so what only the next load would meet is a
//! warning then.

use crate::check::finding::{Finding, Level};
use crate::check::observe::host::{Host, Image, Part, Source};
use crate::crashkernel::mib;
use crate::fingerprint::Condition;

/// Modules that are named one by one; a kernel update changes them all.
const NAMED: usize = 5;

pub(super) fn findings(host: &Host) -> Vec<Finding> {
    let path = host.image_file.display();
    let image = match &host.image {
        Ok(image) => image,
        Err(error) => {
            let found = format!("{path}: {error}");
            return vec![Finding::bad("image", on_next_load(host), found, rebuild(host))];
        }
    };
    let modules = image.contents.manifest.modules.len();
    let found = format!(
        "{path}: {} KiB, {} MiB unpacked, {modules} modules",
        image.bytes.div_ceil(1024),
        mib(image.contents.unpacked)
    );
    let all = [
        Finding::ok("image", found),
        version(host, image),
        file(host, image, "image-config", Part::Config),
        file(host, image, "image-init", Part::Init),
        files(host, image, "image-modules", Part::Module, "module"),
        kernel(host, image),
        signatures(host, image),
    ];
    all.into_iter().chain(hooks(host, image)).collect()
}

/// How bad it is that an image could not be loaded again.
fn on_next_load(host: &Host) -> Level {
    if host.recorded.is_some() { Level::Warning } else { Level::Failure }
}

fn rebuild(host: &Host) -> String {
    let kernel = host.kernel.as_ref().map_or(&host.release, |kernel| &kernel.release);
    let sources = host.image.as_ref().map_or(&[][..], |image| &image.sources);
    let config = sources.iter().find(|source| source.part == Part::Config);
    let config = config.map(|source| format!(" --config {}", source.path.display())).unwrap_or_default();
    let path = host.image_file.display();
    format!("afterimage build --kernel {kernel}{config} -o {path}; {}", host.load_command())
}

fn version(host: &Host, image: &Image) -> Finding {
    let (ours, theirs) = (env!("CARGO_PKG_VERSION"), &image.contents.manifest.afterimage);
    if theirs == ours {
        return Finding::ok("image-version", format!("built by afterimage {ours}"));
    }
    let found = format!("built by afterimage {theirs}, this is {ours}");
    Finding::warning("image-version", found, rebuild(host))
}

/// A part of the image that is a single file.
fn file(host: &Host, image: &Image, id: &str, part: Part) -> Finding {
    let Some(source) = image.sources.iter().find(|source| source.part == part) else {
        return Finding::warning(id, "the image does not say what it was built from", rebuild(host));
    };
    let path = source.path.display();
    match source.condition {
        Condition::Same => Finding::ok(id, format!("{path} is as it was when the image was built")),
        Condition::Changed => {
            Finding::warning(id, format!("{path} has changed since the image was built"), rebuild(host))
        }
        Condition::Missing => {
            Finding::warning(id, format!("{path} is gone or cannot be read"), rebuild(host))
        }
    }
}

fn hooks(host: &Host, image: &Image) -> Option<Finding> {
    let there = image.sources.iter().any(|source| source.part == Part::Hook);
    there.then(|| files(host, image, "image-hooks", Part::Hook, "hook"))
}

/// The files of which an image has several.
fn files(host: &Host, image: &Image, id: &'static str, part: Part, what: &str) -> Finding {
    let modules: Vec<&Source> = image.sources.iter().filter(|source| source.part == part).collect();
    let names = |condition| -> Vec<String> {
        let those = modules.iter().filter(|source| source.condition == condition);
        those.filter_map(|source| Some(source.path.file_name()?.to_string_lossy().into_owned())).collect()
    };
    let (changed, missing) = (names(Condition::Changed), names(Condition::Missing));
    if changed.is_empty() && missing.is_empty() {
        return Finding::ok(id, format!("{} {what} files are as they were", modules.len()));
    }
    let found: Vec<String> = [("changed", changed), ("gone", missing)]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(what, names)| format!("{} of {} {what}: {}", names.len(), modules.len(), some_of(&names)))
        .collect();
    Finding::warning(id, format!("{what} files: {}", found.join("; ")), rebuild(host))
}

fn some_of(names: &[String]) -> String {
    let shown = names.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(" ");
    if names.len() > NAMED { format!("{shown} …") } else { shown }
}

fn kernel(host: &Host, image: &Image) -> Finding {
    let id = "image-kernel";
    let (theirs, path) = (&image.contents.manifest.kernel, host.kernel_file.display());
    match &host.kernel {
        Err(error) => {
            let remedy = format!("name the kernel of release {theirs} with --kernel-image");
            Finding::bad(id, on_next_load(host), format!("{path}: {error}"), remedy)
        }
        Ok(kernel) if kernel.release != *theirs => {
            let found = format!("the image is for kernel {theirs}, but {path} is {}", kernel.release);
            Finding::bad(id, on_next_load(host), found, rebuild(host))
        }
        Ok(_) if host.release != *theirs => {
            let found =
                format!("image and {path} are of kernel {theirs}, the running kernel is {}", host.release);
            let remedy = format!("if that is not on purpose: afterimage build --kernel {}", host.release);
            Finding::warning(id, found, remedy)
        }
        Ok(_) => Finding::ok(id, format!("image, {path} and the running kernel are {theirs}")),
    }
}

fn signatures(host: &Host, image: &Image) -> Finding {
    let id = "image-signatures";
    let modules = &image.contents.modules;
    let unsigned: Vec<String> =
        modules.iter().filter(|module| !module.signed).map(|module| module.name.clone()).collect();
    let rule = match host.signature_reasons.as_slice() {
        [] => "nothing on this host asks for signed modules".to_owned(),
        reasons => format!("the capture kernel wants signed modules: {}", reasons.join("; ")),
    };
    let found = format!("{rule}; {} of {} in the image have no signature", unsigned.len(), modules.len());
    if host.signature_reasons.is_empty() || unsigned.is_empty() {
        return Finding::ok(id, found);
    }
    let remedy = format!("set image.strip = \"never\"; {}", rebuild(host));
    Finding::failure(id, format!("{found}: {}", some_of(&unsigned)), remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::observe::host::testing::healthy;

    /// The finding `id` of a host that was spoiled.
    fn spoiled(id: &str, spoil: impl FnOnce(&mut Host)) -> Finding {
        let mut host = healthy();
        spoil(&mut host);
        findings(&host).into_iter().find(|finding| finding.id == id).unwrap()
    }

    fn image(host: &mut Host) -> &mut Image {
        host.image.as_mut().unwrap()
    }

    #[test]
    fn an_image_that_is_gone_matters_most_when_none_is_loaded() {
        let gone = |host: &mut Host| host.image = Err("No such file".into());
        let loaded = spoiled("image", gone);
        assert_eq!(
            (loaded.level, loaded.found.as_str()),
            (Level::Warning, "/boot/afterimage.img: No such file")
        );
        let unloaded = spoiled("image", |host| {
            gone(host);
            host.recorded = None;
        });
        assert_eq!(unloaded.level, Level::Failure);
        assert!(unloaded.remedy.unwrap().contains("afterimage build --kernel 6.1.0 -o /boot/afterimage.img"));
    }

    #[test]
    fn what_changed_since_the_build_is_named() {
        let condition =
            |index: usize, condition| move |host: &mut Host| image(host).sources[index].condition = condition;
        let edited = spoiled("image-config", condition(0, Condition::Changed));
        assert_eq!(edited.level, Level::Warning);
        assert_eq!(edited.found, "/etc/afterimage/config.toml has changed since the image was built");
        let gone = spoiled("image-init", condition(1, Condition::Missing));
        assert_eq!(gone.found, "/usr/lib/afterimage/init is gone or cannot be read");
        let module = spoiled("image-modules", condition(2, Condition::Changed));
        assert_eq!(module.level, Level::Warning);
        assert_eq!(module.found, "module files: 1 of 1 changed: virtio_blk.ko");
        let version =
            spoiled("image-version", |host| image(host).contents.manifest.afterimage = "0.0.9".into());
        assert!(version.level == Level::Warning && version.found.contains("0.0.9"), "{version:?}");
    }

    #[test]
    fn a_hook_that_was_changed_is_named() {
        let with_hook = |condition| {
            spoiled("image-hooks", |host| {
                let hook = Source { part: Part::Hook, path: "/usr/lib/notify".into(), condition };
                image(host).sources.push(hook);
            })
        };
        assert_eq!(with_hook(Condition::Same).level, Level::Ok);
        let changed = with_hook(Condition::Changed);
        assert_eq!((changed.level, &*changed.found), (Level::Warning, "hook files: 1 of 1 changed: notify"));
    }

    #[test]
    fn many_modules_are_counted_and_some_named() {
        let many = spoiled("image-modules", |host| {
            let one = image(host).sources[2].clone();
            image(host).sources.extend(vec![one; 8]);
            image(host).sources.iter_mut().skip(3).for_each(|source| source.condition = Condition::Missing);
        });
        assert!(many.found.contains("8 of 9 gone") && many.found.ends_with(" …"), "{}", many.found);
    }

    #[test]
    fn kernels_of_other_releases_are_told_apart() {
        let other = |host: &mut Host| host.kernel.as_mut().unwrap().release = "6.1.1".into();
        let replaced = spoiled("image-kernel", other);
        assert_eq!(replaced.level, Level::Warning);
        assert_eq!(replaced.found, "the image is for kernel 6.1.0, but /boot/vmlinuz-6.1.0 is 6.1.1");
        assert!(replaced.remedy.unwrap().contains("--kernel 6.1.1"));
        let unloaded = spoiled("image-kernel", |host| {
            other(host);
            host.recorded = None;
        });
        assert_eq!(unloaded.level, Level::Failure);
        let running = spoiled("image-kernel", |host| host.release = "6.12.0".into());
        assert!(running.level == Level::Warning && running.found.ends_with("the running kernel is 6.12.0"));
        let missing = spoiled("image-kernel", |host| host.kernel = Err("No such file".into()));
        assert!(missing.remedy.unwrap().contains("--kernel-image"));
    }

    #[test]
    fn modules_without_signatures_are_refused_only_where_those_are_wanted() {
        let fips = |host: &mut Host| host.signature_reasons = vec!["the host is in FIPS mode".into()];
        let refused = spoiled("image-signatures", fips);
        assert_eq!(refused.level, Level::Failure);
        assert!(refused.found.contains("FIPS") && refused.found.contains("virtio_blk"), "{refused:?}");
        for harmless in [
            |host: &mut Host| image(host).contents.modules.iter_mut().for_each(|module| module.signed = true),
            |host: &mut Host| image(host).contents.modules.clear(),
        ] {
            let finding = spoiled("image-signatures", |host| {
                fips(host);
                harmless(host);
            });
            assert_eq!(finding.level, Level::Ok, "{finding:?}");
        }
        assert_eq!(spoiled("image-signatures", |_| ()).level, Level::Ok);
    }
}
