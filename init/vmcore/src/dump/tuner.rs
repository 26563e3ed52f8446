//! `compress = "auto"`: which zstd level ends the dump soonest, found while it runs.
//!
//! A dump takes as long as the slower of two: the CPUs that compress, and the sink that takes what
//! is left. A higher level moves work from the sink to the CPUs. Some pages are compressed at all
//! levels of a ladder, so that what each costs and saves is known for *these* pages on *this* CPU;
//! how fast the sink is shows whenever it is the slower one. Sinks go on writing while the CPU
//! compresses (page cache, socket buffer), so the two overlap, with one thread as with more.

use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use crate::dump::codec::{AUTO_START as START, Codec};
use base::addr::to_u64;
use base::config::Compress;
use base::lock::lock;

/// The levels that there is a choice of; between them lies nothing of use
/// (docs/design/pipeline.md).
const LADDER: [i32; 8] = [-5, -3, -1, START, 3, 6, 9, 12];
/// Of these, the ones that cost several times as much as the others, and are tried on fewer pages.
const COSTLY: i32 = 6;
/// One of so many trials has the costly levels.
const COSTLY_EVERY: u64 = 8;
/// The first pages of a worker that are tried, one of [`DENSE`] each; later one of [`SPARSE`].
const EARLY: u64 = 128;
const DENSE: u64 = 8;
const SPARSE: u64 = 2048;
/// Pages after which what was measured counts half: memory is not the same everywhere.
const MEMORY: f64 = 256.0;
/// How long the sink is watched before the level is thought over; less in the beginning.
const WINDOW: Duration = Duration::from_millis(50);
const EARLY_WINDOW: Duration = Duration::from_millis(6);
const EARLY_WINDOWS: u64 = 8;
/// A sink that is waited for in more than this part of the time is the slower one; with threads,
/// one that waits less.
const WAITED_FOR: f64 = 0.05;
/// A sink that is not the slower one may be faster than it was last seen: its speed is taken to
/// grow by this in a window.
const GROWTH: f64 = 1.05;
/// Until a sink has taken so many bytes, it may still hide that it is the slower one; then no level
/// below [`CAUTIOUS`] is worth its bytes.
const UNPROVEN: f64 = 4e6;
const CAUTIOUS: i32 = -1;
/// Bytes after which what the sink cost counts half.
const LONG_AGO: f64 = 32e6;
/// Levels that take as long as the best one but for this are as good: of these, the one that makes
/// the smallest dump.
const AS_GOOD: f64 = 1.01;

/// What the threads of a dump share.
pub(super) struct Tuner {
    level: AtomicI32,
    workers: f64,
    /// None unless the level is to be found.
    state: Option<Mutex<State>>,
}

/// What was measured.
struct State {
    rungs: [Rung; LADDER.len()],
    /// CPU time of the workers for a page, divided by the time that compressing it took in a trial. It
    /// is above 1 because a page is also read, and below 1 because a trial finds cold CPU caches.
    scale: Option<f64>,
    /// CPU seconds that this process spent beside its workers, and the bytes that it wrote with
    /// them: a sink may encrypt in a thread of its own.
    beside: (f64, f64),
    /// Bytes per second that the sink takes; unknown while it was never the slower one.
    speed: Option<f64>,
    /// Threads' worth of CPU that the process gets: others may want it, too.
    threads: f64,
    window: Watch,
    windows: u64,
    /// Bytes that the sink took.
    taken: f64,
    /// Batches by level.
    used: [u64; LADDER.len()],
}

/// A level, against [`START`] on the same pages.
#[derive(Clone, Copy, Default)]
struct Rung {
    seconds: f64,
    bytes: f64,
    start_seconds: f64,
    start_bytes: f64,
    pages: f64,
}

impl Rung {
    fn add(&mut self, seconds: f64, bytes: f64, start: (f64, f64)) {
        if self.pages >= MEMORY {
            for sum in [&mut self.seconds, &mut self.bytes, &mut self.start_seconds, &mut self.start_bytes] {
                *sum /= 2.0;
            }
            self.pages /= 2.0;
        }
        self.seconds += seconds;
        self.bytes += bytes;
        self.start_seconds += start.0;
        self.start_bytes += start.1;
        self.pages += 1.0;
    }
}

/// What the writing thread did since `since`.
struct Watch {
    since: Instant,
    bytes: f64,
    /// In the sink.
    writing: Duration,
    /// What this process was on the CPU meanwhile, in whatever thread.
    cpu: Duration,
    /// CPU time of the process at `since`.
    began: Duration,
    /// For workers.
    waiting: Duration,
    threaded: bool,
    /// Everything had to reach the disk: that says nothing about how fast it takes more.
    synced: bool,
    /// CPU time of the workers.
    working: Duration,
}

impl Watch {
    fn new() -> Self {
        let none = Duration::ZERO;
        Self {
            since: Instant::now(),
            bytes: 0.0,
            writing: none,
            cpu: none,
            began: cpu_time(PROCESS),
            waiting: none,
            threaded: false,
            synced: false,
            working: none,
        }
    }

    /// Bytes per second, if the sink was the slower one.
    fn speed_of_sink(&self, elapsed: Duration) -> Option<f64> {
        let all = elapsed.as_secs_f64();
        let slower = if self.threaded {
            self.waiting.as_secs_f64() < all * WAITED_FOR
        } else {
            self.writing.saturating_sub(self.cpu).as_secs_f64() > all * WAITED_FOR
        };
        slower.then_some(self.bytes / all)
    }
}

impl Tuner {
    pub(super) fn new(compress: Compress, workers: usize) -> Self {
        let workers = f64::from(u32::try_from(workers).unwrap_or(u32::MAX).max(1));
        let state = (compress == Compress::Auto).then(|| {
            Mutex::new(State {
                rungs: [Rung::default(); LADDER.len()],
                scale: None,
                beside: (0.0, 0.0),
                speed: None,
                threads: workers,
                window: Watch::new(),
                windows: 0,
                taken: 0.0,
                used: [0; LADDER.len()],
            })
        });
        Self { level: AtomicI32::new(START), workers, state }
    }

    fn state(&self) -> Option<MutexGuard<'_, State>> {
        self.state.as_ref().map(|state| lock(state))
    }

    /// A worker's part of it.
    pub(super) fn probe(&self) -> Probe {
        let codecs = if self.state.is_some() {
            LADDER
                .iter()
                .filter_map(|&level| Some((level, Codec::new(Compress::Zstd(level)).ok()?)))
                .collect()
        } else {
            Vec::new()
        };
        Probe { codecs, ..Probe::default() }
    }

    /// Watches the sink take `bytes`. `emit` says whether it has synced, too.
    pub(super) fn emitting<E>(&self, bytes: usize, emit: impl FnOnce() -> Result<bool, E>) -> Result<(), E> {
        if self.state.is_none() {
            return emit().map(drop);
        }
        let (start, cpu) = (Instant::now(), cpu_time(PROCESS));
        let synced = emit()?;
        let (writing, cpu) = (start.elapsed(), cpu_time(PROCESS).saturating_sub(cpu));
        if let Some(mut state) = self.state() {
            state.taken += float(bytes);
            let window = &mut state.window;
            window.bytes += float(bytes);
            window.synced |= synced;
            window.writing = window.writing.saturating_add(writing);
            window.cpu = window.cpu.saturating_add(cpu);
            let elapsed = window.since.elapsed();
            let enough = if state.windows < EARLY_WINDOWS { EARLY_WINDOW } else { WINDOW };
            if elapsed >= enough {
                state.look(elapsed, cpu_time(PROCESS), self.workers);
                self.choose(&state);
            }
        }
        Ok(())
    }

    /// Watches the writing thread wait for the workers.
    pub(super) fn waiting<T>(&self, wait: impl FnOnce() -> T) -> T {
        if self.state.is_none() {
            return wait();
        }
        let start = Instant::now();
        let result = wait();
        if let Some(mut state) = self.state() {
            state.window.waiting = state.window.waiting.saturating_add(start.elapsed());
            state.window.threaded = true;
        }
        result
    }

    fn choose(&self, state: &State) {
        let unproven = state.speed.is_none() && state.taken < UNPROVEN;
        let ladder = LADDER.iter().filter(|&&level| !unproven || level >= CAUTIOUS);
        let times: Vec<(i32, f64)> =
            ladder.filter_map(|&level| Some((level, state.seconds_per_page(level)?))).collect();
        let Some(best) = times.iter().map(|&(_, seconds)| seconds).min_by(f64::total_cmp) else { return };
        let good = times.iter().filter(|&&(_, seconds)| seconds <= best * AS_GOOD).map(|&(level, _)| level);
        let size = |level: i32| state.cost(level).map_or(f64::INFINITY, |(_, bytes)| bytes);
        if let Some(level) = good.min_by(|&a, &b| size(a).total_cmp(&size(b))) {
            let before = self.level.swap(level, Ordering::Relaxed);
            if before != level {
                let speed = state.speed.unwrap_or(f64::INFINITY) / 1e6;
                log::debug!(
                    "zstd level {before} to {level}: {:.2} us a page, sink {speed:.0} MB/s",
                    best * 1e6
                );
            }
        }
    }

    /// Says which levels were used.
    pub(super) fn log(&self) {
        let Some(state) = self.state() else { return };
        let all: u64 = state.used.iter().fold(0, |sum, &used| sum.saturating_add(used));
        let share = |used: u64| used.saturating_mul(100).checked_div(all).unwrap_or(0);
        let text: Vec<String> = LADDER
            .iter()
            .zip(state.used)
            .filter(|&(_, used)| used > 0)
            .map(|(level, used)| format!("{level} for {}%", share(used)))
            .collect();
        let speed = state
            .speed
            .map_or_else(|| "never the slower one".into(), |speed| format!("{:.0} MB/s", speed / 1e6));
        log::info!("zstd levels: {}; sink: {speed}", text.join(", "));
    }
}

impl State {
    /// Ends a window, at this CPU time of the process.
    fn look(&mut self, elapsed: Duration, process: Duration, workers: f64) {
        let window = core::mem::replace(&mut self.window, Watch::new());
        self.windows = self.windows.saturating_add(1);
        if window.synced {
            return;
        }
        let speed = window.speed_of_sink(elapsed);
        let spent = process.saturating_sub(window.began);
        if window.threaded && speed.is_none() {
            let seen = spent.as_secs_f64() / elapsed.as_secs_f64();
            self.threads = f64::midpoint(self.threads, seen.clamp(0.5, workers));
        }
        // A worker tells what it took when it has finished a batch: of one window that may be wrong
        // either way.
        let beside = spent.as_secs_f64() - window.working.as_secs_f64();
        self.beside = (self.beside.0 + beside, self.beside.1 + window.bytes);
        if self.beside.1 > LONG_AGO {
            self.beside = (self.beside.0 / 2.0, self.beside.1 / 2.0);
        }
        let taken = window.bytes / elapsed.as_secs_f64();
        self.speed = match (speed, self.speed) {
            (Some(seen), Some(before)) => Some(f64::midpoint(seen, before)),
            (Some(seen), None) => Some(seen),
            (None, before) => before.map(|before| taken.max(before * GROWTH)),
        };
    }

    /// Seconds that a page takes at a level.
    fn seconds_per_page(&self, level: i32) -> Option<f64> {
        let (cpu, bytes) = self.cost(level)?;
        // In the beginning, what workers have not told yet would be taken for the sink's.
        let per_byte = if self.beside.1 >= UNPROVEN { (self.beside.0 / self.beside.1).max(0.0) } else { 0.0 };
        let cpu = (self.scale.unwrap_or(1.0) * cpu + bytes * per_byte) / self.threads;
        Some(self.speed.map_or(cpu, |speed| cpu.max(bytes / speed)))
    }

    /// CPU seconds for compressing a page at a level, and the bytes it has then.
    fn cost(&self, level: i32) -> Option<(f64, f64)> {
        let rung = |wanted: i32| {
            let index = LADDER.iter().position(|&level| level == wanted)?;
            self.rungs.get(index).filter(|rung| rung.pages > 0.0)
        };
        let (start, rung) = (rung(START)?, rung(level)?);
        let seconds = start.seconds / start.pages * rung.seconds / rung.start_seconds.max(f64::MIN_POSITIVE);
        let bytes = start.bytes / start.pages * rung.bytes / rung.start_bytes.max(f64::MIN_POSITIVE);
        Some((seconds, bytes))
    }
}

/// Tries levels on some of a worker's pages.
#[derive(Default)]
pub(super) struct Probe {
    codecs: Vec<(i32, Codec)>,
    level: i32,
    /// Whether costly levels are of any use: only a sink that is the slower one wants them.
    wants_costly: bool,
    /// Pages seen and tried.
    seen: u64,
    tried: u64,
    /// In this batch: when it began and what the trials took, CPU time; pages that were compressed.
    began: Duration,
    trials: Duration,
    compressed: u64,
    found: Vec<(usize, f64, f64, (f64, f64))>,
    out: Vec<u8>,
}

impl Probe {
    /// Begins a batch: sets the level.
    pub(super) fn begin(&mut self, tuner: &Tuner, codec: &mut Codec) {
        if self.codecs.is_empty() {
            return;
        }
        let level = tuner.level.load(Ordering::Relaxed);
        if level != self.level {
            self.level = level;
            codec.set_level(level);
        }
        (self.began, self.trials, self.compressed) = (cpu_time(THREAD), Duration::ZERO, 0);
    }

    /// Sees a page that is going to be compressed.
    pub(super) fn page(&mut self, page: &[u8]) {
        if self.codecs.is_empty() {
            return;
        }
        self.compressed = self.compressed.saturating_add(1);
        let every = if self.seen < EARLY { DENSE } else { SPARSE };
        let due = self.seen.is_multiple_of(every);
        self.seen = self.seen.saturating_add(1);
        if due {
            self.try_levels(page);
        }
    }

    fn try_levels(&mut self, page: &[u8]) {
        let began = cpu_time(THREAD);
        let costly = self.wants_costly && self.tried.is_multiple_of(COSTLY_EVERY);
        self.tried = self.tried.saturating_add(1);
        self.out.resize(page.len(), 0);
        let mut results: Vec<(usize, f64, f64)> = Vec::with_capacity(LADDER.len());
        let mut start = None;
        for (index, (level, codec)) in self.codecs.iter_mut().enumerate() {
            if *level >= COSTLY && !costly {
                continue;
            }
            // Twice: the second time the level's tables are in the CPU's caches, as they are when
            // all pages have this level.
            let _ = codec.pack_or_copy(page, &mut self.out);
            let before = cpu_time(THREAD);
            let (len, _) = codec.pack_or_copy(page, &mut self.out);
            let seconds = cpu_time(THREAD).saturating_sub(before).as_secs_f64();
            results.push((index, seconds, float(len)));
            if *level == START {
                start = Some((seconds, float(len)));
            }
        }
        if let Some(start) = start {
            self.found
                .extend(results.into_iter().map(|(index, seconds, bytes)| (index, seconds, bytes, start)));
        }
        self.trials = self.trials.saturating_add(cpu_time(THREAD).saturating_sub(began));
    }

    /// Ends a batch: tells what was found.
    pub(super) fn end(&mut self, tuner: &Tuner) {
        let Some(mut state) = tuner.state() else { return };
        if state.speed.is_some() && !self.wants_costly {
            (self.wants_costly, self.seen, self.tried) = (true, 0, 0);
        }
        for (index, seconds, bytes, start) in self.found.drain(..) {
            if let Some(rung) = state.rungs.get_mut(index) {
                rung.add(seconds, bytes, start);
            }
        }
        if let Some(used) =
            LADDER.iter().position(|&level| level == self.level).and_then(|at| state.used.get_mut(at))
        {
            *used = used.saturating_add(1);
        }
        let all = cpu_time(THREAD).saturating_sub(self.began);
        state.window.working = state.window.working.saturating_add(all);
        let spent = all.saturating_sub(self.trials).as_secs_f64();
        let pages = f64::from(u32::try_from(self.compressed).unwrap_or(u32::MAX));
        if pages > 0.0
            && let Some((compressing, _)) = state.cost(self.level).filter(|&(seconds, _)| seconds > 0.0)
        {
            let scale = spent / pages / compressing;
            state.scale = Some(state.scale.map_or(scale, |before| before * 0.9 + scale * 0.1));
        }
        if state.windows == 0 {
            tuner.choose(&state); // the first trials are enough to leave the level of the start
        }
    }
}

/// All threads.
const PROCESS: ClockId = ClockId::CLOCK_PROCESS_CPUTIME_ID;
/// This one.
const THREAD: ClockId = ClockId::CLOCK_THREAD_CPUTIME_ID;

/// CPU time so far.
fn cpu_time(whose: ClockId) -> Duration {
    clock_gettime(whose).map(Duration::from).unwrap_or_default()
}

fn float(bytes: usize) -> f64 {
    f64::from(u32::try_from(to_u64(bytes)).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests;
