//! Debug files that are made of a dump alone: debuggers print with them what they print with the
//! distribution's.

use anyhow::{Result, ensure};
use qemu_tests::binaries::Binaries;
use qemu_tests::command::{Run, command};
use qemu_tests::debug_files::{self, crash, drgn, ensure_equal, layouts, make};
use qemu_tests::inputs;
use qemu_tests::kernel::Kernel;
use qemu_tests::{raw_core, readers};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::slice;

/// Commands of crash whose texts differ: they print lines of source, symbols that only `vmlinux` has,
/// or addresses in crash's own memory.
const OF_CRASH: [&str; 10] = [
    "bt -l",
    "dis -l do_exit 8",
    "sym schedule",
    "sym -l",
    "p init_task",
    "p linux_banner",
    "help -k",
    "help -m",
    "help -t",
    "help -v",
];

/// The same on 7.x, where crash finds the length of `swap_info` only in our file.
const OF_CRASH_7: [&str; 11] = [
    "bt -l",
    "dis -l do_exit 8",
    "sym schedule",
    "sym -l",
    "p init_task",
    "p linux_banner",
    "help -k",
    "help -m",
    "help -o",
    "help -t",
    "help -v",
];

/// What may differ.
#[derive(Clone, Copy)]
struct Expected<'a> {
    /// Enumerations in which a value differs.
    values: usize,
    /// Commands of crash.
    crash: &'a [&'a str],
    /// Options without which crash does not read this kernel.
    options: &'a [&'a str],
}

/// Judges the debug file of a kernel against the distribution's.
fn judge(series: &str, expected: Expected<'_>) -> Result<()> {
    let kernel = Kernel::with_symbols(series)?;
    let core = raw_core::of(series)?;
    let work = tempfile::tempdir()?;
    let (theirs, ours) = (kernel.vmlinux(), work.path().join("vmlinux"));
    let said = make(slice::from_ref(&core), &ours)?;
    eprintln!("{said}");
    for option in expected.options {
        ensure!(said.contains(option), "it is not said that crash needs {option}:\n{said}");
    }
    debug_files::ensure_sections(&ours, &[".text", ".init.text", ".notes", ".debug_info", ".debug_frame"])?;

    let types = layouts(&theirs, &ours)?;
    eprintln!("{types:?}");
    ensure!(types.compared > 5000, "only {} types were compared", types.compared);
    ensure!(types.differ == types.ambiguous, "types differ: {types:?}");
    ensure!(types.values.len() <= expected.values, "enumerations differ: {:?}", types.values);

    let (with_theirs, with_ours) = (drgn(&core, &theirs)?, drgn(&core, &ours)?);
    let failed: Vec<_> = with_theirs.iter().filter(|(_, text)| text.starts_with("EXCEPTION")).collect();
    ensure!(failed.len() <= 4, "checks of drgn that fail anyway: {failed:?}");
    ensure_equal(&with_theirs, &with_ours, &[])?;
    eprintln!("{} checks of drgn, other than expected: none", with_ours.len());

    let say = |vmlinux: &Path| crash(&core, vmlinux, expected.options);
    let (with_theirs, with_ours) = (say(&theirs)?, say(&ours)?);
    eprintln!("crash: {:?} differ", debug_files::differ(&with_theirs, &with_ours));
    ensure_equal(&with_theirs, &with_ours, expected.crash)
}

#[test]
fn debuggers_say_of_6_1_what_they_say_with_the_distributions_file() -> Result<()> {
    judge("6.1", Expected { values: 1, crash: &OF_CRASH, options: &[] })
}

#[test]
#[ignore = "full: kernel 6.12"]
fn debuggers_say_of_6_12_what_they_say_with_the_distributions_file() -> Result<()> {
    judge("6.12", Expected { values: 0, crash: &OF_CRASH, options: &[] })
}

#[test]
#[ignore = "full: kernel 5.10, whose symbol table must be searched for"]
fn debuggers_say_of_5_10_what_they_say_with_the_distributions_file() -> Result<()> {
    // Its BTF has no values of 64 bits, and no signs. crash takes one name of a page flag too many.
    let more: Vec<_> = OF_CRASH.into_iter().chain(["kmem -p"]).collect();
    judge("5.10", Expected { values: 16, crash: &more, options: &[] })
}

#[test]
#[ignore = "full: kernels with other locks, whose drivers are modules"]
fn debuggers_say_of_rt_kernels_what_they_say_with_the_distributions_file() -> Result<()> {
    for series in ["6.1-rt", "6.12-rt"] {
        judge(series, Expected { values: 1, crash: &OF_CRASH, options: &[] })?;
    }
    Ok(())
}

/// crash 9.0.2 does not read their modules with the distribution's file either, and ends unless it is told
/// not to look for any.
#[test]
#[ignore = "full: the newest kernels"]
fn debuggers_say_of_new_kernels_what_they_say_with_the_distributions_file() -> Result<()> {
    for series in ["7.2", "7.3"] {
        judge(series, Expected { values: 0, crash: &OF_CRASH_7, options: &["--no_modules"] })?;
    }
    Ok(())
}

/// The crash that Debian 12 has for its 6.1.
#[test]
#[ignore = "full: an older crash"]
fn crash_8_says_of_6_1_what_it_says_with_the_distributions_file() -> Result<()> {
    let (core, theirs) = (raw_core::of("6.1")?, Kernel::with_symbols("6.1")?.vmlinux());
    let work = tempfile::tempdir()?;
    let ours = work.path().join("vmlinux");
    make(slice::from_ref(&core), &ours)?;
    let program = readers::crash_of("bookworm")?;
    let say = |vmlinux: &Path| debug_files::crash_by(&program, &core, vmlinux, &[]);
    let (with_theirs, with_ours) = (say(&theirs)?, say(&ours)?);
    eprintln!("crash 8: {:?} differ", debug_files::differ(&with_theirs, &with_ours));
    ensure_equal(&with_theirs, &with_ours, &OF_CRASH)
}

/// drgn with nothing but a dump of level 31 and the plugin: tasks, stacks, functions of modules.
#[test]
fn drgn_finds_its_symbols_by_the_plugin() -> Result<()> {
    let core = raw_core::of("6.1")?;
    let work = tempfile::tempdir()?;
    let dump = work.path().join("vmcore");
    command(&Binaries::get()?.afterimage.to_string_lossy())
        .args(["dump", "--level", "31"])
        .args([&core, &dump])
        .run()?;
    let script = "print(prog['init_task'].comm.string_().decode(), len(list(for_each_task())) > 20); \
                  print([frame.name for frame in prog.crashed_thread().stack_trace()]); \
                  print(prog.symbol(prog.symbol('virtblk_probe').address + 1).name)";
    let text = debug_files::with_plugin(&dump, script)?;
    for expected in ["swapper/0 True", "'sysrq_handle_crash'", "virtblk_probe"] {
        ensure!(text.contains(expected), "no {expected} in:\n{text}");
    }
    Ok(())
}

/// `afterimage drgn` and `afterimage crash` start them with the debug file, give their exit code, and say
/// what is not installed.
#[test]
fn debuggers_are_started_with_the_debug_file() -> Result<()> {
    let core = raw_core::of("6.1")?;
    let [drgn, crash] = debug_files::places()?;
    let script = "print(prog['init_task'].comm.string_().decode()); raise SystemExit(7)";
    let message = debug_files::launched("drgn", &core, &["-q", "-e", script], &drgn)?;
    ensure!(message.status.code() == Some(7) && message.stdout.starts_with(b"swapper/0"), "{message:?}");
    let work = tempfile::tempdir()?;
    let commands = work.path().join("commands");
    fs::write(&commands, "p init_task.comm\nquit\n")?;
    if crash.as_os_str().is_empty() {
        eprintln!("only the system's crash is there: not started");
    } else {
        let arguments = ["-s", "-i", &commands.to_string_lossy()];
        let path = std::env::join_paths([crash, "/usr/bin".into(), "/bin".into()])?;
        let message = debug_files::launched("crash", &core, &arguments, path.as_ref())?;
        let text = String::from_utf8_lossy(&message.stdout);
        ensure!(message.status.success() && text.contains("swapper/0"), "{message:?}");
    }
    let message = debug_files::launched("crash", &core, &[], "/nonexistent".as_ref())?;
    let text = String::from_utf8_lossy(&message.stderr);
    ensure!(message.status.code() == Some(1) && text.contains("crash is not installed"), "{message:?}");
    Ok(())
}

/// drgn and crash take the files of modules for the distribution's: symbols, functions, types.
#[test]
fn debuggers_load_the_files_of_modules() -> Result<()> {
    let core = raw_core::of("6.1")?;
    let work = tempfile::tempdir()?;
    let (vmlinux, folder) = (work.path().join("vmlinux"), work.path().join("modules"));
    make(slice::from_ref(&core), &vmlinux)?;
    eprintln!("{}", debug_files::make_modules(slice::from_ref(&core), &folder)?);
    let found =
        debug_files::of_module(&core, &vmlinux, &folder, ["virtio_blk", "virtblk_probe", "virtio_blk"])?;
    ensure!(found.file == "virtio_blk.ko.debug" && found.symbol == "virtblk_probe", "{found:?}");
    ensure!(found.loaded.len() == fs::read_dir(&folder)?.count() + 1, "not all are loaded: {found:?}");
    ensure!(found.is_in_module && found.is_function && found.resolved, "{found:?}");
    ensure!(found.function == "int (struct virtio_device *vdev)", "{found:?}");
    ensure!(found.members.starts_with(&["vdev_mutex".into(), "vdev".into(), "disk".into()]), "{found:?}");
    let load = format!("mod -S {}", folder.display());
    let commands = [&load, "whatis virtblk_probe", "struct virtio_blk", "dis virtblk_probe 2"];
    let texts = readers::crash(&vmlinux, &core, &commands)?;
    let all = texts.join("\n");
    let files = all.matches(".ko.debug").count();
    ensure!(files == found.loaded.len() - 1 && !all.contains("not loaded"), "{files} files:\n{all}");
    for expected in
        ["int virtblk_probe(struct virtio_device *);", "struct mutex vdev_mutex;", "<virtblk_probe+"]
    {
        ensure!(all.contains(expected), "no {expected} in:\n{all}");
    }
    Ok(())
}

/// Names and contents of the files in a folder.
fn contents(folder: &Path) -> Result<BTreeMap<OsString, Vec<u8>>> {
    let entries = fs::read_dir(folder)?.map(|entry| {
        let entry = entry?;
        Ok((entry.file_name(), fs::read(entry.path())?))
    });
    entries.collect()
}

/// Every form of dump of one crash gives the same file, byte for byte.
#[test]
fn each_form_of_dump_gives_the_same_file() -> Result<()> {
    let core = raw_core::of("6.1")?;
    let work = tempfile::tempdir()?;
    let path = |name: &str| work.path().join(name);
    make(slice::from_ref(&core), &path("of-core"))?;
    let expected = fs::read(path("of-core"))?;
    debug_files::make_modules(slice::from_ref(&core), &path("modules-of-core"))?;
    let of_modules = contents(&path("modules-of-core"))?;
    ensure!(of_modules.len() > 3, "too few modules: {:?}", of_modules.keys());
    for form in ["kdump", "flattened", "elf", "lime"] {
        command(&Binaries::get()?.afterimage.to_string_lossy())
            .args(["dump", "--force", "--level", "31", "--format", form])
            .args([&core, &path("dump")])
            .run()?;
        make(&[path("dump")], &path("of-dump"))?;
        ensure!(fs::read(path("of-dump"))? == expected, "a {form} dump of level 31 gives another file");
        debug_files::make_modules(&[path("dump")], &path("modules-of-dump"))?;
        ensure!(
            contents(&path("modules-of-dump"))? == of_modules,
            "a {form} dump gives other files of modules"
        );
    }
    // Beside the dumps of a directory of captures: once, and not where there is none.
    for name in ["one", "two", "log-only"] {
        fs::create_dir_all(path("captures").join(name))?;
        fs::write(path("captures").join(name).join("result.json"), "{}")?;
    }
    fs::copy(path("dump"), path("captures/one/vmcore"))?;
    fs::copy(path("dump"), path("captures/two/vmcore"))?;
    fs::write(path("captures/two/vmlinux.xz"), "is there")?;
    let run = || {
        let captures = path("captures");
        command(&Binaries::get()?.afterimage.to_string_lossy())
            .args(["debuginfo", "--captures"])
            .arg(captures)
            .run()
    };
    run()?;
    let made = command("xz").arg("-dc").arg(path("captures/one/vmlinux.xz")).run()?.stdout;
    ensure!(made == expected, "the file beside a dump is another one");
    ensure!(fs::read(path("captures/two/vmlinux.xz"))? == b"is there", "a file was made anew");
    ensure!(!path("captures/log-only/vmlinux.xz").exists(), "a debug file without a dump");
    ensure!(run()?.stdout.is_empty(), "there was more to do");
    let parts = inputs::make(&core, work.path(), &["--split", "-l", "-d", "31"])?;
    make(&parts, &path("of-dump"))?;
    ensure!(fs::read(path("of-dump"))? == expected, "a split dump gives another file");
    Ok(())
}
