//! Findings about the targets. One that cannot be used is a failure only if no other can.

use base::config::{DumpLevel, Exclude, TargetKind, WhenFull};

use super::network;
use super::obstacle::Obstacle;
use crate::check::finding::{Finding, Level};
use crate::check::observe::host::Host;
use crate::check::observe::modules::Unknown;
use crate::check::observe::storage::{Device, Room, Storage};
use crate::crashkernel::mib;

/// With less room not even the log and the notes are sure to fit, bytes.
const LEAST: u64 = 16 << 20;

pub(super) fn findings(host: &Host) -> Vec<Finding> {
    if let Err(error) = &host.config {
        return vec![Finding::failure(
            "targets",
            format!("not known: {error}"),
            "write the configuration, three lines such as `[[target]]`, `type = \"filesystem\"`, `device = \
             \"UUID=…\"` (`lsblk -f` shows the UUIDs; docs/guide/targets-disk.md), or name another file with \
             --config",
        )];
    }
    if host.storage.is_empty() {
        return vec![Finding::failure("targets", "there is no [[target]]", "add one to the configuration")];
    }
    let judged: Vec<(&Storage, Vec<Obstacle>)> =
        host.storage.iter().map(|storage| (storage, obstacles(host, storage))).collect();
    let is_usable = |obstacles: &[Obstacle]| !obstacles.iter().any(|obstacle| obstacle.is_fatal);
    let usable = judged.iter().filter(|(_, obstacles)| is_usable(obstacles)).count();
    let unusable = if usable > 0 { Level::Warning } else { Level::Failure };

    let mut findings = Vec::new();
    for (number, (storage, obstacles)) in (1_usize..).zip(judged) {
        let state = format!("target-{number}");
        if !obstacles.iter().any(|obstacle| obstacle.id.is_empty()) {
            findings.push(Finding::ok(&state, described(storage)));
        }
        if !obstacles.iter().any(|obstacle| obstacle.id == "-room") {
            findings.extend(room_of(host, storage).map(|room| Finding::ok(&format!("{state}-room"), room)));
        }
        findings.extend(obstacles.into_iter().map(|Obstacle { id, found, remedy, is_fatal }| {
            let level = if is_fatal { unusable } else { Level::Warning };
            Finding::bad(&format!("{state}{id}"), level, found, remedy)
        }));
    }
    let found = format!("{usable} of {} can be used", host.storage.len());
    findings.push(match usable {
        0 => Finding::failure("targets", found, "see the findings about each"),
        _ => Finding::ok("targets", found),
    });
    findings
}

fn described(storage: &Storage) -> String {
    if let Some(reach) = &storage.reach {
        return network::described(&storage.target, reach);
    }
    let Ok(device) = &storage.device else { return storage.target.to_string() };
    let stack = device.stack.as_ref().map(|stack| format!(" ({stack})")).unwrap_or_default();
    let holds = device.filesystem.as_deref().unwrap_or("no file system");
    let node = device.node.display();
    let place = match &device.place {
        Some(seen) => format!(", dumps in {} of this host", seen.view.host),
        None => String::new(),
    };
    format!("{}: {node}{stack}, {holds}, {} MiB{place}", storage.target, mib(device.bytes))
}

fn obstacles(host: &Host, storage: &Storage) -> Vec<Obstacle> {
    if let Some(reach) = &storage.reach {
        let mut found = network::obstacles(&storage.target, reach);
        found.extend(drivers(host, storage, &reach.modules));
        return found;
    }
    match &storage.device {
        Err(error) => vec![Obstacle {
            id: "",
            found: format!("{}: {error}", storage.target),
            remedy: "attach the device, or name one that is there and build the image again".to_owned(),
            is_fatal: true,
        }],
        Ok(device) => {
            let found = [
                state(storage, device),
                refused(storage, device),
                place(storage, device),
                copy(device),
                drivers(host, storage, &device.modules),
                room(host, storage, device),
            ];
            found.into_iter().flatten().collect()
        }
    }
}

fn state(storage: &Storage, device: &Device) -> Option<Obstacle> {
    let target = &storage.target;
    let (trouble, remedy) = match (&device.modules, target.kind(), &device.filesystem) {
        _ if device.read_only => ("the device is read-only", "make it writable, or name another device"),
        (Err(Unknown::Stacked(_)), ..) => {
            ("stacked: the capture kernel cannot set up the device", "use a partition or a whole disk")
        }
        (_, TargetKind::Filesystem, None) => (
            "there is no file system that a capture can mount",
            "make one: mkfs.ext4, mkfs.xfs, mkfs.btrfs or mkfs.vfat",
        ),
        _ => return None,
    };
    let found = format!("{}; {trouble}", described(storage));
    Some(Obstacle { id: "", found, remedy: remedy.to_owned(), is_fatal: true })
}

/// What the capture itself would say of the target: its message has the remedy.
fn refused(storage: &Storage, device: &Device) -> Option<Obstacle> {
    let reason = device.refused.as_ref()?;
    let (found, remedy) = match reason.rsplit_once(": ") {
        Some((found, remedy)) => (found, remedy),
        None => (reason.as_str(), "see to the device"),
    };
    let found = format!("{}; {found}", described(storage));
    Some(Obstacle { id: "-refused", found, remedy: remedy.to_owned(), is_fatal: true })
}

/// The dump is saved, but where nobody looks for it.
fn place(storage: &Storage, device: &Device) -> Option<Obstacle> {
    let seen = device.place.as_ref().filter(|seen| !seen.view.why.is_empty())?;
    let found = format!("{}: {}; dumps will be in {}", storage.target, seen.view.why, seen.view.host);
    let remedy = seen.remedy.clone().unwrap_or_default();
    Some(Obstacle { id: "-place", found, remedy, is_fatal: false })
}

fn copy(device: &Device) -> Option<Obstacle> {
    let found = device.remark.clone()?;
    let remedy = "name it by PARTUUID= or /dev/disk/by-id, or give the copy another UUID".to_owned();
    Some(Obstacle { id: "-copy", found, remedy, is_fatal: false })
}

fn drivers(host: &Host, storage: &Storage, modules: &Result<Vec<String>, Unknown>) -> Option<Obstacle> {
    let contents = &host.image.as_ref().ok()?.contents;
    let obstacle = |found, remedy: &str, is_fatal| {
        Some(Obstacle { id: "-drivers", found, remedy: remedy.to_owned(), is_fatal })
    };
    match modules {
        // What a raw device needs is not told apart from what a file system on it would.
        Err(Unknown::Other(_)) if storage.target.kind() == TargetKind::Raw => None,
        Err(Unknown::Stacked(_)) => None,
        Err(Unknown::Other(error)) => {
            obstacle(format!("not known: {error}"), "install the modules of the image's kernel", false)
        }
        Ok(needed) => {
            let missing: Vec<&str> = needed
                .iter()
                .filter(|name| !contents.manifest.modules.contains(name))
                .map(String::as_str)
                .collect();
            let found = || format!("not in the image: {}", missing.join(" "));
            match (missing.is_empty(), &contents.config.image.modules) {
                (true, _) => None,
                // Who lists modules may know that one on the way is not needed.
                (false, Some(_)) => {
                    obstacle(found(), "add them to image.modules, unless you know better", false)
                }
                (false, None) => obstacle(found(), "build the image again on this host", true),
            }
        }
    }
}

fn room(host: &Host, storage: &Storage, device: &Device) -> Option<Obstacle> {
    let found = room_of(host, storage)?;
    let obstacle = |remedy: &str, is_fatal| {
        Some(Obstacle { id: "-room", found: found.clone(), remedy: remedy.to_owned(), is_fatal })
    };
    let Room::Free(free) = device.room else {
        return obstacle(
            "mount it once and check again, or look at it with the file system's own tools",
            false,
        );
    };
    let free = free.saturating_sub(storage.target.share().reserve.0);
    if free < LEAST {
        return obstacle("free some space", true);
    }
    let exclude = host.config.as_ref().ok()?.dump.exclude;
    if free >= host.memory.bound(exclude) {
        return None;
    }
    obstacle(
        match storage.target.when_full {
            WhenFull::Stricter => {
                "free some space; otherwise a dump that does not fit becomes one of level 31, or the log only"
            }
            WhenFull::Part => "free some space; otherwise a dump that does not fit ends where the room ends",
            WhenFull::Log => "free some space; otherwise of a dump that does not fit the log is saved only",
            WhenFull::Nothing => {
                "free some space; otherwise a dump that does not fit goes to the next target"
            }
        },
        false,
    )
}

/// The room on a target and what dumps would want of it.
fn room_of(host: &Host, storage: &Storage) -> Option<String> {
    let device = storage.device.as_ref().ok()?;
    let dump = &host.config.as_ref().ok()?.dump;
    let reserve = match storage.target.share().reserve.0 {
        0 => String::new(),
        bytes => format!(" less {} MiB in reserve", mib(bytes)),
    };
    let free = match device.room {
        Room::Free(free) => format!("{} MiB free{reserve}", mib(free)),
        Room::Unknown => format!("free space not known{reserve}"),
    };
    let strictest = DumpLevel::new(31).map(Exclude::from).ok()?;
    let asked = mib(host.memory.bound(dump.exclude));
    Some(format!(
        "{free}; with memory as it is used now, a dump has at most {asked} MiB at level {}, {} MiB at level 31",
        dump.exclude,
        mib(host.memory.bound(strictest))
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::observe::host::testing::healthy;
    use crate::place::Seen;
    use base::config::{Place, Size};
    use base::facts::View;

    fn judged(spoil: impl FnOnce(&mut Host)) -> Vec<Finding> {
        let mut host = healthy();
        spoil(&mut host);
        findings(&host)
    }

    /// The finding `id` of a host with a second target, of which the first was spoiled; and without
    /// the second.
    fn spoiled(id: &str, spoil: impl Fn(&mut Host)) -> [Finding; 2] {
        [true, false].map(|two| {
            let all = judged(|host| {
                spoil(host);
                if two {
                    host.storage.extend(healthy().storage);
                }
            });
            all.into_iter().find(|finding| finding.id == id).unwrap()
        })
    }

    fn device(host: &mut Host) -> &mut Device {
        host.storage[0].device.as_mut().unwrap()
    }

    fn reserved(host: &mut Host, reserve: Size) {
        let Place::Filesystem(target) = &mut host.storage[0].target.place else { panic!("another kind") };
        target.share.reserve = reserve;
    }

    #[test]
    fn what_the_capture_would_refuse_is_told_with_its_remedy() {
        let [warning, failure] = spoiled("target-1-refused", |host| {
            device(host).refused =
                Some("/dev/vdb holds the capture x, which was not collected: `afterimage recover` it".into());
        });
        assert_eq!((warning.level, failure.level), (Level::Warning, Level::Failure));
        assert!(
            failure.found.ends_with("; /dev/vdb holds the capture x, which was not collected"),
            "{failure:?}"
        );
        assert_eq!(failure.remedy.as_deref(), Some("`afterimage recover` it"));
    }

    #[track_caller]
    fn is_unusable(id: &str, expected: &str, spoil: impl Fn(&mut Host)) {
        let [with_another, alone] = spoiled(id, spoil);
        assert_eq!([with_another.level, alone.level], [Level::Warning, Level::Failure]);
        assert!(alone.found.contains(expected), "{}", alone.found);
    }

    #[test]
    fn a_target_that_cannot_be_used_fails_only_without_another() {
        is_unusable("target-1", "LABEL=dump did not appear", |host| {
            host.storage[0].device = Err("LABEL=dump did not appear".into());
        });
        is_unusable("target-1", "read-only", |host| device(host).read_only = true);
        is_unusable("target-1", "no file system that", |host| device(host).filesystem = None);
        is_unusable("target-1", "(name vg-crash, on vda3), ext4, 20480 MiB; stacked", |host| {
            device(host).stack = Some("name vg-crash, on vda3".into());
            device(host).modules = Err(Unknown::Stacked("device-mapper".into()));
        });
        is_unusable("target-1-room", "5 MiB free", |host| device(host).room = Room::Free(5 << 20));
        let all = judged(|host| {
            device(host).read_only = true;
            host.storage.extend(healthy().storage);
        });
        assert_eq!(all.last().unwrap().found, "1 of 2 can be used");
        assert!(all.iter().any(|finding| finding.id == "target-2" && finding.level == Level::Ok));
    }

    #[test]
    fn room_is_compared_with_the_largest_dump_less_the_reserve() {
        let level = |free: u64, reserve: u64| {
            let [_, alone] = spoiled("target-1-room", |host| {
                device(host).room = Room::Free(free);
                reserved(host, Size(reserve));
            });
            alone.level
        };
        let bound = healthy().memory.bound(Exclude::default());
        assert_eq!(
            [level(bound, 0), level(bound, 1), level(bound + 1, 1)],
            [Level::Ok, Level::Warning, Level::Ok]
        );
        assert_eq!(
            [level(LEAST, 0), level(LEAST, 1), level(0, 0)],
            [Level::Warning, Level::Failure, Level::Failure]
        );
        let [_, unknown] = spoiled("target-1-room", |host| device(host).room = Room::Unknown);
        assert!(
            unknown.level == Level::Warning
                && unknown.found.starts_with("free space not known less 1024 MiB")
        );
        let strict = |host: &mut Host| {
            device(host).room = Room::Free((1 << 30) + (2 << 30));
            host.config.as_mut().unwrap().dump.exclude = Exclude::preset("kernel").unwrap();
        };
        let [_, strict] = spoiled("target-1-room", strict);
        assert_eq!(strict.level, Level::Ok, "{strict:?}");
    }

    #[test]
    fn another_place_and_a_copy_are_warnings() {
        let elsewhere = |host: &mut Host| {
            let view = View { why: "/var/crash leads out".into(), host: "/".into(), ..View::default() };
            device(host).place = Some(Seen { view, at: "/".into(), remedy: Some("write path".into()) });
        };
        let [_, place] = spoiled("target-1-place", elsewhere);
        assert!(
            place.level == Level::Warning && place.found.contains("leads out; dumps will be in /"),
            "{place:?}"
        );
        assert_eq!(place.remedy.as_deref(), Some("write path"));
        let [_, copy] =
            spoiled("target-1-copy", |host| device(host).remark = Some("also on /dev/vdc".into()));
        assert!(copy.level == Level::Warning && copy.found.contains("/dev/vdc"), "{copy:?}");
        let seen = judged(|host| {
            let view = View { host: "/var/crash".into(), ..View::default() };
            device(host).place = Some(Seen { view, at: "/".into(), remedy: None });
        });
        assert!(seen.iter().any(|finding| finding.found.contains("dumps in /var/crash")), "{seen:?}");
    }

    #[test]
    fn drivers_must_be_in_the_image_unless_the_user_lists_them() {
        let needs_nvme =
            |host: &mut Host| device(host).modules = Ok(vec!["virtio_blk".into(), "nvme".into()]);
        is_unusable("target-1-drivers", "not in the image: nvme", needs_nvme);
        let [_, listed] = spoiled("target-1-drivers", |host| {
            needs_nvme(host);
            host.image.as_mut().unwrap().contents.config.image.modules = Some(vec!["virtio_blk".into()]);
        });
        assert_eq!(listed.level, Level::Warning);
        let [_, unknown] = spoiled("target-1-drivers", |host| {
            device(host).modules = Err(Unknown::Other("no modules.dep".into()));
        });
        assert!(unknown.level == Level::Warning && unknown.found == "not known: no modules.dep");
    }

    #[test]
    fn no_configuration_and_no_target_are_failures() {
        let [none, unknown] = [
            judged(|host| host.storage.clear()),
            judged(|host| host.config = Err("config.toml: No such file".into())),
        ];
        assert_eq!([none[0].level, unknown[0].level], [Level::Failure; 2]);
        assert!(unknown[0].found.contains("No such file"));
    }
}
