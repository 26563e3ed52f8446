//! Tests of [`super`].

use super::*;

/// A tuner that has seen pages of 10 us and 1000 bytes at the level of the start: each step up
/// the ladder costs half as much again and saves a tenth.
fn tuner(speed: Option<f64>, taken: f64) -> Tuner {
    let tuner = Tuner::new(Compress::Auto, 1);
    let mut state = tuner.state().unwrap();
    let (mut seconds, mut bytes) = (10e-6 / 1.5_f64.powi(3), 1000.0 / 0.9_f64.powi(3));
    for rung in &mut state.rungs {
        rung.add(seconds, bytes, (10e-6, 1000.0));
        (seconds, bytes) = (seconds * 1.5, bytes * 0.9);
    }
    (state.speed, state.taken) = (speed, taken);
    drop(state);
    tuner
}

#[test]
fn the_level_follows_the_slower_side() {
    let level = |speed, taken| {
        let tuner = tuner(speed, taken);
        tuner.choose(&tuner.state().unwrap());
        tuner.level.load(Ordering::Relaxed)
    };
    assert_eq!(level(None, 1e9), -5, "no sink is ever waited for");
    assert_eq!(level(None, 0.0), CAUTIOUS, "the sink has not been used yet");
    assert_eq!(level(Some(1e12), 0.0), -5);
    assert_eq!(level(Some(1e6), 1e9), 12, "656 us for what level 12 leaves");
    // 10 us of compression against 1000 bytes at 100 MB/s: neither side waits.
    assert_eq!(level(Some(100e6), 1e9), START);
}

#[test]
fn a_sink_that_is_on_the_cpu_itself_is_dear_and_not_slow() {
    let tuner = tuner(None, 1e9);
    let mut state = tuner.state().unwrap();
    let second = Duration::from_secs(1);
    let Watch { bytes, writing, cpu, working, began, .. } = &mut state.window;
    // Half of the time it encrypts 10 MB: 50 us for the 1000 bytes of a page.
    (*bytes, *writing, *cpu, *working) = (10e6, second / 2, second / 2, second / 2);
    let process = *began + second;
    state.look(second, process, 1.0);
    assert_eq!(state.speed, None);
    tuner.choose(&state);
    assert_eq!(
        tuner.level.load(Ordering::Relaxed),
        3,
        "15 us and 45 us: as long as level 1 takes, and smaller"
    );
}

#[test]
fn a_sink_is_slow_while_it_is_waited_for_and_may_be_faster_later() {
    let tuner = tuner(None, 0.0);
    let mut state = tuner.state().unwrap();
    let second = Duration::from_secs(1);
    let mut window = |bytes, writing, synced| {
        (state.window.bytes, state.window.writing, state.window.synced) = (bytes, writing, synced);
        let process = state.window.began + second / 10;
        state.look(second, process, 1.0);
        state.speed
    };
    assert_eq!(window(50e6, second / 100, false), None, "hardly waited for");
    assert_eq!(window(1e6, second, true), None, "a sync says nothing");
    assert_eq!(window(50e6, second / 2, false), Some(50e6));
    assert_eq!(window(10e6, second / 100, false), Some(50e6 * GROWTH));
    assert_eq!(window(80e6, second / 100, false), Some(80e6), "it took as much");
}
