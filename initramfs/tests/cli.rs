//! The command line on bad input: a clear error that names the thing, or a dump and a recorded
//! degradation.
#![expect(clippy::unwrap_used, reason = "a test that fails panics")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use vmcore::format::flattened::{self, Record};
use vmcore::source::Kdump;
use vmcore::source::testing::CoreFile;

fn afterimage(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_afterimage")).args(args).output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs a command that must fail with one error line that contains `expected`.
fn refused(args: &[&str], expected: &str) {
    let output = afterimage(args);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{args:?} said {message}");
    assert!(message.contains(expected), "{args:?} said {message}");
    let errors = message.lines().filter(|line| line.starts_with("afterimage: "));
    assert_eq!(errors.count(), 1, "{message}");
}

fn core() -> CoreFile {
    CoreFile::new().memory(0x1000, 20, 1).memory(0x10_0000, 20, 2).note("CORE", 1, &[0; 336])
}

/// Dumps `bytes` and gives result.json. Exit code 3 says that something is missing, of the dump and
/// of what is made of it.
fn dumped(bytes: &[u8]) -> serde_json::Value {
    let dir = tempfile::tempdir().unwrap();
    let (input, out) = (dir.path().join("vmcore"), dir.path().join("dump"));
    fs::write(&input, bytes).unwrap();
    let output = afterimage(&["dump", text(&input), text(&out)]);
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let code = if result.get("outcome").is_some_and(|outcome| outcome == "complete") { 0 } else { 3 };
    assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
    let inspected = afterimage(&["inspect", text(&out)]);
    assert_eq!(inspected.status.code(), Some(code), "{}", String::from_utf8_lossy(&inspected.stderr));
    let report = String::from_utf8(inspected.stdout).unwrap();
    assert_eq!(report.contains("INCOMPLETE"), code == 3, "{report}");
    result
}

fn steps(result: &serde_json::Value) -> Vec<String> {
    let list = result["degradations"].as_array().unwrap();
    list.iter().map(|step| format!("{} {}", step["step"], step["kind"]).replace('"', "")).collect()
}

#[test]
fn files_that_are_no_core_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (file, out) = (dir.path().join("vmcore"), dir.path().join("dump"));
    let (file, out) = (text(&file), text(&out));
    refused(&["dump", file, out], "No such file");
    for (bytes, expected) in [
        (&b""[..], "is empty"),
        (&[0; 4096], "begins with 0000000000000000, which is no ELF core"),
        (b"\x1f\x8b\x08", "is compressed by gzip: unpack it first"),
        (&core().bytes()[..63], "ends after 63 bytes"),
        (&core().bytes()[..64], "holds no memory"),
        (b"KDUMP   rubbish", "ends inside the headers"),
    ] {
        fs::write(file, bytes).unwrap();
        let commands: [&[&str]; 2] = [&["dmesg", file], &["inspect", file]];
        for command in commands {
            let output = afterimage(command);
            assert_eq!(output.status.code(), Some(1), "{command:?} on {} bytes", bytes.len());
        }
        refused(&["inspect", file], expected);
        refused(&["dump", file, out], expected);
    }
    refused(&["dump", text(dir.path()), out], "is a directory");
    assert!(!Path::new(out).exists(), "a refused input leaves no output");
}

/// Symbols, types and processes are read from dumps of one machine; all commands that need them say so alike.
#[test]
fn dumps_of_another_machine_have_no_symbols() {
    let dir = tempfile::tempdir().unwrap();
    let (file, out) = (dir.path().join("vmcore"), dir.path().join("out.json"));
    let mut bytes = core().bytes();
    // EM_AARCH64
    bytes[18] = 183;
    fs::write(&file, bytes).unwrap();
    let (file, out) = (text(&file), text(&out));
    let all: [&[&str]; 6] = [
        &["debuginfo", file, "-o", out],
        &["debuginfo", file, "--split-modules", out],
        &["symbols", file, "-o", out],
        &["gcore", file, "1", "-o", out],
        &["gcore", "--list", file],
        &["crash", file],
    ];
    for args in all {
        refused(args, "it is a dump of aarch64");
    }
    assert!(!Path::new(out).exists());
    refused(
        &["debuginfo", text(core().write().path()), "--split-modules", out],
        "reading the kernel's symbols",
    );
}

#[test]
fn outputs_that_cannot_be_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let input = core().write();
    let input = text(input.path());
    refused(&["dump", input, text(dir.path())], "is a directory");
    let taken = dir.path().join("taken");
    fs::write(&taken, b"precious").unwrap();
    refused(&["dump", input, text(&taken)], "exists already");
    assert_eq!(fs::read(&taken).unwrap(), b"precious");
    refused(&["dump", input, "/no/such/dir/dump"], "/no/such/dir/dump");
    assert!(afterimage(&["dump", "--force", input, text(&taken)]).status.success());
    let copied = dir.path().join("vmcore-incomplete");
    fs::copy(input, &copied).unwrap();
    let out = dir.path().join("vmcore");
    for force in [&[][..], &["--force"]] {
        let args = [&["dump"], force, &[text(&copied), text(&out)]].concat();
        refused(&args, "vmcore-incomplete exists already");
    }
    assert_eq!(fs::read(&copied).unwrap(), core().bytes(), "the input stays as it is");
}

#[test]
fn a_full_disk_leaves_a_marked_dump_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let input = CoreFile::new().memory(0x10_0000, 3000, 2).write();
    let out = dir.path().join("dump");
    // A limit on the file's size is a disk that is full at 2 MiB.
    let script = format!(
        "ulimit -f 2048; trap '' XFSZ; exec {} dump --level 0 --compress none {} {}",
        env!("CARGO_BIN_EXE_afterimage"),
        text(input.path()),
        text(&out)
    );
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(
        message.contains("dump-incomplete ends early") && message.contains("File too large"),
        "{message}"
    );
    assert!(!out.exists());
    let inspected = afterimage(&["inspect", text(&dir.path().join("dump-incomplete"))]);
    let report = String::from_utf8(inspected.stdout).unwrap();
    assert!(report.contains("INCOMPLETE") && !report.contains("3000 kept: 0 compressed, 0 raw"), "{report}");
}

#[test]
fn what_cannot_be_left_out_is_refused() {
    for (arguments, reason) in [
        (["--level", "32"], "from 0 to 31"),
        (["--exclude", "slab"], "unused-vmemmap"),
        (["--preset", "tiny"], "forensic"),
        (["--format", "qcow"], "lime"),
    ] {
        let output = afterimage(&["dump", arguments[0], arguments[1], "a", "b"]);
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && message.contains(reason), "{message}");
    }
}

#[test]
fn a_truncated_core_is_dumped_as_far_as_it_goes() {
    let mut bytes = core().bytes();
    bytes.truncate(bytes.len() - 5 * 4096);
    let result = dumped(&bytes);
    assert_eq!(result["outcome"], "incomplete");
    assert_eq!(steps(&result)[0], "vmcore segment-past-end");
    assert!(result["trigger"].is_null(), "nobody knows of a panic: {result}");
    assert_eq!(result["memory_bytes"], 35 * 4096);
}

#[test]
fn a_core_without_vmcoreinfo_is_dumped() {
    let result = dumped(&core().bytes());
    assert_eq!(steps(&result)[0], "vmcoreinfo null", "{result}");
    assert_eq!((&result["outcome"], &result["cpus"]), (&"complete".into(), &1.into()));
}

#[test]
fn segments_that_overlap_or_lie_are_told() {
    let bytes = core().segment(0x3000, &vec![9; 0x2_0000]).bytes();
    assert!(steps(&dumped(&bytes)).contains(&"vmcore overlap".to_owned()));
    let mut bytes = core().bytes();
    let last = 64 + 2 * 56; // the third program header
    bytes[last + 32..last + 40].copy_from_slice(&u64::MAX.to_le_bytes()); // p_filesz
    let result = dumped(&bytes);
    assert!(steps(&result).contains(&"vmcore segment-past-end".to_owned()), "{result}");
    assert_eq!(result["pages"]["unreadable"], 0);
}

#[test]
fn a_flattened_dump_is_inspected_and_files_of_no_set_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (input, out, flat) = (path("vmcore"), path("dump"), path("flat"));
    fs::write(&input, core().bytes()).unwrap();
    assert!(afterimage(&["dump", &input, &out]).status.success());
    let bytes = fs::read(&out).unwrap();
    let len = u64::try_from(bytes.len()).unwrap();
    let piece = Record::Piece { offset: 0, len };
    let stream = [&flattened::emit_header()[..], &piece.emit(), &bytes, &Record::End.emit()].concat();
    fs::write(&flat, &stream).unwrap();

    let report = |file: &str| String::from_utf8(afterimage(&["inspect", file]).stdout).unwrap();
    let (plain, message) = (report(&out), report(&flat));
    assert!(message.contains("kdump-compressed, version 6, flattened"), "{message}");
    assert_eq!(message.replace(", flattened", ""), plain);
    fs::write(&flat, &stream[..stream.len() - 1]).unwrap();
    let message = report(&flat);
    assert!(message.contains("the flattened dump was cut short"), "{message}");

    refused(&["inspect", &out, &out], "not a part of a split dump");
    refused(&["dmesg", &out, &input], "is no part of a split dump");
}

#[test]
fn without_a_capture_image_there_is_no_switch() {
    // Whether anything is loaded on the host that runs this is not ours to say; that it was not
    // loaded by us in this boot is.
    for args in [&["switch", "--why", "x"][..], &["switch", "--stage"], &["load", "--again"]] {
        let output = afterimage(args);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{args:?}");
        assert!(message.contains("afterimage load"), "{args:?} names no remedy: {message}");
    }
    for (args, expected) in [
        (&["switch", "--stage", "--unstage"][..], "cannot be used with"),
        (&["capture", "--stage"], "is now `afterimage switch`"),
        (&["load", "--again", "--image", "x"], "cannot be used with"),
        (&["load", "--image", "/no/such/image"], "afterimage build --kernel"),
        (&["load", "--help"], "[default: /boot/afterimage.img]"),
    ] {
        let output = afterimage(args);
        let message = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(message.contains(expected), "{args:?}: {message}");
    }
    let output = afterimage(&["status"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("planned      no: "), "{output:?}");
}

#[test]
fn a_host_with_nothing_loaded_would_save_nothing() {
    let absent = "/no/such/image";
    let output = afterimage(&["check", "--json", "--image", absent, "--config", absent]);
    if !nix::unistd::geteuid().is_root() {
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("needs root"));
        return;
    }
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["verdict"], "failure");
    let findings = report["findings"].as_array().unwrap();
    let finding = |id: &str| findings.iter().find(|finding| finding["id"] == id).unwrap();
    for id in ["image", "targets"] {
        let found = finding(id)["found"].as_str().unwrap();
        assert!(found.contains(absent), "{found}");
    }
    let remedy = finding("targets")["remedy"].as_str().unwrap();
    assert!(remedy.contains("[[target]]") && remedy.contains("docs/guide"), "how one is written: {remedy}");
    for finding in findings {
        assert_eq!(finding["remedy"].is_null(), finding["level"] == "ok", "{finding}");
    }

    let text = afterimage(&["check", "--image", absent, "--config", absent]);
    assert_eq!(text.status.code(), Some(1));
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.lines().last().unwrap().starts_with("a crash now would NOT be saved; failures: "), "{text}");
    assert_eq!(afterimage(&["check", "--no-such"]).status.code(), Some(2));
}

/// The numbers behind the first word of the line that begins with `name`.
fn numbers(table: &str, name: &str) -> Vec<u64> {
    let line = table.lines().find(|line| line.split_whitespace().next() == Some(name)).unwrap();
    line.split_whitespace().skip(1).map(|word| word.parse().unwrap()).collect()
}

#[test]
fn pages_by_class_and_their_map() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (input, dump, svg, png) = (path("vmcore"), path("dump"), path("map.svg"), path("map.PNG"));
    fs::write(&input, core().bytes()).unwrap();
    let zero = u64::try_from((1..0x114).filter(|&pfn| is_zero(pfn)).count()).unwrap();
    let pages_and_code = |args: &[&str], code: i32| {
        let output = afterimage(&[&["inspect", "--pages"], args].concat());
        assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let pages = |args: &[&str]| pages_and_code(args, 0);
    let message = pages(&["--map", &svg, &input]);
    assert_eq!((numbers(&message, "unknown"), numbers(&message, "all")), (vec![40, 0], vec![40, 0]));
    assert!(message.contains("\n0x000000000000 ???????????\n") && !message.contains('\x1b'), "{message}");
    assert!(message.contains("\n0x000000080000 (no memory: 512 KiB)\n"), "{message}");
    assert!(fs::read_to_string(&svg).unwrap().ends_with("</svg>\n"));

    assert!(afterimage(&["dump", &input, &dump]).status.success());
    let message = pages(&["--map", &png, &dump]);
    assert_eq!(numbers(&message, "unknown"), [40, 0, 40 - zero, zero, 0, 0]);
    assert!(fs::read(&png).unwrap().starts_with(b"\x89PNG"));

    // The last page was left out, and the data of some are not there.
    let mut bytes = fs::read(&dump).unwrap();
    let layout = *Kdump::open(Path::new(&dump)).unwrap().layout();
    let byte = usize::try_from(layout.bitmap2_offset() + 0x113 / 8).unwrap();
    bytes[byte] &= !(1 << (0x113 % 8));
    let descs = usize::try_from(layout.descs_offset()).unwrap();
    bytes[descs + 24 * 36..descs + 24 * 39].fill(0);
    fs::write(&dump, &bytes).unwrap();
    let message = numbers(&pages_and_code(&[&dump], 3), "unknown");
    assert_eq!((message[2] + message[3], &message[4..]), (36, &[1, 3][..]));

    refused(&["inspect", "--pages", "--map", &path("map.gif"), &dump], "map.gif: a map is a .svg or a .png");
    fs::copy(&input, path("core.svg")).unwrap();
    refused(&["inspect", "--pages", "--map", &path("core.svg"), &path("core.svg")], "is the input");
    assert_eq!(afterimage(&["inspect", "--map", &svg, &dump]).status.code(), Some(2));
}

/// Whether the page of [`core`] is one of zeros.
fn is_zero(pfn: u64) -> bool {
    let memory = [0x1..0x15, 0x100..0x114];
    memory.iter().any(|range| range.contains(&pfn)) && core().page(pfn).iter().all(|&byte| byte == 0)
}
