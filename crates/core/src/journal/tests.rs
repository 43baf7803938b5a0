//! Journals that were cut, damaged and rewritten, and what is made of them.

use afar_proto::message::JobId;
use afar_proto::outcome::{Phase, Receipt, RefusalReason, StreamSeal};
use proptest::prelude::*;

use super::*;
use crate::record::header;

const BOOT: &str = "0d9c5b1e-0000-4000-8000-000000000001";

fn key(id: &str) -> JobKey {
    JobKey { scope: String::new(), job: JobId::new(id).unwrap() }
}

fn began(incarnation: &str, boottime_us: u64, vouched_since_us: u64) -> JournalRecord {
    JournalRecord::Began(Began {
        incarnation: incarnation.to_owned(),
        boot: BOOT.to_owned(),
        boottime_us,
        unix_us: 1_700_000_000_000_000,
        vouched_since_us,
    })
}

fn intended(id: &str, number: u64) -> JournalRecord {
    let info = JobInfo::new(key(id).job, JobState::Waiting, b"true");
    JournalRecord::Intended(Box::new(Intended {
        job: key(id),
        number,
        at_us: 1,
        digest: [7; 32],
        mark: "m".to_owned(),
        spool: crate::spool::spool_name(number, Salt(3)),
        summary: Summary::of(&info),
        detached: false,
        keep_s: None,
    }))
}

fn started(id: &str) -> JournalRecord {
    JournalRecord::Started(Started { job: key(id), pid: 5, start_ticks: 6, at_us: 2 })
}

fn ended(id: &str) -> JournalRecord {
    let end = End::Exited { code: 3 };
    let seal = Seal {
        end: end.clone(),
        receipt: Receipt::default(),
        streams: BTreeMap::from([(
            "stdout".to_owned(),
            StreamSeal { bytes: 2, blake3: vec![1; 32], complete: true, gaps: vec![(0, 1)].into() },
        )]),
        streams_left_open: true,
        session_restarted: false,
        detail: None,
    };
    let started = WasStarted::Yes;
    JournalRecord::Ended(Box::new(Ended { job: key(id), at_us: 3, started, end, seal: Some(seal) }))
}

fn not_started(id: &str) -> JournalRecord {
    JournalRecord::NotStarted(NotStarted {
        job: key(id),
        at_us: 2,
        refused: Refused {
            phase: Phase::Spawn,
            reason: RefusalReason::NotFound,
            message: "no".to_owned(),
            started: WasStarted::No,
        },
    })
}

fn tree_ended(id: &str) -> JournalRecord {
    JournalRecord::TreeEnded(TreeEnded { job: key(id), at_us: 4, ended: 2, left: 0 })
}

fn file_of(records: &[JournalRecord]) -> Vec<u8> {
    let mut file = JOURNAL_MAGIC.to_vec();
    for record in records {
        record.push_to(&mut file, 0).unwrap();
    }
    file
}

/// A life of each kind.
fn lives() -> Vec<JournalRecord> {
    vec![
        began("one", 100, 100),
        intended("intended", 1),
        intended("started", 2),
        started("started"),
        intended("ended", 3),
        started("ended"),
        ended("ended"),
        intended("refused", 4),
        not_started("refused"),
        intended("lost", 5),
        started("lost"),
        tree_ended("lost"),
    ]
}

#[test]
fn what_is_written_is_read_again() {
    for record in lives() {
        let file = file_of(std::slice::from_ref(&record));
        let mut read = Vec::new();
        scan_all(JOURNAL_MAGIC, JOURNAL_SALT, &file, |scanned| {
            let Scanned::Record(found) = scanned else { panic!("{scanned:?}") };
            read.push(JournalRecord::read(found)?);
            Ok::<(), RecordError>(())
        })
        .unwrap();
        assert_eq!(read, [record]);
    }
}

/// J-1.4: killed after each write, and within it, what is told is what the table says.
#[test]
fn fault_60_a_journal_cut_at_any_byte_tells_the_truth_of_each_step() {
    let steps = [began("one", 100, 100), intended("j", 1), started("j"), ended("j")];
    let ends: Vec<usize> = (0..=steps.len()).map(|count| file_of(&steps[..count]).len()).collect();
    let file = file_of(&steps);
    for cut in 0..=file.len() {
        let replay = Replay::read(&file[..cut]);
        assert!(replay.is_good(), "cut at {cut}: {:?}", replay.faults);
        let finished = ends.iter().filter(|end| **end <= cut).count().saturating_sub(1);
        let told =
            replay.ledger.job(&key("j")).map(|entry| (entry.is_unfinished(), entry.was_started()));
        let truth = match finished {
            0 | 1 => None,
            2 => Some((true, WasStarted::Unknown)),
            3 => Some((true, WasStarted::Yes)),
            _ => Some((false, WasStarted::Yes)),
        };
        assert_eq!(told, truth, "cut at {cut}");
        // J-1.6: nothing that was finished is missing, so it can still vouch.
        let since = if finished == 0 { 500 } else { 100 };
        assert_eq!(replay.vouched_since_us(BOOT, 500), since, "cut at {cut}");
    }
}

/// J-1.6
#[test]
fn fault_60_a_damaged_journal_vouches_for_nothing_before_now() {
    let good = file_of(&lives());
    assert_eq!(Replay::read(&good).vouched_since_us(BOOT, 500), 100);
    let last = good.len() - 1;
    for at in [0, JOURNAL_MAGIC.len(), good.len() / 2, last] {
        let mut file = good.clone();
        file[at] ^= 1;
        let replay = Replay::read(&file);
        assert!(!replay.is_good(), "byte {at}");
        assert_eq!(replay.vouched_since_us(BOOT, 500), 500, "byte {at}");
        assert!(replay.faults[0].contains("damaged"), "{:?}", replay.faults);
    }
}

/// J-1.6
#[test]
fn a_journal_of_another_boot_vouches_for_nothing_before_now() {
    let replay = Replay::read(&file_of(&lives()));
    assert_eq!(replay.vouched_since_us("another", 500), 500);
    assert_eq!(Replay::read(&[]).vouched_since_us(BOOT, 500), 500);
}

#[test]
fn a_rewritten_journal_says_the_same() {
    let mut records = lives();
    let ledger = Replay::read(&file_of(&records)).ledger;
    assert_eq!(Replay::read(&ledger.to_file().unwrap()).ledger, ledger);
    // The ended ones are in the index now, and the running ones stay whatever is said of them.
    records.push(JournalRecord::Indexed(Indexed { numbers: vec![1, 2, 3, 4, 5] }));
    let ledger = Replay::read(&file_of(&records)).ledger;
    let left: Vec<u64> = ledger.jobs().map(|entry| entry.intended.number).collect();
    assert_eq!(left, [1, 5, 2]);
    assert_eq!(Replay::read(&ledger.to_file().unwrap()).ledger, ledger);
}

#[test]
fn a_step_that_cannot_be_is_a_fault_and_changes_nothing() {
    let cases: [&[JournalRecord]; 7] = [
        &[started("x")],
        &[ended("x")],
        &[tree_ended("x")],
        &[intended("x", 1), intended("x", 2)],
        &[intended("x", 1), started("x"), started("x")],
        &[intended("x", 1), started("x"), not_started("x")],
        &[intended("x", 1), ended("x"), ended("x")],
    ];
    for records in cases {
        let replay = Replay::read(&file_of(records));
        let before = Replay::read(&file_of(&records[..records.len() - 1]));
        assert_eq!(replay.faults.len(), 1, "{records:?}");
        assert_eq!(replay.ledger, before.ledger);
    }
}

#[test]
fn a_record_of_a_later_version_is_a_fault() {
    let mut file = file_of(&lives());
    let at = file.len() as u64;
    file.extend_from_slice(&header(JOURNAL_SALT, at, 99, &[b"{}"]));
    file.extend_from_slice(b"{}");
    let replay = Replay::read(&file);
    assert_eq!(replay.faults, [format!("at byte {at}: a record of kind 99: not known")]);
}

#[test]
fn faults_are_told_to_a_limit() {
    let mut records = vec![began("one", 1, 1)];
    records.extend((0..FAULTS_TOLD_MAX + 3).map(|_| started("nobody")));
    let replay = Replay::read(&file_of(&records));
    assert_eq!((replay.faults.len(), replay.faults_untold), (FAULTS_TOLD_MAX, 3));
}

#[test]
fn what_a_list_says_of_each_step() {
    let ledger = Replay::read(&file_of(&lives())).ledger;
    let info = |id| ledger.job(&key(id)).unwrap().info();
    let said = |id| {
        let info = info(id);
        (info.state, info.pid, info.started_at_us, info.ended_at_us, info.end)
    };
    assert_eq!(said("intended"), (JobState::Waiting, None, None, None, None));
    assert_eq!(said("started"), (JobState::Running, Some(5), Some(2), None, None));
    let exited = Some(End::Exited { code: 3 });
    assert_eq!(said("ended"), (JobState::Ended, None, Some(2), Some(3), exited));
    let reason = "not_found".to_owned();
    let not_started = Some(End::NotStarted { reason });
    assert_eq!(said("refused"), (JobState::Ended, None, None, Some(2), not_started));
    let mut shown = info("ended");
    assert_eq!(shown.command.as_bytes(), b"true");
    // What was shown is what is shown again.
    (shown.command_cut, shown.cwd, shown.session) =
        (true, Some(b"/srv".to_vec().into()), Some("s".to_owned()));
    let JournalRecord::Intended(mut intent) = intended("again", 1) else { panic!("it is one") };
    intent.summary = Summary::of(&shown);
    let mut ledger = Ledger::default();
    ledger.apply(JournalRecord::Intended(intent)).unwrap();
    let again = ledger.job(&key("again")).unwrap().info();
    assert_eq!(
        (again.command, again.command_cut, again.cwd, again.session),
        (shown.command, true, shown.cwd, shown.session)
    );
}

#[test]
fn a_refusal_is_cut_and_a_record_that_is_too_long_is_refused() {
    let JournalRecord::NotStarted(mut refused) = not_started("x") else { panic!("it is one") };
    refused.refused.message = "m".repeat(REFUSAL_SUMMARY_BYTES_MAX + 1);
    let bounded = bounded_refusal(&refused.refused);
    assert_eq!(bounded.message.len(), REFUSAL_SUMMARY_BYTES_MAX);
    assert_eq!(bounded_refusal(&bounded), bounded);
    refused.refused.message = "m".repeat(RECORD_PAYLOAD_BYTES_MAX);
    let mut file = Vec::new();
    let error = JournalRecord::NotStarted(refused).push_to(&mut file, 0).unwrap_err();
    assert!(matches!(error, RecordError::TooLong { .. }));
    assert!(file.is_empty());
}

#[test]
fn keys_of_different_scopes_are_different_jobs() {
    let confined = JobKey { scope: "SHA256:abc".to_owned(), job: JobId::new("j").unwrap() };
    assert_ne!(confined, key("j"));
    assert_eq!(
        (confined.to_string().as_str(), key("j").to_string().as_str()),
        ("j of SHA256:abc", "j")
    );
}

proptest! {
    #[test]
    fn any_bytes_are_a_journal_or_faults(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let replay = Replay::read(&bytes);
        prop_assert_eq!(replay.ledger.jobs().len(), 0);
    }

    /// Whatever the order, a ledger comes back from its file as it was.
    #[test]
    fn a_ledger_of_any_records_survives_its_file(
        steps in prop::collection::vec((0..6_u8, 0..4_u8), 0..40),
    ) {
        let mut ledger = Ledger::default();
        for (number, (step, job)) in (0..).zip(steps) {
            let id = format!("job{job}");
            let _ = ledger.apply(match step {
                0 => intended(&id, number),
                1 => started(&id),
                2 => ended(&id),
                3 => not_started(&id),
                4 => tree_ended(&id),
                _ => JournalRecord::Indexed(Indexed { numbers: (0..number).collect() }),
            });
        }
        let replay = Replay::read(&ledger.to_file().unwrap());
        prop_assert!(replay.is_good(), "{:?}", replay.faults);
        prop_assert_eq!(replay.ledger, ledger);
    }
}

/// J-5.4: so that whoever finds no index knows that there was one.
#[test]
fn that_there_is_an_index_outlives_what_was_put_there() {
    let mut ledger = Ledger::default();
    for record in [began("i", 100, 100), intended("a", 1), started("a"), ended("a")] {
        ledger.apply(record).unwrap();
    }
    assert!(!Replay::read(&ledger.to_file().unwrap()).ledger.is_indexed());
    ledger.apply(JournalRecord::Indexed(Indexed { numbers: vec![1] })).unwrap();
    let replay = Replay::read(&ledger.to_file().unwrap());
    assert!(replay.is_good() && replay.ledger.is_indexed());
    assert_eq!((replay.ledger.jobs().len(), &replay.ledger), (0, &ledger));
}

#[test]
fn fault_56_what_is_left_of_a_job_is_looked_after_until_somebody_says_that_it_was() {
    let unended = |records: &[JournalRecord]| {
        let replay = Replay::read(&file_of(records));
        assert!(replay.is_good(), "{:?}", replay.faults);
        replay.ledger.job(&key("a")).unwrap().has_unended_tree()
    };
    let JournalRecord::Ended(sealed) = ended("a") else { panic!() };
    let lost = |seal| Ended { end: End::Lost, seal, ..(*sealed).clone() };
    let lost_unseen = JournalRecord::Ended(Box::new(lost(None)));
    let given_up = JournalRecord::Ended(Box::new(lost(sealed.seal.clone())));
    let begun = [began("one", 1, 1), intended("a", 1), started("a")];
    let with = |records: &[JournalRecord]| [&begun[..], records].concat();
    assert!(unended(&begun[..2]) && unended(&begun));
    assert!(unended(&with(std::slice::from_ref(&lost_unseen))));
    assert!(!unended(&with(&[lost_unseen, tree_ended("a")])));
    assert!(!unended(&with(&[tree_ended("a")])));
    assert!(!unended(&with(&[ended("a")])) && !unended(&with(&[given_up])));
    assert!(!unended(&[begun[0].clone(), begun[1].clone(), not_started("a")]));
}
