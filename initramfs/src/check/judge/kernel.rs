//! Findings about the running kernel: what is loaded, where it has room, and what decides whether a
//! crash reaches it.

use crate::check::finding::Finding;
use crate::check::judge::{cmdline, panics::CMA_WAIT};
use crate::check::observe::host::Host;
use crate::crashkernel::{self, cma_bytes, mib};
use crate::loader::Proof;
use crate::rivals::Rival;
use crate::watchdog::Watchdog;

pub(super) fn findings(host: &Host) -> Vec<Finding> {
    let mut findings = vec![loaded(host)];
    findings.extend(loaded_image(host));
    findings.extend(loaded_kernel(host));
    findings.extend(staged(host));
    findings.extend(summary(host));
    findings.extend(rivals(host));
    findings.extend([
        reservation(host),
        kexec(host),
        cmdline::finding(host),
        on_oops(host),
        on_panic(host),
        watchdog(host),
    ]);
    findings
}

fn loaded(host: &Host) -> Finding {
    match &host.recorded {
        _ if !host.is_loaded => Finding::failure("loaded", "no panic kernel is loaded", host.load_command()),
        None => Finding::failure(
            "loaded",
            "a panic kernel is loaded, but not by afterimage: what it would do is not known",
            host.load_command(),
        ),
        Some(record) => {
            let found = format!("kernel {} with {}", record.kernel, record.image_file.display());
            match &host.proof {
                Some(Proof::Other(why)) => Finding::failure("loaded", why.clone(), host.load_command()),
                Some(Proof::Unproved(why)) => {
                    let found = format!("{found}; that this is what the kernel has cannot be proved: {why}");
                    Finding::warning(
                        "loaded",
                        found,
                        "if another program may have loaded something: load again",
                    )
                }
                _ => Finding::ok("loaded", format!("{found}; the reservation holds it as it was loaded")),
            }
        }
    }
}

/// Services that load something else, at the next boot at the latest.
fn rivals(host: &Host) -> Vec<Finding> {
    let finding = |rival: &Rival| {
        let found = format!(
            "{} is enabled ({}), and loads a panic kernel of its own",
            rival.name,
            rival.by.display()
        );
        Finding::warning("other-loader", found, rival.remedy())
    };
    host.rivals.iter().map(finding).collect()
}

/// A switch that is staged enters the place that was recorded, whatever is there now.
fn staged(host: &Host) -> Option<Finding> {
    let staged = host.recorded.as_ref().is_some_and(|record| record.staged);
    let replaced = matches!(host.proof, Some(Proof::Other(_)));
    (staged && replaced).then(|| {
        let found = "a switch is staged, and what it would enter is not there any more: a kexec would \
                     reset the machine";
        Finding::failure("staged", found, "afterimage switch --unstage")
    })
}

/// What came of the walk through the kernel's memory that `load` tried.
fn summary(host: &Host) -> Option<Finding> {
    let record = host.recorded.as_ref()?;
    if !record.walk_fault.is_empty() {
        let found = format!("the summary of a crash may lack tasks and stacks: {}", record.walk_fault);
        let remedy =
            format!("log and dump are saved all the same; once that is mended: {}", host.load_command());
        return Some(Finding::warning("summary", found, remedy));
    }
    let found =
        |count| format!("a walk through the kernel's memory found the {count} processes that /proc shows");
    record.walked.map(|count| Finding::ok("summary", found(count)))
}

fn loaded_image(host: &Host) -> Option<Finding> {
    let (record, image) = (host.recorded.as_ref()?, host.image.as_ref().ok()?);
    let path = host.image_file.display();
    Some(if host.has_loaded_the_image() {
        Finding::ok("loaded-image", format!("it is {path} as it is on disk (crc32 {})", image.crc32))
    } else {
        let found = format!(
            "it is not {path}: crc32 {} is loaded, {} is on disk, and what is said of targets is of the \
             latter",
            record.image_crc32, image.crc32
        );
        Finding::warning("loaded-image", found, host.load_command())
    })
}

fn loaded_kernel(host: &Host) -> Option<Finding> {
    let (record, kernel) = (host.recorded.as_ref()?, host.kernel.as_ref().ok()?);
    let found = format!(
        "kernel {} is loaded, {} is {} now",
        record.kernel,
        host.kernel_file.display(),
        kernel.release
    );
    (record.kernel != kernel.release).then(|| Finding::warning("loaded-kernel", found, host.load_command()))
}

fn reservation(host: &Host) -> Finding {
    let id = "reservation";
    let have = mib(host.reservation);
    let asked = host.cmdline.split_ascii_whitespace().filter(|word| word.starts_with("crashkernel="));
    let asked = match asked.collect::<Vec<_>>().join(" ") {
        none if none.is_empty() => "no crashkernel= on the command line".to_owned(),
        words => words,
    };
    let need = host.image.as_ref().ok().zip(host.kernel.as_ref().ok());
    let need =
        need.map(|(image, kernel)| crashkernel::need(kernel.init_size, image.bytes, image.contents.unpacked));
    let boot = crashkernel::reserve;
    match need {
        None if have == 0 => {
            let found = format!("no memory is reserved ({asked})");
            let remedy = "build the image first: then this says how much it takes; crashkernel=256M is enough \
                          for each configuration";
            Finding::failure(id, found, remedy)
        }
        None => Finding::warning(
            id,
            format!(
                "{have} MiB ({asked}); whether that is enough depends on an image and a kernel that cannot \
                 be read"
            ),
            "see the findings about them",
        ),
        Some(need) => {
            let (minimum, recommended) = (mib(need.minimum), mib(need.recommended));
            let cma = cma_bytes(&host.cma);
            let and_cma = match (cma, host.cmdline.contains(",cma")) {
                (0, true) => {
                    ", none of it of the cma kind, or the kernel does not tell where that is".to_owned()
                }
                (0, false) => String::new(),
                (cma, _) => format!(
                    " and {} MiB that users have till a panic: their pages there are lost then, and the kernel waits \
                     {CMA_WAIT} s for devices that write to it",
                    mib(cma)
                ),
            };
            let found = format!(
                "{have} MiB{and_cma} ({asked}), at least {minimum} MiB are needed, {recommended} MiB are recommended"
            );
            match host.reservation {
                have if have < need.minimum => Finding::failure(id, found, boot(recommended)),
                have if have.saturating_add(cma) < need.recommended => {
                    Finding::warning(id, found, boot(recommended))
                }
                _ => Finding::ok(id, found),
            }
        }
    }
}

/// Whether an image can be loaded; one that is loaded stays.
fn kexec(host: &Host) -> Finding {
    let id = "kexec";
    let lockdown = format!("lockdown mode: {}", host.lockdown);
    match (host.kexec_load_disabled.as_str(), host.is_loaded) {
        ("1", false) => Finding::failure(
            id,
            format!("nothing is loaded and kernel.kexec_load_disabled is 1; {lockdown}"),
            "reboot, and load before whatever sets this sysctl, usually a hardening profile",
        ),
        ("1", true) => Finding::ok(
            id,
            format!("kernel.kexec_load_disabled is 1: what is loaded stays until the next boot; {lockdown}"),
        ),
        ("", false) => Finding::failure(
            id,
            "there is no kernel.kexec_load_disabled: this kernel has no kexec",
            "boot a kernel with CONFIG_KEXEC_FILE and CONFIG_CRASH_DUMP",
        ),
        _ if host.lockdown != "none" && !host.is_loaded => Finding::warning(
            id,
            lockdown,
            "only a kernel with a signature that this one trusts can be loaded: use the distribution's own",
        ),
        _ => Finding::ok(
            id,
            format!(
                "kernel.kexec_load_disabled is {disabled}; {lockdown}",
                disabled = host.kexec_load_disabled
            ),
        ),
    }
}

fn on_oops(host: &Host) -> Finding {
    let id = "panic_on_oops";
    match host.panic_on_oops.as_str() {
        "0" => Finding::warning(
            id,
            "kernel.panic_on_oops is 0: an oops kills a process, the kernel goes on damaged, and nothing is \
             saved",
            "sysctl -w kernel.panic_on_oops=1, and the same in /etc/sysctl.d",
        ),
        "" => Finding::warning(id, "kernel.panic_on_oops cannot be read", "is /proc/sys mounted?"),
        value => Finding::ok(id, format!("kernel.panic_on_oops is {value}: an oops is saved like a panic")),
    }
}

fn on_panic(host: &Host) -> Finding {
    let id = "panic";
    match host.panic.as_str() {
        value if host.is_loaded => Finding::ok(
            id,
            format!("kernel.panic is {value}, which does not matter while a panic kernel is loaded"),
        ),
        "0" => Finding::warning(
            id,
            "kernel.panic is 0 and no panic kernel is loaded: after a panic the machine hangs",
            "load one; sysctl -w kernel.panic=10 restarts the machine where none is loaded",
        ),
        value => {
            Finding::ok(id, format!("kernel.panic is {value}: without a panic kernel the machine restarts"))
        }
    }
}

fn watchdog(host: &Host) -> Finding {
    let id = "watchdog";
    let hardware: Vec<&Watchdog> = host.watchdogs.iter().filter(|watchdog| watchdog.is_hardware).collect();
    let Some(first) = hardware.first() else {
        let found = match host.watchdogs.first() {
            Some(soft) => format!("only {} ({}), which ends with its kernel", soft.name, soft.identity),
            None => "none".to_owned(),
        };
        let remedy = "a capture kernel that hangs before its first program stays so: load the driver of the \
                      machine's watchdog, if it has one";
        return Finding::warning(id, found, remedy);
    };
    let name = |watchdog: &Watchdog| {
        let state = if watchdog.is_active { "running" } else { "not running" };
        format!("{} ({}, {state})", watchdog.name, watchdog.identity)
    };
    let Ok(image) = &host.image else {
        return Finding::ok(id, name(first));
    };
    let missing = |watchdog: &Watchdog| -> Vec<String> {
        let modules = &image.contents.manifest.modules;
        watchdog.modules.iter().filter(|module| !modules.contains(module)).cloned().collect()
    };
    // One that runs and is not fed resets the machine, whatever becomes of the others.
    let undriven = hardware.iter().find(|watchdog| watchdog.is_active && !missing(watchdog).is_empty());
    let undriven = undriven.or_else(|| hardware.iter().find(|watchdog| !missing(watchdog).is_empty()));
    let driven = hardware.iter().find(|watchdog| missing(watchdog).is_empty());
    match (driven, undriven) {
        (driven, Some(undriven)) if undriven.is_active || driven.is_none() => {
            let modules = missing(undriven).join(" ");
            let effect =
                if undriven.is_active { ": it would reset the machine during a long capture" } else { "" };
            Finding::warning(
                id,
                format!("{}, of whose drivers the image lacks {modules}{effect}", name(undriven)),
                format!("add {modules} to image.modules, or leave that key out, and build the image again"),
            )
        }
        (driven, _) => {
            Finding::ok(id, format!("{}, which the image can drive", name(driven.unwrap_or(first))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::finding::Level;
    use crate::check::observe::host::testing::healthy;

    fn spoiled(id: &str, spoil: impl FnOnce(&mut Host)) -> Finding {
        let mut host = healthy();
        spoil(&mut host);
        findings(&host).into_iter().find(|finding| finding.id == id).unwrap()
    }

    fn unload(host: &mut Host) {
        (host.is_loaded, host.recorded) = (false, None);
    }

    #[test]
    fn what_the_walk_found_is_told() {
        let mut host = healthy();
        assert_eq!(summary(&host), None, "an older record says nothing");
        let record = host.recorded.as_mut().unwrap();
        record.walked = Some(61);
        let found = summary(&host).unwrap();
        assert!(found.level == Level::Ok && found.found.contains("the 61 processes"), "{found:?}");
        host.recorded.as_mut().unwrap().walk_fault = "it misses 7".into();
        let found = summary(&host).unwrap();
        assert!(found.level == Level::Warning && found.found.contains("it misses 7"), "{found:?}");
        assert!(found.remedy.unwrap().contains("afterimage load"));
    }

    #[test]
    fn only_what_we_loaded_counts() {
        let none = spoiled("loaded", unload);
        assert_eq!((none.level, none.found.as_str()), (Level::Failure, "no panic kernel is loaded"));
        assert_eq!(none.remedy.as_deref(), Some("afterimage load --image /boot/afterimage.img"));
        let other = spoiled("loaded", |host| {
            unload(host);
            host.kernel_file = "/boot/capture".into();
        });
        let command = "afterimage load --image /boot/afterimage.img --kernel-image /boot/capture";
        assert_eq!(other.remedy.as_deref(), Some(command));
        let foreign = spoiled("loaded", |host| host.recorded = None);
        assert!(
            foreign.level == Level::Failure && foreign.found.contains("not by afterimage"),
            "{foreign:?}"
        );
    }

    #[test]
    fn what_somebody_else_loaded_is_a_failure_and_doubt_a_warning() {
        let other =
            |host: &mut Host| host.proof = Some(Proof::Other("another image was loaded since".into()));
        let replaced = spoiled("loaded", other);
        assert_eq!((replaced.level, &*replaced.found), (Level::Failure, "another image was loaded since"));
        assert!(replaced.remedy.unwrap().starts_with("afterimage load --image"));
        let doubt = spoiled("loaded", |host| host.proof = Some(Proof::Unproved("no kcore".into())));
        assert!(
            doubt.level == Level::Warning && doubt.found.contains("cannot be proved: no kcore"),
            "{doubt:?}"
        );
        let staged = spoiled("staged", |host| {
            other(host);
            host.recorded.as_mut().unwrap().staged = true;
        });
        assert!(staged.level == Level::Failure && staged.remedy.unwrap().contains("--unstage"));
        let mut host = healthy();
        host.recorded.as_mut().unwrap().staged = true;
        assert!(findings(&host).iter().all(|finding| finding.id != "staged"));
    }

    #[test]
    fn an_enabled_service_of_another_tool_is_named() {
        let rival =
            Rival { name: "kdump-tools.service".into(), by: "/etc/x.wants/kdump-tools.service".into() };
        let found = spoiled("other-loader", |host| host.rivals = vec![rival]);
        assert!(found.level == Level::Warning && found.found.contains("kdump-tools.service"), "{found:?}");
        assert!(found.remedy.unwrap().contains("systemctl disable --now kdump-tools.service"));
    }

    #[test]
    fn a_newer_image_or_kernel_on_disk_is_seen() {
        let image = spoiled("loaded-image", |host| host.image.as_mut().unwrap().crc32 = "12345678".into());
        assert_eq!(image.level, Level::Warning);
        assert!(image.found.contains("00c0ffee is loaded, 12345678 is on disk"), "{image:?}");
        let kernel = spoiled("loaded-kernel", |host| host.kernel.as_mut().unwrap().release = "6.1.1".into());
        assert_eq!(kernel.found, "kernel 6.1.0 is loaded, /boot/vmlinuz-6.1.0 is 6.1.1 now");
    }

    #[test]
    fn reservations_have_three_sizes() {
        let level = |bytes: u64| spoiled("reservation", |host| host.reservation = bytes).level;
        // 60 MiB of kernel, 2 of image, 4 unpacked; 12 for the boot and a quarter more.
        assert_eq!([level(0), level((66 << 20) - 1)], [Level::Failure; 2]);
        assert_eq!([level(66 << 20), level(97 << 20)], [Level::Warning; 2]);
        assert_eq!(level(98 << 20), Level::Ok);
        let none = spoiled("reservation", |host| {
            host.reservation = 0;
            host.cmdline = "quiet nocrashkernel=1".into();
        });
        assert!(none.found.contains("0 MiB (no crashkernel= on the command line)"), "{none:?}");
        assert!(none.remedy.unwrap().starts_with("set crashkernel=128M (98 MiB for this kernel and image"));
        let unknown = |bytes| {
            spoiled("reservation", |host| {
                host.image = Err("gone".into());
                host.reservation = bytes;
            })
        };
        assert_eq!([unknown(0).level, unknown(1 << 30).level], [Level::Failure, Level::Warning]);
        let with_cma = |bytes: u64| {
            spoiled("reservation", |host| {
                host.reservation = bytes;
                host.cma = "100000000-101ffffff".into(); // 32 MiB
            })
        };
        assert_eq!(with_cma(66 << 20).level, Level::Ok, "together they are enough");
        assert_eq!(with_cma((66 << 20) - 1).level, Level::Failure, "the image has to fit in the first");
        assert!(with_cma(66 << 20).found.contains("and 32 MiB that users have till a panic"));
    }

    #[test]
    fn a_locked_kexec_matters_only_where_nothing_is_loaded() {
        let disabled = |host: &mut Host| host.kexec_load_disabled = "1".into();
        assert_eq!(spoiled("kexec", disabled).level, Level::Ok);
        let unloaded = spoiled("kexec", |host| {
            disabled(host);
            unload(host);
        });
        assert!(unloaded.level == Level::Failure && unloaded.remedy.unwrap().starts_with("reboot"));
        let absent = spoiled("kexec", |host| {
            host.kexec_load_disabled.clear();
            unload(host);
        });
        assert!(absent.level == Level::Failure && absent.found.contains("no kexec"), "{absent:?}");
        let lockdown = |host: &mut Host| host.lockdown = "integrity".into();
        assert!(spoiled("kexec", lockdown).found.contains("lockdown mode: integrity"));
        let unloaded = spoiled("kexec", |host| {
            lockdown(host);
            unload(host);
        });
        assert_eq!(unloaded.level, Level::Warning);
    }

    #[test]
    fn sysctls_of_panics() {
        let oops = |value: &str| spoiled("panic_on_oops", |host| host.panic_on_oops = value.into()).level;
        assert_eq!([oops("1"), oops("0"), oops("")], [Level::Ok, Level::Warning, Level::Warning]);
        let zero = |host: &mut Host| host.panic = "0".into();
        let loaded = spoiled("panic", zero);
        assert!(loaded.level == Level::Ok && loaded.found.contains("does not matter"), "{loaded:?}");
        let unloaded = spoiled("panic", |host| {
            zero(host);
            unload(host);
        });
        assert!(unloaded.level == Level::Warning && unloaded.found.contains("hangs"), "{unloaded:?}");
        assert_eq!(spoiled("panic", unload).level, Level::Ok);
    }

    #[test]
    fn a_watchdog_is_hardware_that_the_image_can_drive() {
        assert_eq!(spoiled("watchdog", |host| host.watchdogs.clear()).found, "none");
        let soft = spoiled("watchdog", |host| {
            host.watchdogs[0].is_hardware = false;
            host.watchdogs[0].identity = "Software Watchdog".into();
        });
        assert!(soft.level == Level::Warning && soft.found.contains("Software Watchdog"), "{soft:?}");
        let other = |watchdog: &mut Watchdog| watchdog.modules = vec!["wdat_wdt".into()];
        let absent = spoiled("watchdog", |host| other(&mut host.watchdogs[0]));
        assert!(
            absent.level == Level::Warning && absent.found.contains("would reset the machine"),
            "{absent:?}"
        );
        assert!(absent.remedy.unwrap().starts_with("add wdat_wdt to image.modules"));
        let idle = |is_first_active: bool| {
            spoiled("watchdog", |host| {
                let mut first = host.watchdogs[0].clone();
                other(&mut first);
                first.is_active = is_first_active;
                host.watchdogs.insert(0, first);
            })
        };
        assert_eq!([idle(false).level, idle(true).level], [Level::Ok, Level::Warning]);
        let off = spoiled("watchdog", |host| {
            other(&mut host.watchdogs[0]);
            host.watchdogs[0].is_active = false;
        });
        assert!(off.level == Level::Warning && !off.found.contains("reset"), "{off:?}");
        assert_eq!(spoiled("watchdog", |host| host.watchdogs[0].modules.clear()).level, Level::Ok);
    }
}
