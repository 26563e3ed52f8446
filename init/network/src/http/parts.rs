//! An artifact on its way: bytes fill a part while those before it are sent. What is small goes in
//! one piece under its own name; what has more parts than an object may have goes on in the next
//! object.

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use sha2::{Digest, Sha256};
use tokio::task::JoinSet;

use crate::runtime::Runtime;

use super::filling::{Filled, Filling};
use super::index::{Entry, Index, object_name};
use super::insist::UploadError;
use super::object::{Begun, Part, Sum};
use super::pool::Pool;
use super::store::Store;
use super::{SinkProblem, wait};

/// To say that an upload is given up.
const GOODBYE: Duration = Duration::from_secs(10);
/// For a part that is on its way when the dump ends early: 5 MiB over a line that is just good
/// enough (`min_rate`).
const LAST_PART: Duration = Duration::from_secs(80);

/// An artifact that is sent in parts.
pub(super) struct Upload {
    runtime: Arc<Runtime>,
    store: Arc<Store>,
    /// Of the artifact, and of its first object.
    name: String,
    max_parts: usize,
    /// Whether it goes as one file if it is no longer than a part.
    may_be_one: bool,
    filling: Filling,
    /// Of the object, from the second one on; the first is the whole as long as there is no other.
    object_sum: Option<Sha256>,
    object: Option<Begun>,
    /// Parts of it that were sent, and that have arrived.
    sent: usize,
    arrived: Vec<Option<Part>>,
    under_way: JoinSet<(usize, Result<Part, UploadError>)>,
    /// Objects all of whose parts have arrived. They become whole together: one alone would look
    /// like the whole artifact.
    ended: Vec<Ended>,
    retries: Arc<AtomicU64>,
    failed: Option<Arc<UploadError>>,
    is_finished: bool,
}

impl Upload {
    /// Nothing is sent yet.
    pub(super) fn new(
        runtime: Arc<Runtime>,
        store: Arc<Store>,
        name: &str,
        pool: Pool,
        max_parts: u32,
        may_be_one: bool,
    ) -> Self {
        Self {
            runtime,
            store,
            name: name.to_owned(),
            max_parts: usize::try_from(max_parts.max(1)).unwrap_or(usize::MAX),
            may_be_one,
            filling: Filling::new(pool),
            object_sum: None,
            object: None,
            sent: 0,
            arrived: Vec::new(),
            under_way: JoinSet::new(),
            ended: Vec::new(),
            retries: Arc::default(),
            failed: None,
            is_finished: false,
        }
    }

    /// How often something had to be sent again.
    pub(super) fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Waits until all of it is there, and makes it whole. Its length and SHA-256.
    pub(super) fn finish(&mut self) -> Result<(u64, String), SinkProblem> {
        self.check()?;
        let last = self.filling.rest();
        if self.may_be_one && self.sent == 0 && self.ended.is_empty() {
            let bytes = self.filling.lend(last);
            let put = wait(&self.runtime, self.store.put(&self.name, bytes, &self.retries));
            self.keep(put)?;
        } else {
            if !last.is_empty() || (self.sent == 0 && self.ended.is_empty()) {
                self.hand_on(last)?;
            }
            self.end_object()?;
            self.complete()?;
            self.put_index()?;
        }
        self.is_finished = true;
        Ok((self.filling.at, self.filling.sum()))
    }

    /// The name that the artifact has there.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Makes objects of what has arrived of an artifact that will not be whole, and an index beside
    /// them whose name says so. Whether anything is there then.
    pub(super) fn leave(&mut self) -> bool {
        if self.is_finished {
            return false;
        }
        let last = self.filling.rest();
        if self.failed.is_none() && !last.is_empty() {
            let _ = self.hand_on(last); // kept, and what arrived before it counts
        }
        // A host that has failed is not waited for once more.
        let patience = if self.failed.is_some() { GOODBYE } else { LAST_PART };
        let failed = self.failed.take(); // what fails from here on is another thing
        let runtime = Arc::clone(&self.runtime);
        loop {
            let arriving = async { tokio::time::timeout(patience, self.under_way.join_next()).await };
            let Ok(Some(done)) = wait(&runtime, arriving) else { break };
            let _ = self.arrive(done);
        }
        self.under_way.abort_all();
        self.failed = failed.or(self.failed.take());
        if let Some(object) = self.object.take() {
            let parts: Vec<Part> = core::mem::take(&mut self.arrived).into_iter().flatten().collect();
            self.ended.push(Ended { object, parts, sum: Sum::default() });
        }
        let there = core::mem::take(&mut self.ended);
        let (there, empty): (Vec<_>, Vec<_>) = there.into_iter().partition(|ended| !ended.parts.is_empty());
        self.ended = empty; // to be given up when this is dropped
        let completing = async { tokio::time::timeout(GOODBYE, self.complete_cut(&there)).await };
        let completed = wait(&runtime, completing);
        match completed {
            Ok(Ok(())) => !there.is_empty(),
            other => {
                if let Ok(Err(error)) = other {
                    log::warn!("{}: what arrived of it: {}", self.name, base::log::chain(&error));
                }
                self.ended.extend(there);
                false
            }
        }
    }

    async fn complete_cut(&self, there: &[Ended]) -> Result<(), UploadError> {
        if there.is_empty() {
            return Ok(());
        }
        let bytes =
            there.iter().flat_map(|ended| &ended.parts).map(|part| part.bytes).fold(0, u64::saturating_add);
        // Its name first: what is not whole must not look whole at any time.
        let keeps_parts = self.store.keeps_parts();
        let entry = |ended: &Ended| Entry::of_cut(&ended.object.name, &ended.parts, keeps_parts);
        let objects = there.iter().map(entry).collect();
        let index = Index { name: &self.name, incomplete: true, bytes, sha256: String::new(), objects };
        let name = format!("{}-incomplete.json", self.name);
        self.store.put(&name, Bytes::from(index.to_json()), &self.retries).await?;
        for Ended { object, parts, .. } in there.iter().rev() {
            self.store.complete(object, parts, &self.retries).await?;
        }
        log::warn!("{}: {bytes} bytes of it arrived; {name} says that it is not whole", self.name);
        Ok(())
    }

    /// Waits for the parts of the object that is being sent.
    fn end_object(&mut self) -> Result<(), SinkProblem> {
        while !self.under_way.is_empty() {
            if let Some(done) = wait(&self.runtime, self.under_way.join_next()) {
                self.arrive(done)?;
            }
        }
        let Some(object) = self.object.take() else { return Ok(()) };
        let parts = core::mem::take(&mut self.arrived).into_iter().flatten().collect();
        let sum = self.object_sum.as_ref().unwrap_or(&self.filling.whole).clone().finalize().into();
        self.ended.push(Ended { object, parts, sum });
        self.sent = 0;
        Ok(())
    }

    /// Makes objects of the parts. The first one comes last: under its name the artifact is looked
    /// for.
    fn complete(&mut self) -> Result<(), SinkProblem> {
        for index in (0..self.ended.len()).rev() {
            let Some(Ended { object, parts, .. }) = self.ended.get(index) else { break };
            let completed = wait(&self.runtime, self.store.complete(object, parts, &self.retries));
            self.keep(completed)?;
        }
        Ok(())
    }

    fn begun(&mut self) -> Result<Begun, SinkProblem> {
        if let Some(object) = &self.object {
            return Ok(object.clone());
        }
        let name = object_name(&self.name, self.ended.len().saturating_add(1));
        let begun = wait(&self.runtime, self.store.begin(&name, &self.retries));
        let begun = self.keep(begun)?;
        self.object = Some(begun.clone());
        Ok(begun)
    }

    fn arrive(
        &mut self,
        done: Result<(usize, Result<Part, UploadError>), tokio::task::JoinError>,
    ) -> Result<(), SinkProblem> {
        let gone = || UploadError::Gone { what: self.name.clone() };
        let (index, part) = done.unwrap_or_else(|_| (0, Err(gone())));
        let part = self.keep(part)?;
        if let Some(place) = self.arrived.get_mut(index) {
            *place = Some(part);
        }
        Ok(())
    }

    /// Remembers a failure: nothing that comes after it can make the artifact whole.
    fn keep<T>(&mut self, result: Result<T, UploadError>) -> Result<T, SinkProblem> {
        result.map_err(|error| {
            let error = Arc::clone(self.failed.get_or_insert_with(|| Arc::new(error)));
            SinkProblem::Upload(error)
        })
    }

    fn put_index(&mut self) -> Result<(), SinkProblem> {
        let lists_parts = self.store.keeps_parts();
        if self.ended.len() <= 1 && !lists_parts {
            return Ok(());
        }
        let entry = |ended: Ended| Entry::new(&ended.object.name, &ended.sum, &ended.parts, lists_parts);
        let objects = core::mem::take(&mut self.ended).into_iter().map(entry).collect();
        let index = Index {
            name: &self.name,
            incomplete: false,
            bytes: self.filling.at,
            sha256: self.filling.sum(),
            objects,
        };
        let name = format!("{}.json", self.name);
        let put = wait(&self.runtime, self.store.put(&name, Bytes::from(index.to_json()), &self.retries));
        self.keep(put)
    }
}

impl Filled for Upload {
    fn filling(&mut self) -> &mut Filling {
        &mut self.filling
    }

    /// What was sent is not waited for: a part has a least size, so the last bytes cannot go yet.
    fn check(&mut self) -> Result<(), SinkProblem> {
        while let Some(done) = self.under_way.try_join_next() {
            let _ = self.arrive(done); // kept, and told below
        }
        self.failed.as_ref().map_or(Ok(()), |error| Err(SinkProblem::Upload(Arc::clone(error))))
    }

    fn hand_on(&mut self, buffer: Vec<u8>) -> Result<(), SinkProblem> {
        if self.sent >= self.max_parts {
            self.end_object()?;
            self.object_sum = Some(Sha256::new());
        }
        if let Some(sum) = &mut self.object_sum {
            sum.update(&buffer);
        }
        let bytes = self.filling.lend(buffer);
        let object = self.begun()?;
        let index = self.sent;
        self.sent = index.saturating_add(1);
        self.arrived.push(None);
        let number = u32::try_from(self.sent).unwrap_or(u32::MAX);
        let (store, retries) = (Arc::clone(&self.store), Arc::clone(&self.retries));
        let sending = async move { (index, store.part(&object, number, bytes, &retries).await) };
        self.under_way.spawn_on(sending, self.runtime.handle());
        Ok(())
    }
}

/// An object that is not whole yet.
struct Ended {
    object: Begun,
    parts: Vec<Part>,
    sum: Sum,
}

impl Drop for Upload {
    /// What is not finished is given up: nothing of it stays that anybody would pay for.
    fn drop(&mut self) {
        if self.is_finished {
            return;
        }
        // A host may keep a part whose request it was still reading when the upload was given up
        // (S3's documentation of AbortMultipartUpload), so parts on their way may arrive before it.
        // One that has failed is not waited for.
        let patience = if self.failed.is_some() { Duration::ZERO } else { GOODBYE };
        let under_way = &mut self.under_way;
        let settling = async {
            let arriving = async { while under_way.join_next().await.is_some() {} };
            if tokio::time::timeout(patience, arriving).await.is_err() {
                under_way.shutdown().await;
            }
        };
        wait(&self.runtime, settling);
        let ended = core::mem::take(&mut self.ended).into_iter().map(|ended| ended.object);
        for object in self.object.take().into_iter().chain(ended) {
            let aborting = async { tokio::time::timeout(GOODBYE, self.store.abort(&object)).await };
            match wait(&self.runtime, aborting) {
                Ok(Ok(())) => log::warn!("{} is given up, and its parts are removed", object.name),
                Ok(Err(error)) => log::warn!("{}", base::log::chain(&error)),
                Err(_) => {
                    log::warn!("{} is given up: the host does not answer", object.name);
                    break;
                }
            }
        }
    }
}
