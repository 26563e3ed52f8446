//! What this boot has: memory, processors, a disk and a network that work.

use crate::early::{self, DISK};
use crate::say::say;
use anyhow::{Context, Result, ensure};
use qemu_tests::initramfs::IP;
use qemu_tests::vm::{NETWORK_ANSWER, NETWORK_ANSWER_AT};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const CARD: &str = "eth0";
const ADDRESS: &str = "10.0.2.15/24";
const PATIENCE: Duration = Duration::from_secs(20);

/// Says it in one line.
pub(crate) fn tell(name: &str) -> Result<()> {
    let memory = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let memory = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")).context("no MemTotal")?;
    let memory: String = memory.split_whitespace().collect();
    let cpus = fs::read_to_string("/proc/cpuinfo").context("reading /proc/cpuinfo")?;
    let cpus = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let [disk, network] = [disk(name), network()].map(|result| match result {
        Ok(()) => "ok".to_owned(),
        Err(error) => {
            say(format!("production: {name}: {error:#}"));
            "broken".to_owned()
        }
    });
    say(format!("production: {name} MemTotal={memory} CPUs={cpus} disk={disk} net={network}"));
    Ok(())
}

/// Writes to the disk, and reads past the cache what it wrote.
fn disk(name: &str) -> Result<()> {
    let path = Path::new(DISK).join(format!("written-by-{name}"));
    let text = format!("{name} {}\n", early::boot_id()?).repeat(1 << 16);
    let mut file = File::create(&path).context("making a file")?;
    file.write_all(text.as_bytes()).context("writing a file")?;
    file.sync_all().context("syncing a file")?;
    fs::write("/proc/sys/vm/drop_caches", "1").context("dropping caches")?;
    ensure!(fs::read_to_string(&path).context("reading a file")? == text, "a file is not what was written");
    Ok(())
}

/// Asks the one who answers.
fn network() -> Result<()> {
    early::modules("/modules/net")?;
    early::wait_for(&Path::new("/sys/class/net").join(CARD))?;
    for arguments in [["address", "add", ADDRESS, "dev", CARD].as_slice(), &["link", "set", CARD, "up"]] {
        let output = Command::new(IP).args(arguments).output().with_context(|| format!("starting {IP}"))?;
        ensure!(output.status.success(), "{IP} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let mut stream = TcpStream::connect_timeout(&NETWORK_ANSWER_AT.parse()?, PATIENCE)
        .with_context(|| format!("connecting to {NETWORK_ANSWER_AT}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut message = [0; NETWORK_ANSWER.len()];
    stream.read_exact(&mut message).context("reading the answer")?;
    ensure!(message == NETWORK_ANSWER.as_bytes(), "the answer was {message:?}");
    Ok(())
}
