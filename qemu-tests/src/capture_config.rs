//! config.toml of a capture, as far as tests vary it.

use serde_json::Value;

/// Where dumps go below the root of the target's file system.
pub(crate) const DUMPS: &str = "/var/crash";

/// config.toml of the capture, as far as tests vary it.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[dump] level`.
    pub level: u8,
    /// `[dump] compress`.
    pub compress: String,
    /// `[[target]] device`.
    pub device: String,
    /// `[[target]] fstype`.
    pub fstype: String,
    /// `[[target]] wait`, in seconds.
    pub wait: u32,
    /// All targets, in their order; when there is any, `device`, `fstype` and `wait` do not count.
    pub targets: Vec<Target>,
    /// `[capture] cpus`.
    pub cpus: u32,
    /// `[capture] stall_timeout`, in seconds.
    pub stall_timeout: u32,
    /// More lines of `[capture]`.
    pub capture: String,
    /// Added to the capture kernel's command line.
    pub append: String,
    /// `[finish] action`.
    pub action: String,
    /// `[triage] save`: most tests are not about it, and it takes seconds.
    pub triage: String,
    /// All lines of `[finish]`; when there is any, `action` does not count.
    pub finish: String,
    /// `[image] compress`.
    pub image_compress: String,
    /// `[image] strip`.
    pub strip: String,
    /// `[image] modules`.
    pub modules: Vec<String>,
    /// More sections, at the end: `[[hook]]`.
    pub more: String,
}

/// A `[[target]]` with any keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target(Vec<(String, Value)>);

impl Default for Config {
    fn default() -> Self {
        Self {
            level: 31,
            compress: "zstd:1".into(),
            device: "LABEL=dump".into(),
            fstype: "ext4".into(),
            wait: 30,
            targets: Vec::new(),
            cpus: 1,
            stall_timeout: 300,
            capture: String::new(),
            append: String::new(),
            action: "reboot".into(),
            triage: "nothing".into(),
            finish: String::new(),
            image_compress: "gzip".into(),
            strip: "auto".into(),
            modules: ["virtio_pci", "virtio_blk"].map(str::to_owned).into(),
            more: String::new(),
        }
    }
}

impl Config {
    /// The file; `append` goes to the capture's command line before what the configuration itself
    /// adds.
    pub(crate) fn toml(&self, append: &str) -> String {
        let Self {
            level,
            compress,
            triage,
            cpus,
            stall_timeout,
            capture,
            image_compress,
            strip,
            modules,
            more,
            ..
        } = self;
        let action = format!("action = {:?}", self.action);
        let finish = if self.finish.is_empty() { &action } else { &self.finish };
        let only = [Target::filesystem(&self.device).key("fstype", &*self.fstype).key("wait", self.wait)];
        let targets = if self.targets.is_empty() { &only } else { self.targets.as_slice() };
        let targets: String = targets.iter().map(Target::toml).collect();
        let append = [append, &self.append].join(" ");
        let append = append.trim();
        format!(
            "[dump]\nlevel = {level}\ncompress = {compress:?}\n\n[triage]\nsave = {triage:?}\n\n{targets}\
             [capture]\ncpus = {cpus}\nstall_timeout = {stall_timeout}\ncmdline_append = \
             {append:?}\ncmdline_remove = []\n\
             {capture}\n\n[finish]\n{finish}\n\n\
             [image]\ncompress = {image_compress:?}\nstrip = {strip:?}\nmodules = {modules:?}\n\n{more}\n"
        )
    }
}

impl Target {
    /// A directory in the file system on `device`.
    #[must_use]
    pub fn filesystem(device: &str) -> Self {
        Self(Vec::new()).key("type", "filesystem").key("device", device).key("path", DUMPS)
    }

    /// One of this type, without any other key.
    #[must_use]
    pub fn any(kind: &str) -> Self {
        Self(Vec::new()).key("type", kind)
    }

    /// The whole of `device`.
    #[must_use]
    pub fn raw(device: &str) -> Self {
        Self(Vec::new()).key("type", "raw").key("device", device)
    }

    /// The same with a key: texts, numbers, truth values and lists of them are written alike in
    /// JSON and TOML.
    #[must_use]
    pub fn key(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.0.retain(|(name, _)| name != key);
        self.0.push((key.into(), value.into()));
        self
    }

    fn toml(&self) -> String {
        let keys: Vec<_> = self.0.iter().map(|(key, value)| format!("{key} = {value}")).collect();
        format!("[[target]]\n{}\n\n", keys.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_product_reads_what_is_written() {
        let parse = |config: &Config| base::config::Config::parse(&config.toml("a b"));
        let mut config = Config::default();
        let parsed = parse(&config).unwrap();
        assert_eq!((parsed.target.len(), parsed.target[0].wait), (1, 30));
        config.targets = vec![
            Target::filesystem("LABEL=a").key("keep", 3).key("wait", 1).key("wait", 2),
            Target::raw("UUID=5a17c0de-0000-4000-8000-00000000d15c").key("overwrite", vec!["uncollected"]),
        ];
        config.capture = "deadline = 60".into();
        config.append = "c".into();
        let parsed = parse(&config).unwrap();
        assert_eq!((parsed.target[0].share().keep, parsed.target[0].wait), (Some(3), 2));
        let base::config::Place::Raw(raw) = &parsed.target[1].place else { panic!("{:?}", parsed.target[1]) };
        assert_eq!(raw.overwrite, ["uncollected"]);
        assert_eq!((parsed.capture.deadline, &*parsed.capture.cmdline_append), (Some(60), "a b c"));
    }
}
