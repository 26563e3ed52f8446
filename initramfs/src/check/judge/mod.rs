//! Makes findings of what was seen on the host.

mod cmdline;
mod finish;
mod image;
mod kernel;
mod network;
mod obstacle;
mod panics;
mod target;

use super::finding::Finding;
use super::observe::host::Host;

/// All findings, in the order of reading: image, loading, kernel, targets, final actions.
pub(super) fn findings(host: &Host) -> Vec<Finding> {
    let parts = [
        image::findings(host),
        kernel::findings(host),
        panics::findings(host),
        target::findings(host),
        finish::findings(host),
    ];
    parts.into_iter().flatten().collect()
}
