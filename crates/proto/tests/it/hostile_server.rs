//! The client against a server that lies.

use afar_proto::connection::{Stream, Verdict};
use afar_proto::frame::Kind;
use afar_proto::limits::SIGNAL_NAME_BYTES_MAX;
use afar_proto::outcome::{End, ExitReport, Seal, StreamSeal};
use afar_proto::seal::Sealer;
use afar_proto::{Event, Misbehaviour, json};

use crate::rig::lone::{Lone, data, frame};
use crate::rig::samples;

fn seal_frame(seal: &Seal) -> Vec<u8> {
    frame(Kind::Seal, 0, 1, &json::to_vec(seal))
}

fn exit_frame(report: &ExitReport) -> Vec<u8> {
    frame(Kind::Exit, 0, 1, &json::to_vec(report))
}

fn end_frame(stream: u8, offset: u64) -> Vec<u8> {
    frame(Kind::End, stream, 1, &offset.to_be_bytes())
}

/// What a client makes of `out` on stdout and then this seal.
fn verdict_on(seal: &Seal) -> Verdict {
    let (mut lone, _) = Lone::client_with_job();
    lone.input(&data(1, 1, 0, b"out"));
    lone.input(&[end_frame(1, 3), end_frame(2, 0)].concat());
    lone.input(&[exit_frame(&samples::exited(0)), seal_frame(seal)].concat());
    let events = lone.events();
    let Some(Event::Seal { verdict, .. }) = events.last() else { panic!("{events:?}") };
    assert_eq!(lone.connection.channels_open(), 0, "the seal is the last word");
    *verdict
}

/// W-7.4: bytes that are not those which were sealed are told to be so.
#[test]
fn fault_87_a_seal_that_does_not_match_is_a_mismatch_of_its_stream() {
    let out = samples::sealer_of(b"out");
    let empty = Sealer::new();
    assert_eq!(verdict_on(&samples::seal(&out, &empty)), Verdict::Whole);

    let mismatch = Verdict::Mismatch(Stream::Stdout);
    let other = samples::sealer_of(b"our");
    assert_eq!(verdict_on(&samples::seal(&other, &empty)), mismatch);
    let longer = samples::sealer_of(b"out and more");
    assert_eq!(verdict_on(&samples::seal(&longer, &empty)), mismatch);
    let gap = StreamSeal { gaps: [(1, 2)].into_iter().collect(), ..out.seal(true) };
    assert_eq!(
        verdict_on(&samples::seal_of([("stdout", gap), ("stderr", empty.seal(true))])),
        Verdict::Whole,
        "what was dropped at the server had been seen here"
    );
    let short = StreamSeal { blake3: vec![0], ..out.seal(true) };
    assert_eq!(
        verdict_on(&samples::seal_of([("stdout", short), ("stderr", empty.seal(true))])),
        mismatch
    );

    let missing = samples::seal_of([("stdout", out.seal(true))]);
    assert_eq!(verdict_on(&missing), Verdict::Mismatch(Stream::Stderr));
}

/// W-7.4: a stream that was not ended was not sealed.
#[test]
fn fault_87_a_seal_before_the_end_of_a_stream_is_a_mismatch() {
    let (mut lone, _) = Lone::client_with_job();
    lone.input(&data(1, 1, 0, b"out"));
    lone.input(&exit_frame(&samples::exited(0)));
    lone.input(&seal_frame(&samples::seal(&samples::sealer_of(b"out"), &Sealer::new())));
    let last = lone.events().pop();
    let Some(Event::Seal { verdict, .. }) = last else { panic!("{last:?}") };
    assert_eq!(verdict, Verdict::Mismatch(Stream::Stdout));
}

/// W-7.4: what this side had stopped may have been cut anywhere.
#[test]
fn a_stopped_stream_is_not_held_against_the_seal() {
    let (mut lone, channel) = Lone::client_with_job();
    lone.input(&data(1, 1, 0, b"o"));
    lone.channel(channel).stop(Stream::Stdout);
    lone.input(&[end_frame(1, 1), end_frame(2, 0), exit_frame(&samples::exited(0))].concat());
    lone.input(&seal_frame(&samples::seal(&samples::sealer_of(b"out"), &Sealer::new())));
    let last = lone.events().pop();
    assert!(matches!(last, Some(Event::Seal { verdict: Verdict::Whole, .. })), "{last:?}");
}

/// W-5.6: nothing of a job is believed before it was said to be started.
#[test]
fn fault_88_an_outcome_of_a_job_that_was_not_started_is_refused() {
    let empty = Sealer::new();
    let early = [
        (Kind::Exit, exit_frame(&samples::exited(0))),
        (Kind::Seal, seal_frame(&samples::seal(&empty, &empty))),
        (Kind::Data, data(1, 1, 0, b"made up")),
        (Kind::End, end_frame(1, 0)),
    ];
    for (kind, bytes) in early {
        let (mut lone, _) = Lone::client_with_open();
        lone.input(&bytes);
        assert_eq!(lone.assert_misbehaved(), Misbehaviour::UnexpectedFrame(kind));
    }
    // A seal before the exit, an exit twice.
    let exit = exit_frame(&samples::exited(0));
    let seal = seal_frame(&samples::seal(&empty, &empty));
    for (kind, bytes) in [(Kind::Seal, seal), (Kind::Exit, [exit.clone(), exit].concat())] {
        let (mut lone, _) = Lone::client_with_job();
        lone.input(&bytes);
        assert_eq!(lone.assert_misbehaved(), Misbehaviour::UnexpectedFrame(kind));
    }
    // Started, and now it was not.
    let end = End::NotStarted { reason: "not_found".into() };
    let (mut lone, _) = Lone::client_with_job();
    lone.input(&exit_frame(&ExitReport { end: end.clone(), receipt: samples::receipt() }));
    assert!(matches!(lone.assert_misbehaved(), Misbehaviour::Malformed { .. }));
    let (mut lone, _) = Lone::client_with_job();
    lone.input(&exit_frame(&samples::exited(0)));
    lone.input(&seal_frame(&Seal { end, ..samples::seal(&empty, &empty) }));
    assert!(matches!(lone.assert_misbehaved(), Misbehaviour::Malformed { .. }));
}

/// W-5.6, W-7.2, W-7.3: the answers are about the job that was asked for, and agree.
#[test]
fn fault_88_answers_that_do_not_agree_are_refused() {
    let (mut lone, _) = Lone::client_with_open();
    let opened = json::to_vec(&samples::opened("another"));
    lone.input(&frame(Kind::Opened, 0, 1, &opened));
    assert!(matches!(lone.assert_misbehaved(), Misbehaviour::Malformed { .. }));

    let empty = Sealer::new();
    for end in [End::Exited { code: 1 }, End::NotStarted { reason: "denied".into() }] {
        let (mut lone, _) = Lone::client_with_job();
        let seal = Seal { end, ..samples::seal(&empty, &empty) };
        lone.input(&[exit_frame(&samples::exited(0)), seal_frame(&seal)].concat());
        assert!(matches!(lone.assert_misbehaved(), Misbehaviour::Malformed { .. }));
    }
}

/// W-7.2: a name that is shown to people is a name.
#[test]
fn fault_85_the_name_of_a_signal_is_a_name() {
    let longest = "A".repeat(SIGNAL_NAME_BYTES_MAX);
    let too_long = "A".repeat(SIGNAL_NAME_BYTES_MAX + 1);
    for (name, good) in [
        ("SIGTERM", true),
        ("SIGRTMIN+3", true),
        (longest.as_str(), true),
        (too_long.as_str(), false),
        ("SIG\u{1b}[2J", false),
        ("SIG\u{9b}", false),
        ("SIG\u{202e}", false),
    ] {
        let (mut lone, _) = Lone::client_with_job();
        let end = End::Signaled { signal: 1, name: name.into(), core: false };
        lone.input(&exit_frame(&ExitReport { end, receipt: samples::receipt() }));
        if good {
            assert!(matches!(lone.events()[..], [Event::Exit { .. }]), "{name}");
        } else {
            assert!(matches!(lone.assert_misbehaved(), Misbehaviour::Malformed { .. }), "{name}");
        }
    }
}

/// W-7.2: the exit overtakes output that is still coming, and does not end it.
#[test]
fn output_after_the_exit_is_taken() {
    let (mut lone, _) = Lone::client_with_job();
    lone.input(&[exit_frame(&samples::exited(44)), data(1, 2, 0, b"late")].concat());
    let events = lone.events();
    assert!(matches!(events[..], [Event::Exit { .. }, Event::Data { .. }]), "{events:?}");
}

/// W-9.7: sizes, counts and offsets that make no sense are bounded by what was granted.
#[test]
fn fault_86_absurd_sizes_and_offsets_are_bounded() {
    let (mut lone, _) = Lone::client_with_job();
    lone.input(&data(1, 1, u64::MAX, b"x"));
    assert!(matches!(lone.events()[..], [Event::Failed { .. }]));

    let (mut lone, _) = Lone::client_with_job();
    lone.input(&end_frame(1, u64::MAX));
    assert!(matches!(lone.events()[..], [Event::Failed { .. }]));

    let (mut lone, _) = Lone::client_with_job();
    lone.input(&frame(Kind::Window, 0, 1, &u32::MAX.to_be_bytes()));
    assert_eq!(lone.assert_misbehaved(), Misbehaviour::BadWindow(1));

    // A seal that claims more than there are bytes in the world is a number in a message.
    let claimed = StreamSeal { bytes: 1 << 53, ..Sealer::new().seal(true) };
    let seal = samples::seal_of([("stdout", claimed.clone()), ("stderr", claimed)]);
    assert_eq!(verdict_on(&seal), Verdict::Mismatch(Stream::Stdout));
}

/// W-2.7: text of the server is handed on as it is; no message of ours repeats it as our own.
#[test]
fn fault_85_hostile_text_is_marked_as_the_servers() {
    let text = "\u{1b}]0;owned\u{7}";
    let (mut lone, _) = Lone::client_with_job();
    let payload = format!(r#"{{"message":{}}}"#, serde_json::to_string(text).unwrap());
    lone.input(&frame(Kind::Reset, 0, 1, payload.as_bytes()));
    let last = lone.events().pop();
    // Whoever shows this escapes it: `Failed` and its kin are documented so.
    assert!(matches!(&last, Some(Event::Failed { message, .. }) if message == text), "{last:?}");
    // Raw control characters in a JSON string are not JSON.
    let (mut lone, _) = Lone::client_with_job();
    lone.input(&frame(Kind::Reset, 0, 1, b"{\"message\":\"\x1b[2J\"}"));
    let misbehaviour = lone.assert_misbehaved().to_string();
    assert!(!misbehaviour.contains('\u{1b}'), "{misbehaviour:?}");
}
