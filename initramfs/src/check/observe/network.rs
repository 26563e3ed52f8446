//! Looks at a target on the network: whether it answers now, and what proves who we are.

use base::config::{Config, Network, Place, Target};

use super::modules::{Unknown, closure};
use crate::modules::ModuleTree;
use crate::{drivers, network, remote};

/// What a target on the network is, seen from this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Addresses of its host.
    pub addresses: Vec<String>,
    /// Whether it takes connections.
    pub connects: Result<(), String>,
    /// Whether keys and certificates can be read.
    pub secrets: Result<(), String>,
    /// Until when the keys are good, seconds since 1970: those on disk.
    pub expires: Option<u64>,
    /// The same of those that went with the image that is loaded.
    pub loaded_expires: Option<u64>,
    /// Now, seconds since 1970.
    pub now: u64,
    /// Modules on the way there, or why they are not known.
    pub modules: Result<Vec<String>, Unknown>,
}

/// Looks at the host of a target. `loaded` is until when the keys are good that are loaded.
#[must_use]
pub fn look(
    target: &Target,
    network: &Network,
    tree: Result<&ModuleTree, &String>,
    loaded_expires: Option<u64>,
) -> Option<Reach> {
    let url = target.url()?;
    let addresses = remote::resolve(url).unwrap_or_default();
    let alone = Config { target: vec![target.clone()], network: network.clone(), ..Config::default() };
    let gathered = remote::gather(&alone);
    let expires =
        gathered.as_ref().ok().and_then(|gathered| gathered.expiries.first()).map(|expiry| expiry.at);
    Some(Reach {
        modules: tree.map_err(String::clone).and_then(|tree| modules(&alone, tree)).map_err(Unknown::Other),
        connects: remote::connects(url, &addresses),
        addresses: addresses.iter().map(ToString::to_string).collect(),
        secrets: gathered.map(drop).map_err(|error| base::log::chain(&error)),
        expires,
        loaded_expires,
        now: std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs()),
    })
}

/// The modules of the way to the only target of a configuration.
fn modules(config: &Config, tree: &ModuleTree) -> Result<Vec<String>, String> {
    let text = |error: &dyn core::error::Error| base::log::chain(error);
    let links = network::links(config, &remote::located(config)).map_err(|error| text(&error))?;
    let mut roots = network::modules(&links, tree).map_err(|error| text(&error))?.all();
    for target in &config.target {
        if let Place::Nfs(nfs) = &target.place {
            roots.extend(drivers::nfs_modules(nfs.version));
        }
    }
    closure(&roots, tree)
}
