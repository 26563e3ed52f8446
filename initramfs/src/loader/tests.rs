//! Loading, as far as it goes without a kernel.

use super::*;
use std::fs;

#[test]
fn files_that_are_missing_or_wrong_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (image, kernel) = (dir.path().join("image"), dir.path().join("vmlinuz"));
    let error = || base::log::chain(&load(&image, &kernel, None).unwrap_err());
    assert!(error().contains("image"));
    fs::write(&image, b"x").unwrap();
    assert!(error().contains("vmlinuz"));
    fs::write(&kernel, b"x").unwrap();
    assert!(error().contains("vmlinuz cannot be started: not an x86 bzImage"), "{}", error());
}

#[test]
fn memory_that_had_keys_is_cleared_where_somebody_comes_after() {
    let config = |finish: &str| Config::parse(&format!("[finish]\n{finish}\n")).unwrap();
    assert_eq!(clearing(&config("action = \"kexec\""), true), "init_on_free=1");
    assert_eq!(clearing(&config("failure = \"shell\""), true), "init_on_free=1");
    assert_eq!(clearing(&config("action = \"kexec\""), false), "");
    assert_eq!(clearing(&config("action = \"poweroff\""), true), "");
}

#[test]
fn modules_that_the_capture_kernel_would_not_take_are_refused() {
    let module = |name: &str, signed, vermagic: &str| ModuleFacts {
        name: name.into(),
        signed,
        vermagic: vermagic.into(),
    };
    let ours = |signed| [module("ext4", true, "6.1.0 SMP "), module("nvme", signed, "6.1.0 SMP ")];
    let fips = ["the host is in FIPS mode".to_owned()];
    accepts(&ours(false), "6.1.0", &[]).unwrap();
    accepts(&ours(true), "6.1.0", &fips).unwrap();
    accepts(&[], "6.1.0", &fips).unwrap();
    let error = accepts(&ours(false), "6.1.0", &fips).unwrap_err().to_string();
    assert!(error.contains("FIPS") && error.contains(": nvme") && !error.contains("ext4"), "{error}");
    let error = accepts(&ours(true), "6.1.1", &[]).unwrap_err().to_string();
    assert!(error.contains("ext4") && error.contains("6.1.0 SMP") && error.contains("6.1.1"), "{error}");
}

#[test]
fn facts_are_a_file_of_the_image() {
    let facts = Facts { host: "h".into(), ..Facts::default() };
    let archive = archive(&facts);
    let files = cpio::read_files(&archive).unwrap();
    assert_eq!(files[0].0, "etc/afterimage/facts.toml");
    assert_eq!((files[1].0.as_str(), files[1].1.len()), ("etc/afterimage/seed", 64));
    assert_ne!(files[1].1, [0; 64]);
    assert_eq!(Facts::parse(core::str::from_utf8(files[0].1).unwrap()).unwrap(), facts);
}
