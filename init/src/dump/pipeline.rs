//! The data pass: read, test for zero, compress, in batches; hand the batches on in PFN order.
//!
//! With one CPU everything happens in the caller's thread. With more, each worker has its own reader and
//! codec, and the caller's thread writes. Batches come from a fixed pool, so memory is bounded, and leave in
//! order, so that the dump is the same for any number of workers.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::addr::{Pfn, PfnRange, to_u64, to_usize};
use crate::budget::BATCH_BYTES;
use crate::dump::codec::{Codec, is_zero};
use crate::dump::plan::{Plan, Work};
use crate::dump::{DumpError, Request};
use crate::format::kdump::Compression;
use crate::source::{PageReader, PhysicalMemory};

/// Batches in the pool for each worker: one in work, one waiting for its turn to be written.
const BATCHES_PER_WORKER: usize = 2;

/// What became of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// The next `size` bytes of the batch's data.
    Data { compression: Compression, size: u32 },
    /// All zero.
    Zero,
    /// Could not be read.
    Unreadable,
}

/// Consecutive kept pages, ready to be written.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Rank of the first page.
    pub(super) rank: u64,
    /// Which pages; none if that cannot be told any more and the bodies say that they are lost.
    pub(super) pages: Vec<PfnRange>,
    /// A body per page.
    pub(super) bodies: Vec<Body>,
    /// Data of the pages that have some, one after the other.
    pub(super) data: Vec<u8>,
}

/// Runs the data pass and calls `emit` with each batch, in order. Stops at the first error of `emit`.
pub(super) fn run(
    memory: &dyn PhysicalMemory,
    plan: &Plan<'_>,
    request: &Request,
    mut emit: impl FnMut(&Batch) -> Result<(), DumpError>,
) -> Result<(), DumpError> {
    let pages = BATCH_BYTES.checked_div(memory.page_size().bytes()).unwrap_or(1);
    if request.budget.workers > 1
        && let Some(result) = parallel(memory, plan, request, pages, &mut emit)
    {
        return result;
    }
    let mut worker = Worker::new(memory, request);
    let (mut walk, mut batch) = (plan.walk(), Batch::default());
    while let Some(work) = walk.next(pages, &mut batch.pages) {
        worker.fill(work, &mut batch);
        emit(&batch)?;
    }
    Ok(())
}

/// The data pass with threads; `None` if not one could be started, and then nothing has been emitted.
fn parallel(
    memory: &dyn PhysicalMemory,
    plan: &Plan<'_>,
    request: &Request,
    pages: u64,
    emit: &mut impl FnMut(&Batch) -> Result<(), DumpError>,
) -> Option<Result<(), DumpError>> {
    let workers = request.budget.workers;
    let pool = workers.saturating_mul(BATCHES_PER_WORKER);
    let walk = Mutex::new((plan.walk(), 0_u64));
    let next = |batch: &mut Batch| {
        let mut walk = walk.lock().unwrap_or_else(PoisonError::into_inner);
        let (walk, turn) = &mut *walk;
        let work = walk.next(pages, &mut batch.pages)?;
        let this = *turn;
        *turn = this.saturating_add(1);
        Some((work, this))
    };
    let (free_in, free) = sync_channel::<Batch>(pool);
    let (done_in, done) = sync_channel::<(u64, Batch)>(pool); // never full: there are only `pool` batches
    let free = Mutex::new(free);
    for _ in 0..pool {
        let _ = free_in.send(Batch::default());
    }
    thread::scope(|scope| {
        let mut started = 0_usize;
        for _ in 0..workers {
            let (next, free, done_in) = (&next, &free, done_in.clone());
            let body = move || work_until_done(&mut Worker::new(memory, request), next, free, &done_in);
            match thread::Builder::new().spawn_scoped(scope, body) {
                Ok(_) => started = started.saturating_add(1),
                Err(error) => log::warn!("worker thread not started: {error}"),
            }
        }
        drop(done_in);
        let result = (started > 0).then(|| write_in_order(&done, &free_in, pool, emit));
        drop(free_in); // workers that wait for a batch stop
        result
    })
}

/// A batch is taken before its work, so that the batch that is next in order always has a worker.
fn work_until_done(
    worker: &mut Worker<'_>,
    next: &impl Fn(&mut Batch) -> Option<(Work, u64)>,
    free: &Mutex<Receiver<Batch>>,
    done: &SyncSender<(u64, Batch)>,
) {
    loop {
        let Ok(mut batch) = free.lock().unwrap_or_else(PoisonError::into_inner).recv() else { return };
        let Some((work, turn)) = next(&mut batch) else { return };
        worker.fill(work, &mut batch);
        if done.send((turn, batch)).is_err() {
            return;
        }
    }
}

fn write_in_order(
    done: &Receiver<(u64, Batch)>,
    free: &SyncSender<Batch>,
    pool: usize,
    emit: &mut impl FnMut(&Batch) -> Result<(), DumpError>,
) -> Result<(), DumpError> {
    let slot = |turn: u64| to_usize(turn.checked_rem(to_u64(pool)).unwrap_or(0));
    let mut waiting: Vec<Option<Batch>> = Vec::new();
    waiting.resize_with(pool, || None);
    let mut next = 0_u64;
    while let Ok((turn, batch)) = done.recv() {
        if let Some(place) = waiting.get_mut(slot(turn)) {
            *place = Some(batch);
        }
        while let Some(batch) = waiting.get_mut(slot(next)).and_then(Option::take) {
            emit(&batch)?;
            next = next.saturating_add(1);
            let _ = free.send(batch);
        }
    }
    Ok(())
}

/// Reads and compresses pages.
struct Worker<'a> {
    reader: Box<dyn PageReader + 'a>,
    codec: Codec,
    finds_zeros: bool,
    page: Vec<u8>,
}

impl<'a> Worker<'a> {
    fn new(memory: &'a dyn PhysicalMemory, request: &Request) -> Self {
        let compress = request.compress();
        let codec = Codec::new(compress).unwrap_or_else(|error| {
            log::warn!("{compress} is not available ({error}): pages are stored as they are");
            Codec::None
        });
        let page = vec![0; memory.page_size().in_memory()];
        Self { reader: memory.page_reader(), codec, finds_zeros: request.finds_zeros(), page }
    }

    fn fill(&mut self, work: Work, batch: &mut Batch) {
        batch.rank = work.rank;
        batch.bodies.clear();
        batch.data.clear();
        for pfn in batch.pages.iter().flat_map(|run| run.start().0..run.end().0) {
            let body = self.body(Pfn(pfn), &mut batch.data);
            batch.bodies.push(body);
        }
        batch.bodies.resize(to_usize(work.pages), Body::Unreadable); // a unit whose pages cannot be told any more
    }

    fn body(&mut self, pfn: Pfn, data: &mut Vec<u8>) -> Body {
        if let Err(error) = self.reader.read_page(pfn, &mut self.page) {
            log::debug!("page {pfn}: {}", crate::log::chain(&error));
            return Body::Unreadable;
        }
        if self.finds_zeros && is_zero(&self.page) {
            return Body::Zero;
        }
        let start = data.len();
        let compression = self.codec.append(&self.page, data);
        let size = u32::try_from(data.len().saturating_sub(start)).unwrap_or(u32::MAX);
        Body::Data { compression, size }
    }
}
