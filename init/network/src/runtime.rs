//! A thread that talks to the network while the capture reads and compresses.

use core::future::Future;
use std::io;
use std::thread::{self, JoinHandle};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// The thread. It ends when this is dropped, and what runs on it with it.
#[derive(Debug)]
pub(crate) struct Runtime {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Runtime {
    /// Starts it.
    pub(crate) fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let body = move || {
            let _ = runtime.block_on(stopped); // an error is the end of who would say stop
            runtime.shutdown_background();
        };
        let thread = thread::Builder::new().name("network".to_owned()).spawn(body)?;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread) })
    }

    /// What futures are spawned on.
    #[must_use]
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Waits for a future in this thread; the other one does its I/O.
    pub(crate) fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.handle.block_on(future)
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // it has said so itself if it panicked
        }
    }
}
