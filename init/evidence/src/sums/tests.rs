use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use storage::targets::file::FileSink;

use super::*;

/// Bytes of a piece, here.
const SIZE: u64 = 4096;

/// What is done to a file.
#[derive(Clone)]
enum Act {
    Reserve(u64),
    Write(u64, Vec<u8>),
    Sync,
    Cut(u64),
}

impl core::fmt::Debug for Act {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Reserve(len) => write!(f, "reserve {len}"),
            Self::Write(offset, bytes) => write!(f, "write {} at {offset}", bytes.len()),
            Self::Sync => write!(f, "sync"),
            Self::Cut(len) => write!(f, "cut to {len}"),
        }
    }
}

/// Does this with a file that takes no more than `limit` bytes; gives what the sums say, and what is there.
fn done(acts: &[Act], limit: u64) -> (FileSums, Vec<u8>) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut sums = Sums::default();
    let sink = FileSink::new(file.reopen().unwrap()).limited(limit);
    let mut sink = sums.begin(Artifact::Vmcore, Box::new(sink), Running::new(SIZE, true));
    for act in acts {
        let _ = match act {
            Act::Reserve(len) => sink.reserve(*len),
            Act::Write(offset, bytes) => sink.write_at(*offset, bytes),
            Act::Sync => sink.sync(),
            Act::Cut(len) if file.as_file().metadata().unwrap().len() < *len => Ok(()), // nothing to cut
            Act::Cut(len) => sink.truncate(*len),
        };
    }
    sums.complete(Artifact::Vmcore, |at, buffer| file.as_file().read_exact_at(buffer, at));
    let sums = sums.of(Artifact::Vmcore).unwrap();
    let mut bytes = std::fs::read(file.path()).unwrap();
    bytes.truncate(to_usize(sums.bytes)); // a write that failed may have left some more
    (sums, bytes)
}

fn sum(bytes: &[u8]) -> Sum {
    Sha256::digest(bytes).into()
}

/// Whether every sum that is told is that of what is there, and the pieces are the whole file.
fn check(sums: &FileSums, bytes: &[u8]) {
    if let Some(whole) = sums.whole {
        assert_eq!(whole, sum(bytes));
    }
    let mut at = 0;
    for piece in &sums.pieces {
        assert_eq!(piece.offset, at);
        at += piece.bytes;
        let there = &bytes[to_usize(piece.offset)..to_usize(at)];
        assert_eq!(piece.sum, Some(sum(there)), "{piece:?}");
    }
    assert_eq!((at, sums.bytes), (to_u64(bytes.len()), to_u64(bytes.len())));
}

#[test]
fn what_comes_in_order_has_the_sum_of_the_whole_and_of_its_pieces() {
    let (sums, bytes) = done(&[Act::Write(0, vec![1; 5000]), Act::Write(5000, vec![2; 5000])], 1 << 20);
    check(&sums, &bytes);
    assert_eq!((sums.whole, sums.pieces.len()), (Some(sum(&bytes)), 3));
    let (sums, bytes) = done(&[Act::Write(0, vec![1; 10]), Act::Write(0, vec![2; 15])], 1 << 20);
    check(&sums, &bytes);
    assert_eq!(sums.whole, Some(sum(&bytes)), "all of it anew");
    assert!(merkle_root(&sums.pieces).is_some());
}

#[test]
fn the_front_of_a_dump_is_read_back_and_its_pages_are_not() {
    let mut acts = vec![Act::Reserve(6000), Act::Write(0, vec![9; 100])];
    for page in 0..5 {
        acts.push(Act::Write(6000 + page * 3000, vec![7; 3000]));
        acts.push(Act::Write(4000 - page * 24, vec![8; 24]));
    }
    acts.extend([Act::Write(0, vec![6; 100]), Act::Sync]);
    let (sums, bytes) = done(&acts, 1 << 20);
    check(&sums, &bytes);
    assert_eq!(sums.whole, None);
    let places: Vec<_> = sums.pieces.iter().map(|piece| (piece.offset, piece.bytes)).collect();
    assert_eq!(places, [(0, 4096), (4096, 1904), (6000, 4096), (10096, 4096), (14192, 4096), (18288, 2712)]);
}

#[test]
fn a_sum_that_cannot_be_told_is_not_told() {
    let mut sums = Sums::default();
    let file = tempfile::tempfile().unwrap();
    let mut sink = sums.begin(Artifact::Vmcore, Box::new(FileSink::new(file)), Running::new(SIZE, true));
    sink.reserve(5000).unwrap();
    sink.write_at(5000, &[1; 9000]).unwrap();
    sums.complete(Artifact::Vmcore, |_, _| Err(io::ErrorKind::Unsupported.into()));
    let known = sums.of(Artifact::Vmcore).unwrap();
    let told: Vec<_> = known.pieces.iter().map(|piece| piece.sum.is_some()).collect();
    assert_eq!((told, known.whole), (vec![false, false, true, true, true], None));
    assert_eq!(merkle_root(&known.pieces), None);
}

#[test]
fn the_tree_binds_each_piece_its_place_and_their_number() {
    let (sums, _) = done(&[Act::Write(0, vec![1; 20_000])], 1 << 20);
    let root = merkle_root(&sums.pieces);
    let mut others = Vec::new();
    for at in 0..sums.pieces.len() {
        let mut pieces = sums.pieces.clone();
        pieces[at].sum.as_mut().unwrap()[3] ^= 1;
        others.push(merkle_root(&pieces));
        let mut pieces = sums.pieces.clone();
        pieces.remove(at);
        others.push(merkle_root(&pieces));
        let mut pieces = sums.pieces.clone();
        pieces[at].offset += 1;
        others.push(merkle_root(&pieces));
    }
    assert!(root.is_some() && others.iter().all(|other| *other != root));
    assert_eq!(merkle_root(&[]), None);
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        10 => (0..40_000_u64, 0..9000_usize, any::<u8>())
            .prop_map(|(at, len, byte)| Act::Write(at, vec![byte; len])),
        2 => Just(Act::Sync),
        1 => (0..40_000_u64).prop_map(Act::Cut),
    ]
}

proptest! {
    /// Whatever is written, in whatever order, and whatever fails: what is told is true.
    #[test]
    fn what_is_told_is_what_is_there(
        front in prop::option::of(1..10_000_u64),
        acts in prop::collection::vec(act(), 0..20),
        limit in prop_oneof![Just(1_u64 << 20), 10_000..40_000_u64],
    ) {
        let acts: Vec<_> = front.map(Act::Reserve).into_iter().chain(acts).collect();
        let (sums, bytes) = done(&acts, limit);
        check(&sums, &bytes);
    }

    /// Data in order that begins behind the front: no page is read back, whatever the sizes.
    #[test]
    fn pages_in_order_are_never_read(
        front in 0..9000_u64, sizes in prop::collection::vec(1..7000_usize, 1..12)
    ) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut sums = Sums::default();
        let sink = FileSink::new(file.reopen().unwrap());
        let mut sink = sums.begin(Artifact::Vmcore, Box::new(sink), Running::new(SIZE, true));
        sink.reserve(front).unwrap();
        let mut at = front;
        for size in sizes {
            sink.write_at(at, &vec![3; size]).unwrap();
            at += to_u64(size);
        }
        let mut furthest = 0;
        sums.complete(Artifact::Vmcore, |at, buffer| {
            furthest = furthest.max(at + to_u64(buffer.len()));
            file.as_file().read_exact_at(buffer, at)
        });
        prop_assert_eq!(furthest, front);
        check(&sums.of(Artifact::Vmcore).unwrap(), &std::fs::read(file.path()).unwrap());
    }
}

/// A device that takes writes and loses them.
struct Losing;

impl Sink for Losing {
    fn write_at(&mut self, _: u64, _: &[u8]) -> Result<(), SinkError> {
        Ok(())
    }

    fn sync(&mut self) -> Result<(), SinkError> {
        Err(SinkError::Sync(io::ErrorKind::Other.into()))
    }
}

#[test]
fn what_a_device_has_lost_is_not_read_back_from_the_cache() {
    let mut sums = Sums::default();
    let mut sink = sums.begin(Artifact::Vmcore, Box::new(Losing), Running::new(SIZE, true));
    sink.write_at(0, &[1; 9000]).unwrap();
    sink.sync().unwrap_err();
    sums.complete(Artifact::Vmcore, |_, _| panic!("read back"));
    let known = sums.of(Artifact::Vmcore).unwrap();
    assert!(known.whole.is_none() && known.pieces.iter().all(|piece| piece.sum.is_none()), "{known:?}");
}
