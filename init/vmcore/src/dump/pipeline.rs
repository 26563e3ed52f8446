//! The data pass: read, test for zero, compress, in batches; hand the batches on in the order of
//! the walk.
//!
//! With one CPU everything happens in the caller's thread; the sink goes on writing meanwhile. With
//! more, each worker has its own reader and codec, and the caller's thread writes. Batches come
//! from a fixed pool, so memory is bounded, and leave in order, so that the dump is the same for
//! any number of workers (unless the level follows the sink: [`Tuner`]).

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use crate::budget::BATCH_BYTES;
use crate::dump::codec::{Codec, is_zero};
use crate::dump::plan::{Plan, Run, Sequence, Walk};
use crate::dump::tuner::{Probe, Tuner};
use crate::dump::{DumpError, Request};
use crate::filter::order::Turn;
use crate::format::kdump::Compression;
use crate::source::{PageReader, PhysicalMemory};
use base::addr::{Pfn, PfnRange, to_u64, to_usize};
use base::beat::{self, Beat};
use base::lock::lock;

/// Batches in the pool for each worker: one in work, one waiting for its turn to be written.
const BATCHES_PER_WORKER: usize = 2;
/// Pages that are read between two messages about which ones.
const PAGES_PER_BEAT: usize = 32;

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

/// Kept pages, ready to be written.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// When the pages' turn is.
    pub(super) turn: Turn,
    /// Which pages.
    pub(super) runs: Vec<Run>,
    /// A body per page.
    pub(super) bodies: Vec<Body>,
    /// Data of the pages that have some, one after the other. Never grows beyond its first size.
    room: Vec<u8>,
    used: usize,
}

impl Batch {
    /// A batch for `pages` pages of `page_size` bytes.
    fn new(pages: u64, page_size: usize) -> Self {
        let room = vec![0; to_usize(pages).saturating_mul(page_size)];
        let bodies = Vec::with_capacity(to_usize(pages));
        Self { bodies, room, ..Self::default() }
    }

    /// Data of the pages that have some, one after the other.
    pub(super) fn data(&self) -> &[u8] {
        self.room.get(..self.used).unwrap_or_default()
    }
}

/// Runs the data pass and calls `emit` with each batch, in order; it says whether it has synced.
/// Stops at the first error of `emit`.
pub(super) fn run(
    memory: &dyn PhysicalMemory,
    plan: &Plan<'_>,
    request: &Request,
    mut emit: impl FnMut(&Batch) -> Result<bool, DumpError>,
) -> Result<(), DumpError> {
    let pages = BATCH_BYTES.checked_div(memory.page_size().bytes()).unwrap_or(1).max(1);
    let tuner = Tuner::new(request.compress(), request.budget.workers);
    if request.budget.workers > 1
        && let Some(result) = parallel(memory, plan, request, &tuner, pages, &mut emit)
    {
        return result;
    }
    let mut worker = Worker::new(0, memory, request, &tuner);
    let mut walk = Walk::new(plan, sequence(request));
    let mut batch = Batch::new(pages, memory.page_size().in_memory());
    while let Some(turn) = walk.next(pages, &mut batch.runs) {
        worker.fill(turn, &mut batch);
        tuner.emitting(batch.data().len(), || emit(&batch))?;
    }
    tuner.log();
    Ok(())
}

fn sequence(request: &Request) -> Sequence {
    if request.format.takes_any_order() { Sequence::Vital } else { Sequence::Address }
}

/// The data pass with threads; `None` if not one could be started, and then nothing has been
/// emitted.
fn parallel(
    memory: &dyn PhysicalMemory,
    plan: &Plan<'_>,
    request: &Request,
    tuner: &Tuner,
    pages: u64,
    emit: &mut impl FnMut(&Batch) -> Result<bool, DumpError>,
) -> Option<Result<(), DumpError>> {
    let workers = request.budget.workers;
    let pool = workers.saturating_mul(BATCHES_PER_WORKER);
    let walk = Mutex::new((Walk::new(plan, sequence(request)), 0_u64));
    let next = |batch: &mut Batch| {
        let mut walk = lock(&walk);
        let (walk, number) = &mut *walk;
        let turn = walk.next(pages, &mut batch.runs)?;
        let this = *number;
        *number = this.saturating_add(1);
        Some((turn, this))
    };
    let (free_in, free) = sync_channel::<Batch>(pool);
    let (done_in, done) = sync_channel::<(u64, Batch)>(pool); // never full: there are only `pool` batches
    let free = Mutex::new(free);
    for _ in 0..pool {
        let _ = free_in.send(Batch::new(pages, memory.page_size().in_memory()));
    }
    thread::scope(|scope| {
        let mut started = 0_usize;
        for number in 0..workers {
            let (next, free, done_in) = (&next, &free, done_in.clone());
            let body = move || {
                let mut worker = Worker::new(number, memory, request, tuner);
                work_until_done(&mut worker, next, free, &done_in);
            };
            match thread::Builder::new().spawn_scoped(scope, body) {
                Ok(_) => started = started.saturating_add(1),
                Err(error) => log::warn!("worker thread not started: {error}"),
            }
        }
        drop(done_in);
        let result = (started > 0).then(|| write_in_order(&done, &free_in, tuner, pool, emit));
        drop(free_in); // workers that wait for a batch stop
        tuner.log();
        result
    })
}

/// A batch is taken before its work, so that the batch that is next in order always has a worker.
fn work_until_done(
    worker: &mut Worker<'_>,
    next: &impl Fn(&mut Batch) -> Option<(Turn, u64)>,
    free: &Mutex<Receiver<Batch>>,
    done: &SyncSender<(u64, Batch)>,
) {
    loop {
        let Ok(mut batch) = lock(free).recv() else { return };
        let Some((turn, number)) = next(&mut batch) else { return };
        worker.fill(turn, &mut batch);
        if done.send((number, batch)).is_err() {
            return;
        }
    }
}

fn write_in_order(
    done: &Receiver<(u64, Batch)>,
    free: &SyncSender<Batch>,
    tuner: &Tuner,
    pool: usize,
    emit: &mut impl FnMut(&Batch) -> Result<bool, DumpError>,
) -> Result<(), DumpError> {
    let slot = |number: u64| to_usize(number.checked_rem(to_u64(pool)).unwrap_or(0));
    let mut waiting: Vec<Option<Batch>> = Vec::new();
    waiting.resize_with(pool, || None);
    let mut next = 0_u64;
    while let Ok((number, batch)) = tuner.waiting(|| done.recv()) {
        if let Some(place) = waiting.get_mut(slot(number)) {
            *place = Some(batch);
        }
        while let Some(batch) = waiting.get_mut(slot(next)).and_then(Option::take) {
            tuner.emitting(batch.data().len(), || emit(&batch))?;
            next = next.saturating_add(1);
            let _ = free.send(batch);
        }
    }
    Ok(())
}

/// Reads and compresses pages.
struct Worker<'a> {
    number: usize,
    request: &'a Request,
    reader: Box<dyn PageReader + 'a>,
    codec: Codec,
    tuner: &'a Tuner,
    probe: Probe,
    page: Vec<u8>,
}

impl<'a> Worker<'a> {
    fn new(number: usize, memory: &'a dyn PhysicalMemory, request: &'a Request, tuner: &'a Tuner) -> Self {
        let compress = request.compress();
        let codec = Codec::new(compress).unwrap_or_else(|error| {
            log::warn!("{compress} is not available ({error}): pages are stored as they are");
            Codec::None
        });
        let page = vec![0; memory.page_size().in_memory()];
        Self { number, request, reader: memory.page_reader(), codec, tuner, probe: tuner.probe(), page }
    }

    fn fill(&mut self, turn: Turn, batch: &mut Batch) {
        batch.turn = turn;
        batch.bodies.clear();
        batch.used = 0;
        self.probe.begin(self.tuner, &mut self.codec);
        let pages_per_beat = if self.request.careful { 1 } else { PAGES_PER_BEAT };
        let mut pages = batch.runs.iter().flat_map(|run| run.pages.start().0..run.pages.end().0).peekable();
        while let Some(pfn) = pages.next() {
            // Pages that lie further apart are found by the next attempt, which tells each.
            if batch.bodies.len().is_multiple_of(pages_per_beat)
                && let Some(pages) = PfnRange::new(Pfn(pfn), Pfn(pfn).saturating_add(to_u64(pages_per_beat)))
            {
                beat::tell(&Beat::Reading(self.number, pages));
            }
            let body = self.body(Pfn(pfn), pages.peek().copied().map(Pfn), &mut batch.room, &mut batch.used);
            batch.bodies.push(body);
        }
        beat::tell(&Beat::Read(self.number));
        self.probe.end(self.tuner);
    }

    fn body(&mut self, pfn: Pfn, next: Option<Pfn>, room: &mut [u8], used: &mut usize) -> Body {
        if self.request.is_skipped(pfn) {
            return Body::Unreadable;
        }
        if let Err(error) = self.reader.read_page(pfn, &mut self.page) {
            log::debug!("page {pfn}: {}", base::log::chain(&error));
            return Body::Unreadable;
        }
        if is_zero(&self.page) {
            return Body::Zero;
        }
        if let Some(next) = next {
            self.reader.expect(next);
        }
        self.probe.page(&self.page);
        let out = room.get_mut(*used..).unwrap_or_default();
        let (len, compression) = self.codec.pack_or_copy(&self.page, out);
        *used = used.saturating_add(len);
        Body::Data { compression, size: u32::try_from(len).unwrap_or(u32::MAX) }
    }
}
