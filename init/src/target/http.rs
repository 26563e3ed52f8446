//! Not there yet.

use crate::config;
use crate::sink::Sink;
use crate::target::{Artifact, Capture, Ledger, Target, TargetError};

#[derive(Debug)]
pub(super) enum Http {}

impl Http {
    pub(super) fn open(config: &config::Target, _: Capture<'_>) -> Result<Self, TargetError> {
        Err(TargetError::NotBuilt(config.kind))
    }
}

impl Target for Http {
    fn location(&self) -> String {
        match *self {}
    }

    fn ledger(&self) -> &Ledger {
        match *self {}
    }

    fn room(&self) -> Option<u64> {
        match *self {}
    }

    fn create(&mut self, _: Artifact) -> Result<Box<dyn Sink>, TargetError> {
        match *self {}
    }

    fn publish(&mut self, _: Artifact) -> Result<(), TargetError> {
        match *self {}
    }

    fn close(self: Box<Self>) -> Result<(), TargetError> {
        match *self {}
    }
}
