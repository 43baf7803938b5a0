//! What is held of the output, and for whom (`J-3`, `W-6.7`).

use afar_proto::seal::Sealer;

use super::*;

const MIB: usize = 1024 * 1024;

fn noise(length: usize) -> Vec<u8> {
    (0..length as u64).map(|index| (index * index / 7 % 251) as u8).collect()
}

#[test]
fn fault_31_who_comes_back_gets_every_byte_from_its_offset_on_and_nothing_twice() {
    // J-3.1
    let mut rig = Rig::new(Settings::default());
    rig.allow(A, 10);
    rig.write_all(b"0123456789");
    rig.machine.acked(A, Stream::Stdout, 4);
    rig.leave(A, Leave::Lost);
    rig.write_all(b"abc");
    // From what was acknowledged on, everything is there; before it, it is a gap that is named.
    for (wanted, offset) in [(4, 4), (7, 7), (13, 13), (3, 4), (0, 4)] {
        let at = rig.attach(&request(B, AttachMode::Watch, wanted));
        assert_eq!(at.streams[0], Some(offset));
        rig.allow(B, 100);
        let missing = usize::try_from(offset).unwrap();
        assert_eq!(rig.heard(B).stdout(), &b"0123456789abc"[missing..]);
        rig.leave(B, Leave::Closed);
        rig.heard.remove(&B);
    }
    let beyond = rig.machine.attach(&request(B, AttachMode::Take, 14));
    assert!(matches!(beyond, Err(AttachError::BeyondEnd(_))), "{beyond:?}");
    assert_eq!(rig.machine.watchers(), 0);
}

#[test]
fn while_a_job_is_owned_its_pipe_is_read_only_as_far_as_there_is_credit() {
    // J-3.1, fault 41
    let mut rig = Rig::new(Settings::default());
    assert_eq!(rig.write(b"x"), 0);
    rig.allow(A, 3);
    assert_eq!((rig.write(b"abcdef"), rig.write(b"def")), (3, 0));
    assert_eq!(rig.heard(A).stdout(), b"abc");
    let mut rig = Rig::new(Settings::default());
    rig.machine.allow(A, Stream::Stdout, Allowance { bytes: 1000, pieces: 2 });
    rig.write_all(b"d");
    rig.write_all(b"e");
    assert_eq!((rig.write(b"f"), rig.heard(A).stdout()), (0, b"de".into()));
}

#[test]
fn an_owner_that_acknowledges_nothing_is_read_for_only_to_the_limit() {
    // J-3.1, on both sides of UNACKED_BYTES_MAX.
    let mut rig = Rig::new(Settings::default());
    rig.allow(A, 1 << 30);
    let limit = usize::try_from(UNACKED_BYTES_MAX).unwrap();
    assert_eq!((rig.write(&vec![1; limit + 1]), rig.write(b"x")), (limit, 0));
    rig.machine.acked(A, Stream::Stdout, 1);
    assert_eq!((rig.write(b"xy"), rig.write(b"z")), (1, 0));
}

#[test]
fn fault_42_nobody_owns_it_and_the_job_waits_in_its_write() {
    // J-3.2, `block`, on both sides of HELD_BYTES_MAX.
    let mut rig = Rig::new(Settings::default());
    rig.leave(A, Leave::Lost);
    let all = noise(MIB + 5);
    assert_eq!(rig.machine.state(), JobState::Running);
    assert_eq!((rig.write(&all), rig.write(b"x")), (MIB, 0));
    assert_eq!(rig.machine.state(), JobState::Blocked);
    // A watcher reads it, and does not unblock it.
    rig.attach(&request(C, AttachMode::Watch, 0));
    rig.allow(C, 2 * MIB);
    assert_eq!((rig.heard(C).stdout().len(), rig.write(b"x")), (MIB, 0));
    rig.attach(&request(B, AttachMode::Take, 0));
    // First it has what there is, then more is read.
    rig.allow(B, MIB - 1);
    assert_eq!(rig.write(b"x"), 0);
    rig.allow(B, 6);
    assert_eq!(rig.machine.state(), JobState::Running);
    rig.write_all(&all[MIB..]);
    assert_eq!(rig.heard(B).stdout(), all);
    rig.finish(0);
    let mut sealer = Sealer::new();
    sealer.update(&all);
    assert!(sealer.matches(&rig.heard(B).seal.as_ref().unwrap().streams["stdout"]));
}

#[test]
fn fault_42_or_the_oldest_part_is_dropped_and_named() {
    // J-3.2, `drop`; J-3.5
    let mut rig = Rig::new(Settings { overflow: Overflow::Drop, ..Settings::default() });
    rig.allow(A, 10);
    rig.write_all(b"0123456789");
    rig.leave(A, Leave::Lost);
    let all = noise(3 * MIB);
    for piece in all.chunks(64 * 1024) {
        rig.write_all(piece);
    }
    let info = rig.machine.streams()["stdout"].clone();
    assert_eq!((info.bytes, info.kept_from), (3 * MIB as u64 + 10, 2 * MIB as u64 + 10));
    assert_eq!(info.gaps.as_slice(), [(0, info.kept_from)]);
    let at = rig.attach(&request(B, AttachMode::Take, 10));
    assert_eq!(at.streams[0], Some(info.kept_from));
    rig.allow(B, 2 * MIB);
    assert_eq!(rig.heard(B).stdout(), &all[2 * MIB..]);
    // Owned again, it is held back by its owner's credit, and nothing is dropped.
    rig.write_all(&all[..MIB]);
    assert_eq!(rig.write(b"x"), 0);
    rig.finish(0);
    let seal = rig.heard(B).seal.clone().unwrap();
    assert_eq!(seal.streams["stdout"].gaps.as_slice(), [(0, info.kept_from)]);
    assert_eq!((seal.end, seal.detail), (End::Exited { code: 0 }, None));
}

#[test]
fn fault_42_or_the_job_is_ended_and_its_end_says_why() {
    // J-3.2, `kill`
    let mut rig = Rig::new(Settings { overflow: Overflow::Kill, ..Settings::default() });
    rig.leave(A, Leave::Lost);
    rig.write_all(&vec![1; MIB - 1]);
    assert!(rig.ended_for.is_empty());
    rig.write_all(b"x");
    assert_eq!(rig.ended_for, [Cause::Overflow]);
    // What it says on its way out does not hold it up.
    rig.write_all(&vec![2; MIB]);
    rig.finish(143);
    let seal = rig.machine.seal().unwrap();
    assert_eq!((&seal.end, seal.detail), (&End::Cancelled, Some(SealDetail::OutputQuota)));
    assert_eq!(seal.streams["stdout"].bytes, 2 * MIB as u64);
}

#[test]
fn a_watcher_that_fell_behind_is_told_the_gap_in_the_middle() {
    // J-3.5
    let mut rig = Rig::new(Settings::default());
    rig.attach(&request(B, AttachMode::Watch, 0));
    rig.allow(A, 100);
    rig.allow(B, 3);
    rig.write_all(b"abcdef");
    rig.machine.acked(A, Stream::Stdout, 6);
    rig.write_all(b"ghi");
    rig.allow(B, 2);
    assert_eq!((rig.heard(B).missing(), rig.heard(B).streams[0].len()), (3, 8));
    // A job that is confirmed waits for nobody.
    rig.finish(0);
    assert!(rig.heard(B).seal.is_none());
    rig.leave(A, Leave::Closed);
    assert_eq!((rig.heard(B).missing(), rig.heard(B).streams[0].len()), (4, 9));
    assert!(rig.heard(B).seal.is_some() && !rig.machine.is_done());
    rig.leave(B, Leave::Closed);
    assert!(rig.machine.is_done());
}

#[test]
fn without_following_there_is_what_there_was() {
    let mut rig = Rig::new(Settings::default());
    rig.allow(A, 100);
    rig.write_all(b"abc");
    let mut watch = request(B, AttachMode::Watch, 0);
    watch.follow = false;
    rig.attach(&watch);
    rig.write_all(b"def");
    rig.allow(B, 2);
    assert!(!rig.heard(B).finished);
    rig.allow(B, 100);
    assert_eq!((rig.heard(B).stdout(), rig.heard(B).finished), (b"abc".into(), true));
    assert_eq!(rig.machine.watchers(), 0);
    rig.finish(0);
    // Of a job that has ended, that is everything.
    rig.heard.remove(&B);
    rig.attach(&watch);
    rig.allow(B, 100);
    assert_eq!((rig.heard(B).stdout(), rig.heard(B).finished), (b"abcdef".into(), false));
    assert!(rig.heard(B).seal.is_some());
}

#[test]
fn who_attaches_begins_where_it_wants() {
    let mut rig = Rig::new(Settings::default());
    rig.allow(A, 100);
    for text in ["one\n", "two\n", "three\n"] {
        rig.write_all(text.as_bytes());
        rig.pass(Duration::from_secs(1));
    }
    let starts = [
        (0, AttachStart::TailLines(2), "two\nthree\n"),
        (0, AttachStart::TailLines(0), ""),
        (9, AttachStart::TailLines(9), "hree\n"),
        (0, AttachStart::SinceUs(1_500_000), "three\n"),
        (0, AttachStart::SinceUs(1_000_000), "two\nthree\n"),
    ];
    for (from, start, text) in starts {
        rig.attach(&AttachRequest { start: Some(start), ..request(B, AttachMode::Watch, from) });
        rig.allow(B, 100);
        assert_eq!(rig.heard(B).stdout(), text.as_bytes(), "{start:?}");
        rig.leave(B, Leave::Closed);
        rig.heard.remove(&B);
    }
}

#[test]
fn what_is_kept_is_not_released_by_acknowledgements() {
    // J-3.3, J-3.6
    let keep = Some(Duration::from_secs(60));
    let mut rig = Rig::new(Settings { keep, ..Settings::default() });
    rig.allow(A, 100);
    rig.write_all(b"abc");
    rig.machine.acked(A, Stream::Stdout, 3);
    rig.finish(0);
    rig.leave(A, Leave::Closed);
    assert!(!rig.machine.is_done());
    rig.attach(&request(B, AttachMode::Watch, 0));
    rig.allow(B, 100);
    assert_eq!(rig.heard(B).stdout(), b"abc");
    rig.leave(B, Leave::Closed);
    rig.pass(Duration::from_secs(59));
    assert!(!rig.machine.is_done());
    rig.pass(Duration::from_secs(1));
    assert!(rig.machine.is_done());
}

#[test]
fn a_stop_with_output_still_to_come_ends_the_stream_at_once() {
    // J-2.4: who comes back to more than it takes at a time, and then wants no more of it.
    let mut rig = Rig::new(Settings::default());
    rig.leave(A, Leave::Lost);
    rig.write_all(&[b'x'; 5_000]);
    rig.attach(&AttachRequest::opening(B));
    rig.allow(B, 100);
    rig.machine.stop(B, Stream::Stdout);
    rig.drain();
    assert_eq!((rig.heard(B).stdout().len(), &rig.heard(B).ends[..]), (100, &[Stream::Stdout][..]));
    rig.machine.output_end(Stream::Stderr, true);
    rig.exit(141);
    assert!(rig.heard(B).seal.is_some(), "nobody waits for room that nobody grants");
}

#[test]
fn a_short_keep_takes_nothing_from_an_owner_that_has_lost_its_link() {
    // J-3.3, J-3.6, on both sides of the longer one.
    let keep = Some(Duration::from_secs(60));
    for (passed, there) in
        [(UNCONFIRMED_LIFETIME - Duration::from_secs(1), true), (UNCONFIRMED_LIFETIME, false)]
    {
        let mut rig = Rig::new(Settings { keep, ..Settings::default() });
        rig.allow(A, 100);
        rig.write_all(b"abc");
        rig.finish(0);
        rig.leave(A, Leave::Lost);
        rig.pass(passed);
        assert_eq!(rig.machine.is_done(), !there);
        if there {
            rig.attach(&request(B, AttachMode::Take, 0));
            rig.allow(B, 100);
            assert_eq!(rig.heard(B).stdout(), b"abc");
            // Once it has everything, the shorter time counts again.
            rig.leave(B, Leave::Closed);
            assert!(rig.machine.is_done());
        }
    }
}

#[test]
fn a_stream_that_is_merged_into_another_is_sealed_as_empty() {
    let mut rig = Rig::new(Settings { merged: true, ..Settings::default() });
    assert!(rig.machine.readable(Stream::Stderr).is_none());
    rig.allow(A, 100);
    rig.write_all(b"abc");
    rig.machine.output_end(Stream::Stdout, true);
    rig.exit(0);
    let seal = rig.heard(A).seal.clone().unwrap();
    assert!(seal.streams["stderr"].complete && seal.streams["stderr"].bytes == 0);
    assert_eq!(rig.heard(A).ends, [Stream::Stdout]);
}

/// Writes all of it, with a spool that writes when there is no other room.
fn write_with_spool(rig: &mut Rig, bytes: &[u8]) -> usize {
    let mut written = 0;
    for _ in 0..1000 {
        let count = rig.write(&bytes[written..bytes.len().min(written + 64 * 1024)]);
        written += count;
        rig.spool();
        if written == bytes.len() {
            break;
        }
    }
    written
}

#[test]
fn fault_42_what_there_is_no_room_for_in_memory_goes_to_the_spool_and_comes_back_in_order() {
    // J-3.2
    let mut rig = Rig::new(Settings::default());
    rig.disk.room = 8 * MIB;
    rig.spool();
    rig.allow(A, 10);
    rig.write_all(b"0123456789");
    rig.machine.acked(A, Stream::Stdout, 4);
    rig.leave(A, Leave::Lost);
    let all = noise(4 * MIB);
    assert_eq!(write_with_spool(&mut rig, &all), all.len());
    assert!(rig.machine.streams()["stdout"].kept_from == 4 && rig.disk.pieces.len() > 1);
    rig.attach(&request(B, AttachMode::Take, 4));
    // A bit at a time, across what is on the disk and what is not.
    while rig.heard(B).streams[0].len() < 4 * MIB + 6 {
        rig.allow(B, 300_000);
        rig.spool();
    }
    assert_eq!(rig.heard(B).stdout(), [b"456789".as_slice(), &all].concat());
    rig.machine.acked(B, Stream::Stdout, 3 * MIB as u64);
    assert_eq!(rig.machine.released()[0], 3 * MIB as u64);
    rig.finish(0);
    let seal = rig.heard(B).seal.clone().unwrap();
    assert!(seal.streams["stdout"].gaps.is_empty());
}

#[test]
fn fault_42_58_at_the_quota_of_the_spool_the_job_blocks_or_the_oldest_is_dropped_or_it_ends() {
    // J-3.2, J-3.4
    let all = noise(8 * MIB);
    for overflow in [Overflow::Block, Overflow::Drop, Overflow::Kill] {
        let mut rig = Rig::new(Settings { overflow, ..Settings::default() });
        rig.disk.room = 2 * MIB;
        rig.spool();
        rig.leave(A, Leave::Lost);
        let written = write_with_spool(&mut rig, &all);
        let blocked = rig.machine.state() == JobState::Blocked;
        match overflow {
            Overflow::Block => assert!(blocked && written == 3 * MIB, "{written}"),
            _ => assert!(!blocked && written == all.len(), "{overflow:?}: {written}"),
        }
        assert_eq!(rig.ended_for.len(), usize::from(overflow == Overflow::Kill));
        rig.attach(&request(B, AttachMode::Watch, 0));
        rig.allow(B, 16 * MIB);
        let heard = rig.heard(B);
        let first = usize::try_from(heard.first[0]).unwrap();
        assert_eq!(first > 0, overflow == Overflow::Drop, "{overflow:?} {first}");
        for (offset, byte) in heard.streams[0].iter().enumerate() {
            assert!(byte.is_none_or(|byte| byte == all[first + offset]), "{overflow:?}");
        }
        assert_eq!(first + heard.streams[0].len(), written);
        if overflow == Overflow::Drop {
            let gaps = rig.machine.streams()["stdout"].gaps.clone();
            assert_eq!(gaps.as_slice(), [(0, first as u64)]);
        }
    }
}

#[test]
fn what_is_kept_goes_to_the_spool_from_its_start_and_its_owner_sees_no_difference() {
    // J-3.3
    let keep = Some(Duration::from_secs(60));
    let mut rig = Rig::new(Settings { keep, ..Settings::default() });
    rig.disk.room = 64 * MIB;
    rig.spool();
    let all = noise(4 * MIB);
    for piece in all.chunks(64 * 1024) {
        rig.allow(A, piece.len());
        rig.write_all(piece);
        rig.spool();
        rig.machine.acked(A, Stream::Stdout, rig.heard(A).streams[0].len() as u64);
    }
    rig.finish(0);
    rig.leave(A, Leave::Closed);
    // It is nobody's to release, and the disk has it all.
    assert!(!rig.machine.is_confirmed() && rig.machine.released() == [0; 2]);
    assert!(rig.machine.is_done());
    rig.attach(&request(B, AttachMode::Watch, 0));
    rig.allow(B, 8 * MIB);
    assert!(rig.heard(B).stdout() == all && rig.heard(B).seal.is_some());
}

#[test]
fn fault_58_60_what_the_disk_lost_is_a_gap_that_is_named() {
    // J-3.4, J-3.5
    let mut rig = Rig::new(Settings::default());
    rig.disk.room = 64 * MIB;
    rig.spool();
    rig.leave(A, Leave::Lost);
    let all = noise(2 * MIB);
    assert_eq!(write_with_spool(&mut rig, &all), all.len());
    let damaged = rig.disk.pieces.remove(2);
    rig.attach(&request(B, AttachMode::Take, 0));
    rig.allow(B, 4 * MIB);
    assert_eq!(
        (rig.heard(B).missing(), rig.heard(B).streams[0].len()),
        (damaged.bytes.len(), all.len())
    );
    // One that fails takes nothing more: then memory is all the room there is.
    rig.leave(B, Leave::Lost);
    rig.machine.spool_is(SpoolState::Failed);
    let written: usize = (0..100).map(|_| rig.write(&all[..64 * 1024])).sum();
    assert!(written <= MIB && rig.machine.state() == JobState::Blocked, "{written}");
}
