//! The books of the pool, with a server that is made up.

use super::Out;
use super::*;
use russh_sftp::protocol::{ExtendedReply, Packet, Status, StatusCode};

const CHUNK: usize = 1000;

fn pool(limit: usize, fsync: bool) -> Pool {
    let mut pool = Pool::new(limit, Offers { fsync, statvfs: true, write_len: CHUNK });
    pool.add(Artifact::Vmcore, "v", "h".into(), 0).unwrap();
    pool
}

/// Ids of all that is sent now, and how many bytes of data.
fn send(pool: &mut Pool) -> (Vec<u32>, usize) {
    let (mut ids, mut bytes) = (Vec::new(), 0);
    while let Some(out) = pool.take().unwrap() {
        let head = match out {
            Out::Packet(packet) => packet.to_vec(),
            Out::Write(header, data) => {
                bytes += data.len();
                header
            }
        };
        ids.push(u32::from_be_bytes(head[5..9].try_into().unwrap()));
    }
    (ids, bytes)
}

fn status(id: u32, status_code: StatusCode) -> Packet {
    let (error_message, language_tag) = (String::new(), String::new());
    Packet::Status(Status { id, status_code, error_message, language_tag })
}

fn answer_all(pool: &mut Pool, ids: Vec<u32>) {
    for id in ids {
        pool.answer(status(id, StatusCode::Ok)).unwrap();
    }
}

#[test]
fn small_writes_become_large_ones_and_the_limit_holds() {
    let mut pool = pool(20 * CHUNK, false);
    let mut at = 0;
    loop {
        let taken = pool.push(0, at, &[1; 24]);
        if taken == 0 {
            break;
        }
        at += taken as u64;
    }
    assert!(pool.peak() <= 20 * CHUNK && at > 15 * CHUNK as u64, "{at} bytes in {}", pool.peak());
    assert!(pool.chunks.len() <= 20, "{}", pool.chunks.len());
    pool.waiting = 1;
    let (ids, bytes) = send(&mut pool);
    assert_eq!(bytes as u64, at);
    answer_all(&mut pool, ids);
    assert_eq!((pool.used, pool.files[0].len), (0, at), "acknowledged is durable where there is no fsync");
}

#[test]
fn what_no_fsync_has_covered_is_sent_again_in_the_old_order() {
    let mut pool = pool(20 * CHUNK, true);
    for at in 0..4_u8 {
        assert_eq!(pool.push(0, u64::from(at) * 5000, &[at; CHUNK]), CHUNK);
    }
    let (ids, bytes) = send(&mut pool);
    assert_eq!(
        (ids.len(), bytes),
        (4, 4 * CHUNK),
        "no fsync yet: nobody waits, and the pool is not half full"
    );
    answer_all(&mut pool, ids);
    pool.disconnected();
    let order: Vec<_> = std::iter::from_fn(|| pool.take().unwrap())
        .map(|out| if let Out::Write(_, data) = out { data[0] } else { 99 })
        .collect();
    assert_eq!((order, pool.files[0].retries), (vec![0, 1, 2, 3], 1));
}

#[test]
fn an_fsync_is_asked_for_when_half_of_the_pool_waits_and_covers_what_was_sent_before() {
    let mut pool = pool(20 * CHUNK, true);
    for at in 0..12 {
        pool.push(0, at * 5000, &[0; CHUNK]);
    }
    let (mut ids, _) = send(&mut pool);
    assert_eq!(ids.len(), 13, "twelve writes and one fsync");
    let behind: Vec<u32> = ids.drain(9..).collect();
    answer_all(&mut pool, ids);
    assert_eq!(pool.files[0].acked, 9);
    answer_all(&mut pool, behind);
    let left = pool.files[0].chunks;
    assert!((1..4).contains(&left), "{left}: those sent behind the fsync");
    assert!(send(&mut pool).0.is_empty());
    pool.files[0].wanted = true;
    let (ids, _) = send(&mut pool);
    assert_eq!(ids.len(), 1, "the fsync that somebody waits for");
    answer_all(&mut pool, ids);
    assert_eq!((pool.files[0].chunks, pool.used), (0, 0));
    assert!(send(&mut pool).0.is_empty());
}

#[test]
fn a_full_pool_asks_for_the_fsync_that_gives_room() {
    let mut pool = pool(4 * CHUNK, true);
    pool.push(0, 0, &[0; 400]);
    pool.push(0, 9000, &[0; 400]);
    let (ids, _) = send(&mut pool);
    answer_all(&mut pool, ids);
    let (ids, _) = send(&mut pool); // the second was held back until there was nothing to wait for
    answer_all(&mut pool, ids);
    assert!(send(&mut pool).0.is_empty());
    pool.waiting = 1;
    let (ids, bytes) = send(&mut pool);
    assert_eq!((ids.len(), bytes), (1, 0));
    answer_all(&mut pool, ids);
    assert_eq!(pool.used, 0);
}

#[test]
fn a_failed_write_is_told_as_full_when_the_disk_is() {
    for (free_blocks, kind) in [(10_u64, io::ErrorKind::StorageFull), (1 << 20, io::ErrorKind::Other)] {
        let mut pool = pool(20 * CHUNK, true);
        pool.push(0, 0, &[0; CHUNK]);
        let (ids, _) = send(&mut pool);
        pool.answer(status(ids[0], StatusCode::Failure)).unwrap();
        assert!(pool.files[0].is_probing());
        let (ids, _) = send(&mut pool);
        let data = [0, 4096, 0, 0, free_blocks].iter().flat_map(|it| it.to_be_bytes()).collect();
        pool.answer(Packet::ExtendedReply(ExtendedReply { id: ids[0], data })).unwrap();
        let entry = &mut pool.files[0];
        assert_eq!(entry.tell().unwrap().kind(), kind);
        assert!(entry.tell().is_none(), "the header may still be written");
        assert_eq!(entry.end_loss().unwrap().kind(), kind, "a sync tells it, too");
        assert!(entry.end_loss().is_none());
        assert_eq!(pool.used, 0);
    }
}

#[test]
fn answers_to_nothing_are_refused() {
    let mut pool = pool(20 * CHUNK, true);
    assert!(pool.answer(status(0, StatusCode::Ok)).is_err());
    pool.push(0, 0, &[0; CHUNK]);
    let (ids, _) = send(&mut pool);
    answer_all(&mut pool, ids.clone());
    assert!(pool.answer(status(ids[0], StatusCode::Ok)).is_err(), "twice");
}

#[test]
fn a_handle_of_an_old_connection_is_none() {
    let mut pool = pool(20 * CHUNK, true);
    pool.disconnected();
    assert_eq!(pool.add(Artifact::Dmesg, "d", "h".into(), 0), None);
    assert!(pool.add(Artifact::Dmesg, "d", "h".into(), 1).is_some());
}
