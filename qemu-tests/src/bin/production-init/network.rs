//! Brings the host onto the network by what its image says, for the loader to find it there.

use crate::early;
use crate::say::say;
use anyhow::{Context, Result, ensure};
use qemu_tests::initramfs::{IP, IP_BATCH};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A bond of two emulated machines needs some seconds to come up.
const PATIENCE: Duration = Duration::from_mins(1);
const ATTEMPT: Duration = Duration::from_secs(5);

/// Does nothing where the image says nothing; then waits until `reach` accepts connections.
pub(crate) fn bring_up(reach: Option<&str>) -> Result<()> {
    if Path::new(IP_BATCH).exists() {
        early::modules("/modules/net")?;
        early::wait_for(Path::new("/sys/class/net/eth0"))?;
        // The driver makes one when it is loaded, of a mode that is not asked for.
        if Path::new("/sys/class/net/bond0").exists() {
            ip(&["link", "delete", "bond0"])?;
        }
        ip(&["link", "set", "lo", "up"])?;
        ip(&["-batch", IP_BATCH])?;
    }
    reach.map_or(Ok(()), self::reach)
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new(IP).args(arguments).output().with_context(|| format!("starting {IP}"))?;
    ensure!(output.status.success(), "{IP} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn reach(whom: &str) -> Result<()> {
    let address: SocketAddr = whom.parse().with_context(|| format!("prod.reach={whom}"))?;
    let started = Instant::now();
    loop {
        match TcpStream::connect_timeout(&address, ATTEMPT) {
            Ok(_) => break,
            Err(error) if started.elapsed() > PATIENCE => {
                return Err(error).with_context(|| format!("connecting to {whom}"));
            }
            Err(_) => sleep(Duration::from_millis(200)),
        }
    }
    say(format!("production: network: {whom} answers"));
    Ok(())
}
