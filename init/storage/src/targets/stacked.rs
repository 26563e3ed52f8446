//! A target on LVM or LUKS: what it stands on is set up first, and taken down last.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::block;
use crate::stack::{self, Active};
use base::config::{self, DeviceId};
use base::facts::Stack;
use vmcore::sink::Sink;
use vmcore::target::{Artifact, Capture, Ledger, Target, TargetError};

/// A target and the devices under it. The order of the fields is that in which they are dropped.
pub(super) struct Stacked {
    target: Box<dyn Target>,
    active: Active,
}

impl Stacked {
    /// Sets up `stack` and opens the target on it.
    pub(super) fn open(
        config: &config::Target,
        capture: Capture<'_>,
        stack: &Stack,
    ) -> Result<Self, TargetError> {
        let wanted = config.device.as_ref().ok_or_else(super::no_device)?;
        let active = stack::activate(stack, Duration::from_secs(config.wait), capture.heartbeat)?;
        // That very device: a copy elsewhere may have the same UUID.
        let device = match active.top() {
            Some(top) if block::inspect(top).matches(wanted) => DeviceId::Path(top.display().to_string()),
            top => {
                return Err(TargetError::new(format!(
                    "{} was set up for {wanted}, which is not on it",
                    top.unwrap_or(Path::new("")).display()
                )));
            }
        };
        let config = config::Target { device: Some(device), ..config.clone() };
        Ok(Self { target: super::open_plain(&config, capture)?, active })
    }
}

impl Target for Stacked {
    fn location(&self) -> String {
        self.target.location()
    }

    fn directory(&self) -> Option<PathBuf> {
        self.target.directory()
    }

    fn ledger(&self) -> &Ledger {
        self.target.ledger()
    }

    fn room(&self) -> Option<u64> {
        self.target.room()
    }

    fn create(&mut self, artifact: Artifact) -> Result<Box<dyn Sink>, TargetError> {
        self.target.create(artifact)
    }

    fn publish(&mut self, artifact: Artifact) -> Result<(), TargetError> {
        self.target.publish(artifact)
    }

    fn retire(&mut self, heartbeat: &dyn Fn()) -> Result<(), TargetError> {
        self.target.retire(heartbeat)
    }

    fn close(self: Box<Self>) -> Result<(), TargetError> {
        let Self { target, active } = *self;
        let closed = target.close();
        drop(active); // what is still mounted stays set up, with a warning
        closed
    }
}
