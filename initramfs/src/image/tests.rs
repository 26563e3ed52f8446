//! Tests of [`super`].

use super::*;

const CONFIG: &str = "[[target]]\ntype = \"filesystem\"\ndevice = \"LABEL=x\"\nfstype = \"ext4\"\n\
                      [image]\nmodules = [\"virtio_blk\"]\nstrip = \"never\"\n";

fn sources(dir: &Path, config: &str) -> Sources {
    let modules = dir.join("modules");
    fs::create_dir_all(modules.join("kernel")).unwrap();
    fs::write(
        modules.join("modules.dep"),
        "kernel/virtio_blk.ko.xz: kernel/virtio.ko.gz\nkernel/virtio.ko.gz:\n",
    )
    .unwrap();
    fs::write(modules.join("modules.builtin"), "kernel/fs/ext4/ext4.ko\n").unwrap();
    fs::write(modules.join("modules.alias"), "").unwrap();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(b"virtio module").unwrap();
    fs::write(modules.join("kernel/virtio.ko.gz"), gz.finish().unwrap()).unwrap();
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(b"virtio_blk module").unwrap();
    fs::write(modules.join("kernel/virtio_blk.ko.xz"), xz.finish().unwrap()).unwrap();
    fs::write(dir.join("init"), b"static init").unwrap();
    fs::write(dir.join("config.toml"), config).unwrap();
    Sources {
        kernel: "6.1-test".into(),
        modules_dir: modules,
        config: dir.join("config.toml"),
        inits: vec![dir.join("init")],
    }
}

#[test]
fn an_image_is_reproducible_and_tells_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    for compress in ["gzip", "xz", "zstd"] {
        let config = format!("{CONFIG}compress = \"{compress}\"\n");
        let sources = sources(dir.path(), &config);
        let image = build(&sources).unwrap();
        assert_eq!(image.bytes, build(&sources).unwrap().bytes, "{compress}");
        let path = dir.path().join("image");
        publish(&image.bytes, &path).unwrap();
        let contents = read_contents(&fs::read(&path).unwrap(), &path).unwrap();
        assert_eq!(contents.manifest, image.manifest);
        assert_eq!(contents.manifest.modules, ["virtio", "virtio_blk"]);
        let module = fs::read(dir.path().join("modules/kernel/virtio_blk.ko.xz")).unwrap();
        let file = Fingerprint::of(Path::new("kernel/virtio_blk.ko.xz"), &module);
        assert_eq!(contents.manifest.module_files[1], file, "the file on the host, not what is in the image");
        assert_eq!(contents.manifest.config, Fingerprint::of(&sources.config, config.as_bytes()));
        assert_eq!(contents.manifest.init, Fingerprint::of(&sources.inits[0], b"static init"));
        assert_eq!(contents.config, Config::parse(&config).unwrap());
        assert_eq!(contents.init_sha256, evidence::hex(&evidence::sha256(b"static init")));
        assert_eq!(contents.config_sha256, evidence::hex(&evidence::sha256(config.as_bytes())));
        let archive = compress::decompress(&image.bytes).unwrap();
        let files = cpio::read_files(&archive).unwrap();
        let file = |name: &str| files.iter().find(|(n, _)| n == name).unwrap().1;
        assert_eq!(file("lib/modules/virtio_blk.ko"), b"virtio_blk module");
        assert_eq!(file("etc/afterimage/modules"), b"/lib/modules/virtio.ko\n/lib/modules/virtio_blk.ko\n");
        assert_eq!(file("init"), b"static init");
    }
}

#[test]
fn watchdogs_that_are_hardware_go_along() {
    let dir = tempfile::tempdir().unwrap();
    let tree = ModuleTree::read(&sources(dir.path(), CONFIG).modules_dir).unwrap();
    let watchdog = |module: &str, is_hardware| Watchdog {
        name: "watchdog0".into(),
        identity: String::new(),
        modules: vec![module.into(), "renamed".into()],
        is_hardware,
        is_active: false,
        timeout: None,
    };
    let wanted = watchdog_modules(&[watchdog("virtio_blk", false), watchdog("virtio", true)], &tree);
    assert_eq!(wanted, ["virtio"]);
}

#[test]
fn an_init_for_storage_only_is_no_init_for_the_network() {
    let config = Config::parse("[[target]]\ntype = \"nfs\"\nurl = \"nfs://filer/x\"\n").unwrap();
    let marks = |kinds: &[&str]| {
        let marks: Vec<String> = kinds.iter().map(|kind| format!("afterimage-target:{kind};")).collect();
        can_reach(marks.concat().as_bytes(), &config)
    };
    assert!(marks(&["filesystem", "nfs"]).is_ok() && marks(&[]).is_ok());
    assert!(matches!(marks(&["filesystem", "raw", "ssh"]), Err(ImageError::InitWithout(TargetKind::Nfs))));
    assert!(can_reach(TargetKind::ALL.map(TargetKind::mark).concat().as_bytes(), &config).is_ok());
}

#[test]
fn the_smallest_init_that_reaches_all_targets_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let inits =
        [("small", "filesystem"), ("large", "filesystem;afterimage-target:ssh")].map(|(name, kinds)| {
            let path = dir.path().join(name);
            fs::write(&path, format!("afterimage-target:{kinds};")).unwrap();
            path
        });
    let chosen = |kind: &str, inits: &[PathBuf]| {
        let config = Config::parse(&format!("[[target]]\n{kind}\n")).unwrap();
        choose_init(inits, &config).map(|(path, _)| path.to_owned())
    };
    let disk = "type = \"filesystem\"\ndevice = \"LABEL=x\"";
    let ssh = "type = \"ssh\"\nurl = \"ssh://a@b/c\"\nidentity = \"/k\"\nhost_key = [\"ssh-ed25519 AAAA\"]";
    assert_eq!(chosen(disk, &inits).unwrap(), inits[0]);
    assert_eq!(chosen(ssh, &inits).unwrap(), inits[1]);
    assert!(matches!(chosen(ssh, &inits[..1]), Err(ImageError::InitWithout(TargetKind::Ssh))));
    assert!(matches!(chosen(disk, &[]), Err(ImageError::NoInit)));
}

#[test]
fn what_is_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = |config: &str| {
        let error = build(&sources(dir.path(), config)).unwrap_err();
        base::log::chain(&error)
    };
    assert!(error("[dump]\nlevel = 32").contains("line 2"), "{}", error("[dump]\nlevel = 32"));
    assert!(error("").contains("no [[target]]"));
    assert!(error(&CONFIG.replace("virtio_blk", "nvme")).contains("no module nvme"));
    let absent = error(&CONFIG.replace("modules = [\"virtio_blk\"]", ""));
    assert!(absent.contains("image.modules") && absent.contains("LABEL=x"), "{absent}");
    let path = dir.path().join("junk");
    assert!(matches!(read_contents(b"junk", &path), Err(ImageError::Unpack { .. })));
    assert!(matches!(read_contents(&[0x1f, 0x8b, 1], &path), Err(ImageError::Unpack { .. })));
    assert!(matches!(read_contents(&cpio::write(&[]), &path), Err(ImageError::Missing { .. })));
}
