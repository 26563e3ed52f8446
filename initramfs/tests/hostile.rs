//! The commands where others have left something: pipes for files, devices for names of outputs, a
//! full disk behind standard output, text that acts upon a terminal.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use vmcore::source::testing::CoreFile;

/// No command takes so long, not even on a loaded machine.
const LIMIT: Duration = Duration::from_mins(1);

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_afterimage"))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs a command that must come to its end; it waits for nobody.
fn ends(args: &[&str], stdout: Stdio) -> Output {
    let mut child =
        program().args(args).stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > LIMIT {
            child.kill().unwrap();
            panic!("{args:?} waits");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

fn core() -> CoreFile {
    CoreFile::new().memory(0x1000, 20, 1).memory(0x10_0000, 20, 2).note("CORE", 1, &[0; 336])
}

fn fifo(path: &Path) {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
}

#[test]
fn no_command_waits_for_a_pipe() {
    let dir = tempfile::tempdir().unwrap();
    let (pipe, out) = (dir.path().join("pipe"), dir.path().join("out"));
    fifo(&pipe);
    let (pipe, out) = (text(&pipe), text(&out));
    let commands: [&[&str]; 14] = [
        &["inspect", pipe],
        &["inspect", "--pages", pipe],
        &["dmesg", pipe],
        &["dump", pipe, out],
        &["dump", "--dry-run", pipe],
        &["dump", pipe, pipe, out],
        &["recover", pipe, out],
        &["recover", "--again", pipe, out],
        &["prepare", pipe],
        &["prepare", "--force", pipe],
        &["reset", pipe],
        &["build", "--kernel", "6.1.0", "--init", pipe, "--config", pipe, "-o", out],
        &["load", "--image", pipe, "--kernel-image", pipe],
        &["propagate", "--file", pipe],
    ];
    for command in commands {
        let output = ends(command, Stdio::null());
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{command:?} said {said}");
        let names_it = said.contains("regular file") && said.contains("pipe");
        assert!(names_it, "{command:?} said {said}");
    }
    assert!(fs::metadata(pipe).unwrap().file_type().is_fifo() && !Path::new(out).exists());
}

#[test]
fn no_output_replaces_what_is_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let input = core().write();
    let input = text(input.path());
    let (pipe, link) = (dir.path().join("pipe.svg"), dir.path().join("link.svg"));
    fifo(&pipe);
    std::os::unix::fs::symlink("/dev/null", &link).unwrap();
    let taken = dir.path().join("taken");
    fifo(&dir.path().join("taken-incomplete"));
    let (pipe, link, taken) = (text(&pipe), text(&link), text(&taken));
    let commands: [&[&str]; 6] = [
        &["dump", "--force", input, "/dev/null"],
        &["dump", "--force", input, pipe],
        &["dump", "--force", input, link],
        &["dump", "--force", input, taken],
        &["inspect", "--pages", "--map", pipe, input],
        &["inspect", "--pages", "--map", link, input],
    ];
    for command in commands {
        let output = ends(command, Stdio::null());
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{command:?} said {said}");
        assert!(said.contains("which no file replaces"), "{command:?} said {said}");
    }
    assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    assert!(!Path::new("/dev/null-incomplete").exists());
    assert!(fs::metadata(pipe).unwrap().file_type().is_fifo());
    assert!(fs::symlink_metadata(link).unwrap().is_symlink());
}

#[test]
fn a_full_standard_output_is_an_error_with_a_message() {
    let dir = tempfile::tempdir().unwrap();
    let input = core().write();
    let input = text(input.path());
    let device = dir.path().join("device");
    fs::write(&device, vec![0; 2 << 20]).unwrap();
    let (key, dump) = (dir.path().join("key"), dir.path().join("dump"));
    let commands: [&[&str]; 12] = [
        &["status"],
        &["check", "--json"],
        &["inspect", input],
        &["inspect", "--pages", input],
        &["dump", input, text(&dump)],
        &["dump", "--dry-run", input],
        &["dump", "--format", "flattened", input, "-"],
        &["keys", "--file", text(&key)],
        &["propagate", "--file", text(&key)],
        &["prepare", text(&device)],
        &["--help"],
        &["--version"],
    ];
    for command in commands {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = ends(command, full.into());
        let said = String::from_utf8(output.stderr).unwrap();
        let code = output.status.code();
        assert!(code.is_some_and(|code| code != 0), "{command:?}: {:?} {said}", output.status);
        if command[0] != "check" || said.contains("standard output") {
            assert!(said.contains("No space left"), "{command:?} said {said}");
        }
        assert!(!said.contains("panicked"), "{command:?} said {said}");
        if command[0] == "prepare" {
            assert!(said.contains("UUID="), "what was done is told: {said}");
        }
    }
    // Standard error may be full, too.
    for command in [&["status"][..], &["inspect", "/no/such/file"]] {
        let full = || OpenOptions::new().write(true).open("/dev/full").unwrap();
        let status = program().args(command).stdout(full()).stderr(full()).status().unwrap();
        assert_eq!(status.code(), Some(1), "{command:?}");
    }
}

#[test]
fn a_closed_pipe_ends_a_report_and_no_verdict() {
    for (command, code) in [(&["inspect"][..], 0), (&["status"], 1)] {
        let input = core().write();
        let args = if command == ["status"] { command.to_vec() } else { vec!["inspect", text(input.path())] };
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = ends(&args, writer.into());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!said.contains("panicked"), "{command:?} said {said}");
        let armed = fs::read("/sys/kernel/kexec_crash_loaded").is_ok_and(|text| text.starts_with(b"1"));
        let code = if args == ["status"] && armed { 0 } else { code };
        assert_eq!(output.status.code(), Some(code), "{command:?} said {said}");
    }
}

#[test]
fn build_refuses_what_others_may_write() {
    let dir = tempfile::tempdir().unwrap();
    let (config, hook, out) =
        (dir.path().join("config.toml"), dir.path().join("hook"), dir.path().join("image"));
    fs::write(&hook, "no program").unwrap();
    let hooked = format!(
        "[[target]]\ntype = \"raw\"\ndevice = \"/dev/null\"\n[[hook]]\npath = \"{}\"\nwhen = \"after\"\n[image]\n\
         modules = []\n",
        hook.display()
    );
    fs::write(&config, hooked).unwrap();
    let build = || {
        let modules = dir.path().join("modules");
        let args = ["build", "--kernel", "6.1.0", "--modules-dir", text(&modules), "--init", "/bin/true"];
        let output =
            ends(&[&args[..], &["--config", text(&config), "-o", text(&out)]].concat(), Stdio::null());
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let refusal = |path: &Path| format!("`chmod go-w {}`", path.display());
    fs::create_dir(dir.path().join("modules")).unwrap();
    for list in ["modules.dep", "modules.builtin", "modules.alias"] {
        fs::write(dir.path().join("modules").join(list), "").unwrap();
    }
    mode(&config, 0o666);
    assert!(build().contains(&refusal(&config)), "{}", build());
    mode(&config, 0o644);
    mode(dir.path(), 0o777);
    assert!(build().contains(&refusal(dir.path())), "{}", build());
    mode(dir.path(), 0o700);
    mode(&hook, 0o646);
    assert!(build().contains(&refusal(&hook)), "{}", build());
    mode(&hook, 0o755);
    assert!(!build().contains("chmod"), "{}", build());
    assert!(!out.exists());
}

#[test]
fn text_of_others_reaches_no_terminal_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    // The superblock of LUKS 1 (docs of cryptsetup, "LUKS1 On-Disk Format"): its UUID is text.
    let mut header = vec![0; 2 << 20];
    header[..8].copy_from_slice(b"LUKS\xba\xbe\0\x01");
    header[168..188].copy_from_slice(b"\x1b[2J\"]\nkexec = \"x\" #");
    let device = dir.path().join("device");
    fs::write(&device, header).unwrap();
    let output = ends(&["prepare", text(&device)], Stdio::null());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!said.contains('\u{1b}') && said.lines().count() == 1, "{said:?}");
    assert!(!said.contains("overwrite"), "a hostile text is no line to be copied: {said:?}");
    let named = dir.path().join("a\u{9b}2J\u{202e}b\nc");
    let output = ends(&["inspect", text(&named)], Stdio::null());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("a\\u{9b}2J\\u{202e}b\\nc") && said.lines().count() == 1, "{said:?}");
}
