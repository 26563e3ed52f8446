//! What a load leaves for the evidence of a capture.

use std::path::Path;

use base::config::Config;
use base::facts;

use super::Loaded;
use crate::{evidence, image};

/// The key that signs the capture, and what is written down of this load. Without them the capture is
/// saved all the same, and not signed.
pub(super) fn armed_with(
    loaded: &Loaded,
    contents: &image::Contents,
    image: &[u8],
    kernel: &[u8],
) -> Option<facts::Evidence> {
    if !contents.config.evidence.save {
        return None;
    }
    let warn =
        |error: &evidence::ArmError| log::warn!("a capture will not be signed: {}", base::log::chain(error));
    let parts = evidence::Parts {
        image,
        kernel,
        init_sha256: &contents.init_sha256,
        config_sha256: &contents.config_sha256,
    };
    evidence::arm(loaded, &parts).inspect_err(warn).ok()
}

pub(super) fn publish(made: Option<&facts::Evidence>, at: u64, config: &Config) {
    let directory = config.evidence.arm_records.as_str();
    let Some(made) = made.filter(|_| !directory.is_empty()) else { return };
    if let Err(error) = evidence::publish(made, at, Path::new(directory)) {
        log::warn!("{directory}: {error}: who collects captures does not find the arm record there");
    }
}
