//! Who wants a switch and why, and the file that remembers it when the machine is gone.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use base::facts::Intent;
use base::time::utc;
use serde::Serialize;

use crate::host;

/// What is written into the file of intents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Event {
    /// A switch begins.
    Intent,
    /// It did not come about, and the host runs on.
    Failed,
    /// The page is loaded: any kexec from now on is a switch.
    Staged,
    /// And no more.
    Unstaged,
}

#[derive(Debug, Serialize)]
struct Line<'a> {
    event: Event,
    time: Option<String>,
    host: String,
    boot_id: String,
    #[serde(flatten)]
    intent: &'a Intent,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'a str>,
}

/// Appends a line to the file of intents at `path`, durably.
pub(super) fn record(path: &Path, event: Event, intent: &Intent, cause: Option<&str>) -> io::Result<()> {
    let line = Line {
        event,
        time: utc(super::now()),
        host: host::read("/proc/sys/kernel/hostname"),
        boot_id: host::read("/proc/sys/kernel/random/boot_id"),
        intent,
        cause,
    };
    let mut text = base::text::json(&serde_json::to_string(&line)?);
    text.push('\n');
    let dir = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mut options = OpenOptions::new();
    let mut file = options.append(true).create(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    File::open(dir)?.sync_all()
}

/// Says it in the kernel log, which is in the dump.
pub(super) fn tell_kernel(intent: &Intent) -> io::Result<()> {
    OpenOptions::new().write(true).open("/dev/kmsg")?.write_all(kernel_line(intent).as_bytes())
}

/// One line: a second one would be a message of its own, with a level of its choice.
fn kernel_line(intent: &Intent) -> String {
    let Intent { who, why, ticket, .. } = intent;
    let why = if why.is_empty() { "no reason given" } else { why };
    let ticket = if ticket.is_empty() { String::new() } else { format!(" ({ticket})") };
    let text = format!("afterimage: planned switch by {who}: {why}{ticket}");
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(900).collect();
    format!("<5>{line}\n")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use std::fs;

    use super::*;

    #[test]
    fn intents_are_lines_of_json() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/intents.jsonl");
        let intent = Intent { who: "root".into(), why: "a \"b\"\nc".into(), at: 5, ..Intent::default() };
        record(&path, Event::Intent, &intent, None).unwrap();
        record(&path, Event::Failed, &intent, Some("no kexec")).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!((&lines[0]["event"], &lines[0]["why"]), (&"intent".into(), &"a \"b\"\nc".into()));
        assert_eq!((&lines[1]["event"], &lines[1]["cause"]), (&"failed".into(), &"no kexec".into()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let taken = dir.path().join("new/intents.jsonl/x");
        assert!(record(&taken, Event::Intent, &intent, None).is_err());
    }

    #[test]
    fn the_kernel_log_gets_one_line() {
        let intent =
            Intent { who: "root".into(), why: "a\n<0>b".into(), ticket: "T-1".into(), ..Intent::default() };
        assert_eq!(kernel_line(&intent), "<5>afterimage: planned switch by root: a <0>b (T-1)\n");
        let long = Intent { why: "x".repeat(5000), ..Intent::default() };
        assert!(kernel_line(&long).len() < 976, "LOG_LINE_MAX of the kernel");
    }
}
