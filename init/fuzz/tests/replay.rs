//! Each target reads its seeds, the inputs in `inputs/TARGET` that have failed once, and damaged
//! copies of both, the same on each run. libFuzzer, which looks where nobody has looked yet, is
//! started by `scripts/fuzz`.

use std::fs;
use std::path::Path;

use afterimage_fuzz::targets::{Target, named};
use nix::sys::resource::{Resource, setrlimit};
use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop_oneof};
use proptest::sample::Index;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Damaged copies for each target.
const CASES: u32 = 2000;
/// Address space of the test, in bytes: an allocation by a number that was read fails loudly.
const ADDRESS_SPACE: u64 = 2 << 30;

/// A change of an input.
#[derive(Clone, Debug)]
enum Edit {
    /// These bytes are written at a place.
    Write(Index, Vec<u8>),
    /// A bit of the byte at a place is turned over.
    Flip(Index, u8),
    /// The input ends at a place.
    Cut(Index),
    /// So many bytes from a place on are there twice.
    Double(Index, usize),
}

impl Edit {
    fn apply(&self, input: &mut Vec<u8>) {
        if input.is_empty() {
            return;
        }
        match self {
            Self::Write(at, bytes) => {
                let at = at.index(input.len());
                for (old, new) in input[at..].iter_mut().zip(bytes) {
                    *old = *new;
                }
            }
            Self::Flip(at, bit) => {
                let at = at.index(input.len());
                input[at] ^= 1 << (bit % 8);
            }
            Self::Cut(at) => input.truncate(at.index(input.len())),
            Self::Double(at, count) => {
                let at = at.index(input.len());
                let copy = input[at..(at + count).min(input.len())].to_vec();
                input.splice(at..at, copy);
            }
        }
    }
}

/// Numbers that parsers stumble over, and any others, in both byte orders and of 1 to 8 bytes.
fn numbers() -> impl Strategy<Value = Vec<u8>> {
    let value = prop_oneof![
        any::<u64>(),
        (0_u32..64).prop_map(|bit| 1 << bit),
        (0_u32..64).prop_map(|bit| u64::MAX >> bit),
        0_u64..256,
    ];
    (value, 1_usize..=8, any::<bool>()).prop_map(|(value, len, big)| {
        let mut bytes = value.to_le_bytes()[..len].to_vec();
        if big {
            bytes.reverse();
        }
        bytes
    })
}

fn edits() -> impl Strategy<Value = Edit> {
    prop_oneof![
        4 => (any::<Index>(), numbers()).prop_map(|(at, bytes)| Edit::Write(at, bytes)),
        4 => (any::<Index>(), any::<u8>()).prop_map(|(at, bit)| Edit::Flip(at, bit)),
        1 => any::<Index>().prop_map(Edit::Cut),
        1 => (any::<Index>(), 1_usize..64).prop_map(|(at, count)| Edit::Double(at, count)),
    ]
}

/// The seeds of a target, and what is kept of its failures.
fn inputs(target: &Target) -> Vec<Vec<u8>> {
    let mut inputs = (target.seeds)();
    assert!(!inputs.is_empty(), "{} has no seed", target.name);
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("inputs").join(target.name);
    if let Ok(files) = fs::read_dir(&kept) {
        let files = files.map(|file| file.expect("an entry").path());
        inputs.extend(
            files.map(|path| fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))),
        );
    }
    inputs
}

fn replay(name: &str) {
    setrlimit(Resource::RLIMIT_AS, ADDRESS_SPACE, ADDRESS_SPACE).expect("a limit on memory");
    let target = named(name).expect("a target");
    let inputs = inputs(target);
    for input in &inputs {
        (target.check)(input);
    }
    // A debug file, and a walk that runs into its limit of time, take as long as a hundred other inputs;
    // qemu-tests damage those of real kernels.
    let cases = match name {
        "symbols" => CASES / 10,
        "triage" => CASES / 50,
        _ => CASES,
    };
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let damaged = (any::<Index>(), vec(edits(), 1..6)).prop_map(|(input, edits)| {
        let mut input = input.get(&inputs).clone();
        for edit in edits {
            edit.apply(&mut input);
        }
        input.truncate(target.max_len);
        input
    });
    let outcome = runner.run(&damaged, |input| {
        (target.check)(&input);
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{name}: {error}");
    }
}

/// A test for each target.
macro_rules! replayed {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name));
        })*

        #[test]
        fn each_target_is_replayed() {
            let targets = afterimage_fuzz::targets::TARGETS;
            let mut all: Vec<_> = targets.iter().map(|target| target.name).collect();
            all.sort_unstable();
            assert_eq!(all, [$(stringify!($name)),*]);
        }
    };
}

replayed! {
    btf config dmesg elf evidence filter image kdump kexec net rawdump stack superblocks symbols triage
    vmcoreinfo
}
