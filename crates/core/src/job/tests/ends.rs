//! How a job ends, when it is sealed, and when nothing is left of it (`J-2.5` to `J-2.7`, `J-3.6`).

use super::*;

#[test]
fn a_time_limit_counts_from_the_start_and_its_end_is_timeout_whatever_the_process_says() {
    // J-2.5
    let timeout = Some(Duration::from_secs(2));
    let mut rig = Rig::new(Settings { timeout, ..Settings::default() });
    assert_eq!(rig.machine.poll_timeout(rig.now), Some(rig.now.after(Duration::from_secs(2))));
    rig.pass(Duration::from_micros(1_999_999));
    assert!(rig.ended_for.is_empty());
    rig.pass(Duration::from_micros(1));
    assert_eq!(rig.ended_for, [Cause::Timeout]);
    assert_eq!(rig.machine.poll_timeout(rig.now), None);
    // The first cause stays.
    rig.machine.end(Cause::Cancelled);
    rig.finish(0);
    assert_eq!(rig.ended_for, [Cause::Timeout]);
    assert_eq!(rig.heard(A).exit.as_ref().unwrap().end, End::Timeout);
    assert_eq!(rig.heard(A).seal.as_ref().unwrap().end, End::Timeout);
}

#[test]
fn a_time_limit_that_passes_after_the_exit_ends_nothing() {
    let timeout = Some(Duration::from_secs(2));
    let mut rig = Rig::new(Settings { timeout, ..Settings::default() });
    rig.exit(0);
    rig.pass(Duration::from_secs(3));
    rig.end_streams();
    assert_eq!(
        (rig.ended_for.len(), &rig.machine.seal().unwrap().end),
        (0, &End::Exited { code: 0 })
    );
}

#[test]
fn who_ends_a_job_is_told_that_it_was_cancelled() {
    // J-2.6
    let mut rig = Rig::new(Settings::default());
    rig.machine.end(Cause::Cancelled);
    rig.finish(0);
    assert_eq!(rig.heard(A).seal.as_ref().unwrap().end, End::Cancelled);
    // What has ended can't be ended.
    rig.machine.end(Cause::Cancelled);
    rig.drain();
    assert_eq!(rig.ended_for, [Cause::Cancelled]);
}

#[test]
fn fault_34_output_that_others_hold_open_is_over_after_a_silence() {
    // J-2.7, W-7.5
    let mut rig = Rig::new(Settings::default());
    rig.allow(A, 100);
    rig.machine.allow(A, Stream::Stderr, room(100));
    rig.exit(44);
    assert_eq!(rig.heard(A).exit.as_ref().unwrap().end, End::Exited { code: 44 });
    rig.pass(DRAIN_SILENCE / 2);
    rig.write_all(b"late");
    rig.pass(DRAIN_SILENCE - Duration::from_micros(1));
    assert!(rig.machine.seal().is_none());
    rig.pass(Duration::from_micros(1));
    let seal = rig.heard(A).seal.clone().unwrap();
    assert!(seal.streams_left_open && !seal.streams["stdout"].complete);
    assert_eq!((seal.streams["stdout"].bytes, rig.ended_for.len()), (4, 0));
    assert_eq!(rig.heard(A).ends.len(), 2);
}

#[test]
fn fault_34_a_daemon_that_never_falls_silent_delays_the_seal_for_so_long_only() {
    let mut rig = Rig::new(Settings::default());
    rig.allow(A, 1000);
    rig.exit(0);
    let began = rig.now;
    while rig.machine.seal().is_none() {
        rig.write_all(b"x");
        rig.pass(DRAIN_SILENCE / 2);
    }
    assert_eq!(rig.now.since(began), DRAIN_MAX);
}

#[test]
fn what_the_process_itself_has_written_is_waited_for_however_long_its_reader_takes() {
    // Fault 44 among others: the owner has no room, and the pipe holds the job's own last words.
    let mut rig = Rig::new(Settings::default());
    rig.exit_owing(0, 4);
    rig.pass(DRAIN_MAX * 10);
    assert!(rig.machine.seal().is_none());
    rig.allow(A, 100);
    rig.write_all(b"last");
    rig.end_streams();
    assert_eq!(rig.heard(A).stdout(), b"last");
    assert!(rig.heard(A).seal.as_ref().unwrap().streams["stdout"].complete);
}

#[test]
fn a_job_that_waited_in_its_write_and_was_killed_is_sealed_with_what_was_in_its_pipe() {
    let mut rig = Rig::new(Settings::default());
    rig.leave(A, Leave::Lost);
    let held = usize::try_from(HELD_BYTES_MAX).unwrap();
    rig.write_all(&vec![1; held]);
    assert_eq!(rig.machine.state(), JobState::Blocked);
    // Somebody else's signal, so that no cause of ours lets go of anything.
    rig.exit_owing(137, 65_536);
    rig.write_all(&[2; 65_536]);
    rig.end_streams();
    let seal = rig.machine.seal().unwrap();
    assert_eq!(seal.streams["stdout"].bytes, HELD_BYTES_MAX + 65_536);
    assert!(seal.streams["stdout"].gaps.is_empty());
}

#[test]
fn the_outcome_is_kept_until_it_is_confirmed_or_so_long() {
    // J-3.6, on both sides of UNCONFIRMED_LIFETIME.
    let mut rig = Rig::new(Settings::default());
    rig.allow(A, 100);
    rig.write_all(b"abc");
    rig.finish(0);
    assert!(rig.heard(A).seal.is_some() && !rig.machine.is_done());
    rig.leave(A, Leave::Lost);
    assert!(!rig.machine.is_done());
    // It comes back, has everything, and says so.
    rig.attach(&request(B, AttachMode::Take, 1));
    rig.allow(B, 100);
    assert_eq!(rig.heard(B).stdout(), b"bc");
    rig.leave(B, Leave::Lost);
    rig.pass(UNCONFIRMED_LIFETIME - Duration::from_micros(1));
    assert!(!rig.machine.is_done());
    rig.attach(&request(C, AttachMode::Take, 3));
    rig.leave(C, Leave::Closed);
    assert!(rig.machine.is_done());

    let mut rig = Rig::new(Settings::default());
    rig.leave(A, Leave::Lost);
    rig.finish(0);
    rig.pass(UNCONFIRMED_LIFETIME);
    assert!(rig.machine.is_done());
}

#[test]
fn a_close_that_crosses_the_seal_confirms_it() {
    let mut rig = Rig::new(Settings::default());
    rig.allow(A, 3);
    rig.write_all(b"abc");
    rig.exit_owing(0, 0);
    rig.end_streams();
    assert!(!rig.leave(A, Leave::Closed));
    assert!(rig.machine.is_done() && rig.ended_for.is_empty());
}

#[test]
fn stdin_goes_on_where_the_server_says() {
    let mut rig = Rig::new(Settings { stdin: true, ..Settings::default() });
    assert!(rig.machine.input(A, 10));
    rig.machine.input_taken(4);
    rig.drain();
    assert_eq!(rig.heard(A).input_taken, 4);
    rig.leave(A, Leave::Lost);
    // What was received reaches the job, whoever owns it then.
    rig.machine.input_taken(2);
    let at = rig.attach(&request(B, AttachMode::Take, 0));
    assert_eq!(at.stdin, Some(StdinAt { received: 10, taken: 6 }));
    assert!(rig.machine.input(B, 1) && rig.machine.input_end(B) && !rig.machine.input(B, 1));
    rig.leave(B, Leave::Lost);
    // Its end was received: no more is wanted.
    assert_eq!(rig.attach(&request(C, AttachMode::Take, 0)).stdin, None);
    rig.machine.input_closed();
    rig.drain();
    assert!(rig.heard(C).input_closed);
}

#[test]
fn who_asks_again_after_everything_is_told_the_outcome() {
    // J-1.3, J-3.5
    let mut rig = Rig::new(Settings::default());
    rig.allow(A, 100);
    rig.write_all(b"abc");
    rig.finish(7);
    let seal = rig.heard(A).seal.clone().unwrap();
    rig.leave(A, Leave::Closed);
    assert!(rig.machine.is_done());
    rig.machine = Machine::ended(seal.clone(), None);
    assert!(rig.machine.is_done() && rig.machine.state() == JobState::Ended);
    let at = rig.attach(&AttachRequest::opening(B));
    assert_eq!((at.streams, at.stdin), ([Some(3), Some(0)], None));
    assert_eq!(rig.heard(B).seal.as_ref(), Some(&seal));
    assert!(!rig.leave(B, Leave::Lost) && rig.machine.is_done());
}

#[test]
fn the_rest_that_nobody_has_confirmed_goes_to_the_disk_and_comes_back_from_it() {
    // J-3.6
    let mut rig = Rig::new(Settings::default());
    rig.disk.room = 1000;
    rig.spool();
    rig.allow(A, 3);
    rig.write_all(b"abc");
    rig.machine.acked(A, Stream::Stdout, 1);
    rig.leave(A, Leave::Lost);
    rig.write_all(b"def");
    rig.finish(0);
    assert!(!rig.machine.is_done());
    rig.spool();
    assert!(rig.machine.is_done() && !rig.machine.is_confirmed());
    let seal = rig.machine.seal().unwrap().clone();
    rig.machine = Machine::ended(seal, Some(([1, 0], [6, 0])));
    rig.attach(&request(B, AttachMode::Take, 0));
    rig.allow(B, 100);
    assert_eq!((rig.heard(B).first[0], rig.heard(B).stdout()), (1, b"bcdef".into()));
    assert!(rig.heard(B).seal.is_some());
}
