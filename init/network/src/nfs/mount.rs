//! Mounting what an NFS server exports, by mount(2) alone: no mount.nfs, no rpcbind, no statd.
//!
//! The client makes itself known by a name of its own: servers tell clients by it, and two that
//! look the same throw each other out.

use core::net::IpAddr;
use std::fs;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::mount;
use nix::unistd::sethostname;

use crate::Host;
use crate::retry::Retry;
use base::beat;
use base::config::{self, NfsVersion};
use storage::mount::data_flags;
use vmcore::target::{Capture, TargetError};

/// `nfs4_unique_id`: what a client is known by (fs/nfs/nfs4client.c).
const UNIQUE_ID: &str = "/sys/module/nfs/parameters/nfs4_unique_id";
/// Tenths of a second that the server may take to answer a request, and how often it is sent again
/// then: the file system is mounted softerr, so after that calls fail with ETIMEDOUT, where an
/// error of the server's disk is EIO.
const TIMEO: u64 = 100;
/// Bytes of a request: a capture kernel has no megabytes for each of many.
const TRANSFER: u32 = 256 << 10;

/// What the server knows us by: the host's name and boot, where the capture kernel has "(none)"
/// like all others. Without it the mount may still do.
pub(super) fn introduce(capture: Capture<'_>) {
    let named = sethostname(capture.host).map_err(std::io::Error::from);
    let introduced = named.and_then(|()| {
        if !Path::new(UNIQUE_ID).exists() {
            return Ok(()); // NFS 3, or a kernel with NFS built in another way
        }
        fs::write(UNIQUE_ID, format!("afterimage-{}", capture.name))
    });
    if let Err(error) = introduced {
        log::warn!("the NFS client has no name of its own: {error}");
    }
}

/// Mounts the export from the first address that answers, again and again while there is time.
pub(super) fn mount_export(
    wanted: &config::Nfs,
    host: &Host<'_>,
    source: &str,
    at: &Path,
) -> Result<(), TargetError> {
    let peer = &host.peer;
    let mut retry = Retry::new(host.wait);
    // The addresses that the loader found come first; DNS is asked if none of them does.
    let mut known = Some(peer.addresses_now()).filter(|known| !known.is_empty());
    loop {
        let (addresses, mut why) = match known.take().map_or_else(|| peer.resolve_blocking(), Ok) {
            Ok(addresses) => (addresses, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        let mut last = None;
        for address in addresses {
            beat::alive();
            let options = options(wanted, address);
            match mount(Some(source), at, Some("nfs"), data_flags(), Some(options.as_str())) {
                Ok(()) => return Ok(()),
                Err(errno) => {
                    log::warn!("mounting {source} from {address}: {}", errno.desc());
                    last = Some(errno);
                }
            }
        }
        // What the server has decided stays decided.
        let is_final = matches!(
            last,
            Some(Errno::EACCES | Errno::EPERM | Errno::ENOENT | Errno::EINVAL | Errno::ENODEV)
        );
        match retry.pause(None) {
            Some(pause) if !is_final => {
                beat::alive();
                std::thread::sleep(pause);
            }
            _ => {
                let cause = last.map(std::io::Error::from).map(Into::into);
                let cause = cause.or_else(|| Some(why.take()?.into()));
                let cause = cause.unwrap_or_else(|| "no address".into());
                return Err(host.failed::<Box<dyn core::error::Error + Send + Sync>>("mounting it by NFS")(
                    cause,
                ));
            }
        }
    }
}

/// Options of fs/nfs/fs_context.c.
fn options(wanted: &config::Nfs, address: IpAddr) -> String {
    let version = version(wanted.version);
    let protocol = if address.is_ipv6() { "tcp6" } else { "tcp" };
    // So that `retry` seconds without an answer are an error: each time it is waited a little
    // longer (RPC_MAX_MAJOR…, net/sunrpc).
    let retrans = wanted.retry.saturating_mul(10).checked_div(TIMEO).unwrap_or(0).clamp(2, 60);
    let mut options = format!(
        "vers={version},addr={address},proto={protocol},softerr,timeo={TIMEO},retrans={retrans},rsize={TRANSFER},wsize={TRANSFER},\
         sec=sys,nosharecache"
    );
    if let Some(port) = wanted.url.port {
        options.extend([",port=", &port.to_string()]);
    }
    if version == "3" {
        // The kernel asks the server's rpcbind and mountd itself; nobody here could answer for
        // locks.
        let mountd = format!(",nolock,mountaddr={address},mountvers=3,mountproto={protocol}");
        options.push_str(&mountd);
    }
    options
}

/// The option `vers`.
pub(super) fn version(version: NfsVersion) -> &'static str {
    match version {
        NfsVersion::V3 => "3",
        NfsVersion::V4_1 => "4.1",
        NfsVersion::V4_2 => "4.2",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_name_the_address_and_bound_every_wait() {
        let target = |version: &str| {
            let text = format!(
                "[[target]]\ntype = \"nfs\"\nurl = \"nfs://filer:2050/export\"\nversion \
                 = \"{version}\"\nretry = 30\n"
            );
            match config::Config::parse(&text).unwrap().target.remove(0).place {
                config::Place::Nfs(nfs) => nfs,
                other => panic!("{other:?}"),
            }
        };
        let options = |version: &str, address: &str| options(&target(version), address.parse().unwrap());
        assert_eq!(
            options("4.2", "192.0.2.1"),
            "vers=4.2,addr=192.0.2.1,proto=tcp,softerr,timeo=100,retrans=3,rsize=262144,wsize=262144,sec=sys,nosharecache,port=2050"
        );
        let third = options("3", "2001:db8::1");
        assert!(third.ends_with(",nolock,mountaddr=2001:db8::1,mountvers=3,mountproto=tcp6"), "{third}");
    }
}
