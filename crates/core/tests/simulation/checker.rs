//! The checker by itself: histories that are true, and histories that are not.

use afar_proto::connection::{Stream, Verdict};
use afar_proto::outcome::{End, Receipt, Seal, Started};
use afar_proto::seal::Sealer;

use super::history::{History, Told, Violation};
use super::process::content;

const OUT: Stream = Stream::Stdout;

/// A job that has written so many bytes and exited with 3, and was asked for by client 0.
fn ended(bytes: u64) -> History {
    let mut history = History::default();
    history.started(0, "j");
    history.ended(0, &End::Exited { code: 3 }, [bytes, 0]);
    history
}

fn got(history: &mut History, offset: u64, length: usize) {
    history.got(0, 0, OUT, offset, &content(0, OUT, offset, length));
}

fn seal_of(bytes: usize, end: End) -> Seal {
    let mut sealer = Sealer::new();
    sealer.update(&content(0, OUT, 0, bytes));
    let streams = [("stdout", sealer.seal(true)), ("stderr", Sealer::new().seal(true))]
        .map(|(n, s)| (n.to_owned(), s));
    Seal {
        end,
        receipt: Receipt::default(),
        streams: streams.into(),
        streams_left_open: false,
        session_restarted: false,
        detail: None,
    }
}

fn told(history: &mut History, seal: Seal, verdict: Verdict) {
    history.told(0, 0, &Told::Sealed { seal: Box::new(seal), verdict });
}

#[track_caller]
fn assert_found(history: History, rule: Violation) {
    assert_eq!(history.verdict().0, Err(rule));
}

fn exited(code: u8) -> End {
    End::Exited { code }
}

#[test]
fn a_true_history_breaks_no_rule() {
    let mut history = ended(100);
    got(&mut history, 0, 60);
    history.goes_on(0, 0, OUT, 60);
    got(&mut history, 60, 40);
    told(&mut history, seal_of(100, exited(3)), Verdict::Whole);
    assert!(history.verdict().0.is_ok());
}

#[test]
fn two_starts_are_found_and_one_of_each_id_is_not() {
    let mut history = ended(0);
    history.started(1, "k");
    assert!(!history.is_broken());
    history.started(2, "k");
    assert_found(history, Violation::StartedTwice);
}

#[test]
fn a_start_that_was_denied_is_found_before_and_after() {
    let denied = Told::Refused { started: Started::No };
    let mut before = ended(0);
    before.told(0, 0, &denied);
    assert_found(before, Violation::StartedAfterAll);
    let mut after = History::default();
    after.told(0, 0, &denied);
    after.started(0, "j");
    assert_found(after, Violation::StartedAfterAll);
}

#[test]
fn bytes_that_come_twice_too_early_or_changed_are_found() {
    for (offset, length) in [(59, 10), (61, 10)] {
        let mut history = ended(100);
        got(&mut history, 0, 60);
        got(&mut history, offset, length);
        assert_found(history, Violation::WrongBytes);
    }
    let mut history = ended(100);
    history.got(0, 0, OUT, 0, &content(0, OUT, 1, 10));
    assert_found(history, Violation::WrongBytes);
}

#[test]
fn a_gap_needs_a_reason_and_never_leads_back() {
    let mut lost = ended(100);
    got(&mut lost, 0, 10);
    lost.goes_on(0, 0, OUT, 20);
    assert_found(lost, Violation::LostBytes);
    let mut back = ended(100);
    got(&mut back, 0, 10);
    back.excuse(0);
    back.goes_on(0, 0, OUT, 9);
    assert_found(back, Violation::WrongBytes);
    for excused in [true, false] {
        let mut history = ended(100);
        if excused {
            history.excuse(0);
        } else {
            history.joins(0, 0);
        }
        history.goes_on(0, 0, OUT, 20);
        got(&mut history, 20, 80);
        told(&mut history, seal_of(100, exited(3)), Verdict::Suffix);
        assert!(history.verdict().0.is_ok());
    }
}

#[test]
fn ends_that_did_not_happen_are_found() {
    for end in [exited(0), End::Timeout, End::Cancelled, End::Lost, End::Oom, End::Unknown] {
        let mut history = ended(0);
        told(&mut history, seal_of(0, end), Verdict::Whole);
        assert_found(history, Violation::MadeUpEnd);
    }
    let mut early = History::default();
    early.started(0, "j");
    told(&mut early, seal_of(0, exited(3)), Verdict::Whole);
    assert_found(early, Violation::MadeUpEnd);
    let mut unknown = ended(0);
    unknown.told(0, 0, &Told::Refused { started: Started::Unknown });
    assert_found(unknown, Violation::MadeUpEnd);
}

#[test]
fn ends_that_did_happen_are_true_and_there_is_only_one() {
    type Happens = fn(&mut History);
    let ends: [(End, Happens); 3] = [
        (End::Timeout, |history| history.timed_out(0)),
        (End::Cancelled, |history| history.end_wanted(0)),
        (End::Lost, |history| history.unwatched(0)),
    ];
    for (end, happens) in ends {
        let mut history = ended(0);
        happens(&mut history);
        told(&mut history, seal_of(0, end), Verdict::Whole);
        assert!(!history.is_broken());
        told(&mut history, seal_of(0, exited(3)), Verdict::Whole);
        assert_found(history, Violation::TwoEnds);
    }
}

#[test]
fn seals_of_something_else_are_found() {
    type Change = fn(&mut Seal);
    let changes: [Change; 4] = [
        |seal| seal.streams.get_mut("stdout").unwrap().bytes = 99,
        |seal| seal.streams.get_mut("stdout").unwrap().bytes = 101,
        |seal| seal.streams.get_mut("stdout").unwrap().blake3[0] ^= 1,
        |seal| drop(seal.streams.remove("stderr")),
    ];
    for change in changes {
        let mut history = ended(100);
        got(&mut history, 0, 100);
        let mut seal = seal_of(100, exited(3));
        change(&mut seal);
        told(&mut history, seal, Verdict::Whole);
        assert_found(history, Violation::WrongSeal);
    }
    // Bytes that did not come, and verdicts of something else.
    for (came, verdict) in
        [(99, Verdict::Whole), (100, Verdict::Suffix), (100, Verdict::Mismatch(OUT))]
    {
        let mut history = ended(100);
        got(&mut history, 0, came);
        told(&mut history, seal_of(100, exited(3)), verdict);
        assert_found(history, Violation::WrongSeal);
    }
}

#[test]
fn wrong_stdin_and_who_waits_for_ever_are_found() {
    let mut history = ended(0);
    history.wrong_stdin(0, "other bytes");
    assert_found(history, Violation::WrongStdin);
    let mut history = ended(0);
    history.hangs("client 0".to_owned());
    assert_found(history, Violation::Hang);
}
