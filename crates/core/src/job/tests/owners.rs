//! Who is attached, and who ends a job (`J-2`).

use super::*;

#[test]
fn a_second_owner_fences_the_first_and_nothing_that_it_still_sends_reaches_the_job() {
    // J-2.2
    let mut rig = Rig::new(Settings { stdin: true, ..Settings::default() });
    rig.allow(A, 100);
    rig.write_all(b"abc");
    assert!(rig.machine.input(A, 5));
    let at = rig.attach(&request(B, AttachMode::Take, 1));
    assert_eq!(
        (at.streams, at.stdin),
        ([Some(1), Some(0)], Some(StdinAt { received: 5, taken: 0 }))
    );
    assert!(rig.heard(A).fenced);
    assert!(!rig.machine.input(A, 1) && !rig.machine.input_end(A) && !rig.machine.is_owner(A));
    rig.machine.acked(A, Stream::Stdout, 3);
    rig.machine.stop(A, Stream::Stdout);
    rig.allow(A, 100);
    assert!(!rig.leave(A, Leave::Closed) && rig.ended_for.is_empty() && rig.closed.is_empty());
    rig.allow(B, 100);
    rig.write_all(b"def");
    assert_eq!((rig.heard(A).stdout(), rig.heard(B).stdout()), (b"abc".into(), b"bcdef".into()));
    rig.finish(0);
    assert!(rig.heard(A).seal.is_none() && rig.heard(B).seal.is_some());
}

#[test]
fn a_watcher_reads_along_holds_nothing_back_and_releases_nothing() {
    // J-2.1
    let mut rig = Rig::new(Settings { stdin: true, ..Settings::default() });
    rig.allow(A, 100);
    rig.write_all(b"abc");
    let at = rig.attach(&request(B, AttachMode::Watch, 0));
    assert_eq!(at.stdin, None);
    assert_eq!((rig.machine.is_owned(), rig.machine.watchers()), (true, 1));
    // It has no room, and the job goes on.
    rig.write_all(b"def");
    assert_eq!(rig.heard(B).stdout(), b"");
    assert!(!rig.machine.input(B, 1));
    rig.machine.acked(B, Stream::Stdout, 6);
    rig.allow(B, 2);
    assert_eq!(rig.heard(B).stdout(), b"ab");
    // What the owner has is released, whoever still wanted it.
    rig.machine.acked(A, Stream::Stdout, 4);
    rig.allow(B, 100);
    rig.write_all(b"ghi");
    assert_eq!((rig.heard(B).missing(), rig.heard(B).streams[0].len()), (2, 9));
    assert_eq!(rig.heard(A).stdout(), b"abcdefghi");
    // Nothing that it says ends anything.
    for how in [Leave::Closed, Leave::Goodbye, Leave::Lost] {
        assert!(!rig.leave(B, how) && rig.ended_for.is_empty());
        rig.attach(&request(B, AttachMode::Watch, 9));
    }
}

#[test]
fn a_stop_is_the_owners_and_ends_for_a_watcher_what_it_is_told() {
    // J-2.4
    let mut rig = Rig::new(Settings::default());
    rig.allow(A, 100);
    rig.attach(&request(B, AttachMode::Watch, 0));
    rig.allow(B, 100);
    rig.machine.stop(B, Stream::Stdout);
    rig.drain();
    assert_eq!((rig.closed.len(), &*rig.heard(B).ends), (0, [Stream::Stdout].as_slice()));
    rig.write_all(b"abc");
    assert_eq!((rig.heard(A).stdout(), rig.heard(B).stdout()), (b"abc".into(), b"".into()));
    rig.machine.stop(A, Stream::Stdout);
    rig.drain();
    assert_eq!(
        (&*rig.closed, &*rig.heard(A).ends),
        ([Stream::Stdout].as_slice(), [Stream::Stdout].as_slice())
    );
    assert!(rig.machine.readable(Stream::Stdout).is_none());
    rig.machine.output_end(Stream::Stderr, true);
    rig.exit(0);
    let seal = rig.heard(A).seal.clone().unwrap();
    assert!(!seal.streams["stdout"].complete && seal.streams["stderr"].complete);
}

#[test]
fn what_a_lost_link_a_goodbye_and_a_close_do() {
    // J-2.3, fault 51: whether the job is cancelled.
    use {Leave::*, OnDisconnect::*};
    let table = [
        (None, Lost, false),
        (None, Goodbye, true),
        (None, Closed, true),
        (None, Detached, false),
        (Some(Keep), Lost, false),
        (Some(Keep), Goodbye, false),
        (Some(Keep), Closed, true),
        (Some(Keep), Detached, false),
        (Some(Kill), Lost, true),
        (Some(Kill), Goodbye, true),
        (Some(Kill), Closed, true),
        (Some(Kill), Detached, false),
    ];
    for (on_disconnect, how, cancels) in table {
        let mut rig = Rig::new(Settings { on_disconnect, ..Settings::default() });
        assert_eq!(rig.leave(A, how), cancels, "{on_disconnect:?} {how:?}");
        assert_eq!(rig.ended_for.len(), usize::from(cancels), "{on_disconnect:?} {how:?}");
        rig.finish(3);
        let end = rig.machine.seal().unwrap().end.clone();
        assert_eq!(end == End::Cancelled, cancels, "{on_disconnect:?} {how:?}");
        // Who wanted nothing more is waited for by nobody; who lost its link can come back.
        let done = cancels && how != Lost;
        assert_eq!(rig.machine.is_done(), done, "{on_disconnect:?} {how:?}");
        if !done {
            rig.attach(&request(B, AttachMode::Take, 0));
            assert_eq!(rig.heard(B).seal.as_ref().unwrap().end, end);
        }
    }
}

#[test]
fn a_job_whose_owner_gave_it_up_can_say_what_it_wants_on_its_way_out() {
    let mut rig = Rig::new(Settings::default());
    assert!(rig.leave(A, Leave::Closed));
    for _ in 0..64 {
        rig.write_all(&[7; 64 * 1024]);
        assert_eq!(
            rig.machine.streams()["stdout"].kept_from,
            rig.machine.streams()["stdout"].bytes
        );
    }
    rig.finish(0);
    let seal = rig.machine.seal().unwrap();
    assert_eq!(seal.streams["stdout"].bytes, 64 * 64 * 1024);
    // It was let go of because nobody wanted it, and not dropped.
    assert!(seal.streams["stdout"].gaps.is_empty() && rig.machine.is_done());
}

#[test]
fn there_is_a_most_of_attachments() {
    let mut rig = Rig::new(Settings::default());
    for id in 2..=ATTACHMENTS_MAX as u64 {
        rig.attach(&request(AttachmentId(id), AttachMode::Watch, 0));
    }
    let one_more = AttachmentId(9999);
    for mode in [AttachMode::Watch, AttachMode::Take] {
        let attached = rig.machine.attach(&request(one_more, mode, 0));
        // An owner takes the place of the one that it fences.
        assert_eq!(attached.is_ok(), mode == AttachMode::Take);
    }
}
