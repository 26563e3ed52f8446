//! Bytes on their way into buffers: each that is full is handed on.

use std::time::Duration;

use hyper::body::Bytes;
use sha2::{Digest, Sha256};

use base::addr::to_u64;
use base::beat;

use super::SinkProblem;
use super::index::hex;
use super::pool::Pool;

/// How often it is looked for failures while no buffer is free.
const LOOK: Duration = Duration::from_secs(1);

/// The buffer that is being filled, and what went before it.
pub(super) struct Filling {
    pool: Pool,
    buffer: Option<Vec<u8>>,
    /// Bytes so far.
    pub(super) at: u64,
    /// Of what was handed on.
    pub(super) whole: Sha256,
}

impl Filling {
    /// Nothing yet.
    pub(super) fn new(pool: Pool) -> Self {
        Self { pool, buffer: None, at: 0, whole: Sha256::new() }
    }

    /// What is in the last buffer.
    pub(super) fn rest(&mut self) -> Vec<u8> {
        self.buffer.take().unwrap_or_default()
    }

    /// A buffer, to be sent.
    pub(super) fn lend(&mut self, buffer: Vec<u8>) -> Bytes {
        self.whole.update(&buffer);
        self.pool.lend(buffer)
    }

    /// SHA-256 of what was handed on.
    pub(super) fn sum(&self) -> String {
        hex(&self.whole.clone().finalize().into())
    }
}

/// An artifact that is sent buffer by buffer.
pub(super) trait Filled {
    /// What is being filled.
    fn filling(&mut self) -> &mut Filling;

    /// Whether all is well so far.
    fn check(&mut self) -> Result<(), SinkProblem>;

    /// Sends a buffer that is full on its way.
    fn hand_on(&mut self, buffer: Vec<u8>) -> Result<(), SinkProblem>;

    /// Takes the next bytes. Waits while all buffers are full of what has not arrived.
    fn write(&mut self, mut bytes: &[u8]) -> Result<(), SinkProblem> {
        self.check()?;
        while !bytes.is_empty() {
            let mut buffer = match self.filling().buffer.take() {
                Some(buffer) => buffer,
                None => self.free_buffer()?,
            };
            let filling = self.filling();
            let room = filling.pool.part().saturating_sub(buffer.len());
            let (now, later) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
            buffer.extend_from_slice(now);
            filling.at = filling.at.saturating_add(to_u64(now.len()));
            bytes = later;
            if buffer.len() >= filling.pool.part() {
                self.hand_on(buffer)?;
            } else {
                filling.buffer = Some(buffer);
            }
        }
        Ok(())
    }

    /// Waits for one.
    fn free_buffer(&mut self) -> Result<Vec<u8>, SinkProblem> {
        loop {
            self.check()?;
            if let Some(buffer) = self.filling().pool.take(LOOK).map_err(SinkProblem::Memory)? {
                return Ok(buffer);
            }
            beat::alive(); // what is on its way has its limits of time
        }
    }
}
