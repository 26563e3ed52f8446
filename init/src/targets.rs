//! The one file that knows all kinds of target.

use base::config::{self, Network as Links, TargetKind};
use base::facts::Facts;
use vmcore::target::{Capture, Target, TargetError};

/// Kinds of targets that this program was built with. `afterimage build` looks for this text in an
/// init. It is made while the program is compiled, so that it names no other kinds.
pub(crate) const BUILT_WITH: &[&str] = &[
    TargetKind::Filesystem.mark(),
    TargetKind::Raw.mark(),
    #[cfg(feature = "network")]
    TargetKind::Ssh.mark(),
    #[cfg(feature = "network")]
    TargetKind::Nfs.mark(),
    #[cfg(feature = "network")]
    TargetKind::Https.mark(),
    #[cfg(feature = "network")]
    TargetKind::S3.mark(),
];

/// What opening a target needs besides the target itself.
pub(crate) struct Ways {
    #[cfg(feature = "network")]
    network: network::Network,
}

impl Ways {
    /// The links of the configuration, or those that the loader recorded. Nothing is brought up
    /// yet.
    #[cfg_attr(
        not(feature = "network"),
        expect(clippy::missing_const_for_fn, unused_variables, reason = "no network")
    )]
    pub(crate) fn new(links: &Links, facts: &Facts) -> Self {
        Self {
            #[cfg(feature = "network")]
            network: network::Network::of(links.links().unwrap_or(&facts.network).to_vec()),
        }
    }

    /// Seconds that it may take to bring the network up.
    #[cfg_attr(not(feature = "network"), expect(clippy::unused_self, reason = "no network"))]
    pub(crate) fn network_patience(&self) -> u64 {
        #[cfg(feature = "network")]
        let seconds = self.network.patience();
        #[cfg(not(feature = "network"))]
        let seconds = 0;
        seconds
    }

    /// Opens a target. The error says why it cannot be used.
    #[cfg_attr(not(feature = "network"), expect(clippy::unused_self, reason = "no network"))]
    pub(crate) fn open(
        &self,
        config: &config::Target,
        capture: Capture<'_>,
    ) -> Result<Box<dyn Target>, TargetError> {
        if config.kind().is_remote() {
            #[cfg(feature = "network")]
            return network::open(config, capture, &self.network);
            #[cfg(not(feature = "network"))]
            return Err(TargetError::not_built(config.kind()));
        }
        storage::open(config, capture)
    }
}
