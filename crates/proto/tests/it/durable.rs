//! What jobs need to outlive their connections: confirmed seals, answers to a second OPEN, leaving.

use std::time::Duration;

use afar_proto::connection::{OpenError, Stream, Verdict};
use afar_proto::frame::Kind;
use afar_proto::limits::{CHANNELS_MAX, LAZY_DELAY};
use afar_proto::message::{
    Goodbye, GoodbyeCode, Incarnation, JobHello, OnDisconnect, OpenSpec, Overflow, Retry,
};
use afar_proto::outcome::RefusalReason;
use afar_proto::seal::Sealer;
use afar_proto::{ChannelId, Config, ConnectionError, Event, Misbehaviour, Role, json};
use bytes::Bytes;

use crate::rig::lone::{Lone, frame, open};
use crate::rig::pair::Pair;
use crate::rig::samples;

fn seal_empty(pair: &mut Pair, channel: ChannelId) {
    let empty = Sealer::new();
    let mut server = pair.server.channel(channel).unwrap();
    server.exit(&samples::exited(0));
    server.seal(&samples::seal(&empty, &empty));
}

/// A client with channel 1 sealed, by this seal.
fn sealed(seal: &afar_proto::outcome::Seal) -> Lone {
    let (mut lone, _) = Lone::client_with_job();
    lone.input(&frame(Kind::Exit, 0, 1, &json::to_vec(&samples::exited(0))));
    for stream in [1, 2] {
        lone.input(&frame(Kind::End, stream, 1, &[0; 8]));
    }
    lone.input(&frame(Kind::Seal, 0, 1, &json::to_vec(seal)));
    lone
}

fn empty_seal() -> afar_proto::outcome::Seal {
    samples::seal(&Sealer::new(), &Sealer::new())
}

/// W-5.12: the confirmation costs no write of its own, and comes all the same.
#[test]
fn a_seal_is_confirmed_with_what_is_sent_next_or_after_a_while() {
    let mut lone = sealed(&empty_seal());
    assert_eq!(lone.connection.channels_open(), 0);
    assert_eq!(lone.sent_kinds(), [], "nobody waits for it");
    lone.connection.open(&samples::spec("next")).unwrap();
    let kinds = lone.sent_kinds();
    assert_eq!(kinds, [Kind::Close, Kind::Open, Kind::Window, Kind::Window]);

    let mut lone = sealed(&empty_seal());
    let due = lone.now.after(LAZY_DELAY);
    assert_eq!(lone.connection.poll_timeout(), Some(due));
    lone.connection.handle_timeout(due.after(Duration::ZERO));
    assert_eq!(lone.sent_kinds(), [Kind::Close]);
    assert!(lone.connection.poll_timeout().is_some_and(|at| at > due), "once is enough");

    let mut lone = sealed(&empty_seal());
    lone.connection.close(GoodbyeCode::Done, "");
    assert_eq!(lone.sent_kinds(), [Kind::Close, Kind::Goodbye]);
}

/// W-5.12: too early is not yet, and a hurry that was not needed any more does no harm.
#[test]
fn a_confirmation_is_not_hurried_before_its_time() {
    let mut lone = sealed(&empty_seal());
    lone.connection.handle_timeout(lone.now.after(LAZY_DELAY - Duration::from_micros(1)));
    assert_eq!(lone.sent_kinds(), []);
    lone.connection.open(&samples::spec("next")).unwrap();
    lone.sent();
    lone.connection.handle_timeout(lone.now.after(LAZY_DELAY));
    assert_eq!(lone.sent_kinds(), []);
}

/// W-5.12: who met other bytes than were sealed says that it has left, not that it has them.
#[test]
fn fault_87_a_mismatch_is_not_confirmed() {
    let mut lone = sealed(&samples::seal(&samples::sealer_of(b"more"), &Sealer::new()));
    let verdict = Verdict::Mismatch(Stream::Stdout);
    assert!(matches!(lone.events().pop(), Some(Event::Seal { verdict: of, .. }) if of == verdict));
    lone.connection.handle_timeout(lone.now.after(LAZY_DELAY));
    assert_eq!(lone.sent_kinds(), [Kind::Detach]);
}

/// W-5.12: at the server the channel is there until its seal is confirmed, and is told once.
#[test]
fn a_server_keeps_a_sealed_channel_until_it_is_confirmed() {
    let mut pair = Pair::new();
    let channel = pair.open(&samples::spec("job"));
    seal_empty(&mut pair, channel);
    pair.drive();
    assert_eq!((pair.client.channels_open(), pair.server.channels_open()), (0, 1));
    assert_eq!(pair.server_events(), []);
    pair.advance(LAZY_DELAY);
    assert_eq!(pair.server_events(), [Event::Confirmed { channel }]);
    assert_eq!(pair.server.channels_open(), 0);
    assert!(pair.server.channel(channel).is_none());
}

/// W-5.8: a CLOSE before the seal has left gives the job up.
#[test]
fn a_close_before_the_seal_confirms_nothing() {
    let mut pair = Pair::new();
    let channel = pair.open(&samples::spec("job"));
    pair.client.channel(channel).unwrap().close();
    // It is queued behind what has not left yet.
    seal_empty(&mut pair, channel);
    pair.transmit(Role::Client, usize::MAX);
    pair.deliver(Role::Server, usize::MAX);
    assert_eq!(pair.server_events(), [Event::Abandoned { channel }]);
}

/// W-5.12, W-9.6: confirmations go first, so that the next commands always have room, whoever has
/// heard what.
#[test]
fn confirmed_channels_never_stand_in_the_way_of_new_ones() {
    let mut pair = Pair::new();
    for _ in 0..3 {
        let channels: Vec<ChannelId> = (0..CHANNELS_MAX)
            .map(|_| pair.client.open(&samples::spec("job")).expect("a channel is free"))
            .collect();
        pair.drive();
        let asked = pair.server_events();
        let opens = asked.iter().filter(|event| matches!(event, Event::Open { .. })).count();
        assert_eq!(opens, CHANNELS_MAX);
        for channel in channels {
            pair.server.channel(channel).unwrap().accept(&samples::opened("job"));
            seal_empty(&mut pair, channel);
        }
        pair.drive();
        let ended = pair.client_events();
        let seals = ended.iter().filter(|event| matches!(event, Event::Seal { .. })).count();
        assert_eq!(seals, CHANNELS_MAX);
    }
}

/// W-5.8: who leaves ends nothing; it counts until the server has cleaned up (fault 18).
#[test]
fn fault_18_a_detached_channel_is_told_once_and_counts_until_it_is_released() {
    let mut pair = Pair::new();
    let channel = pair.open(&samples::spec("job"));
    pair.client.channel(channel).unwrap().detach();
    assert!(pair.client.channel(channel).is_none());
    pair.drive();
    assert_eq!(pair.server_events(), [Event::Detached { channel }]);
    assert!(pair.server.channel(channel).is_none());

    let mut lone = Lone::new(Role::Server);
    for at in 0..=u32::try_from(afar_proto::limits::CHANNELS_ABANDONED_MAX).unwrap() {
        lone.assert_open();
        lone.input(&open(1 + 2 * at, &samples::spec("job")));
        lone.input(&frame(Kind::Detach, 0, 1 + 2 * at, b""));
    }
    assert_eq!(lone.assert_misbehaved(), Misbehaviour::ChannelChurn);
}

/// W-2.6: both say all by their kind.
#[test]
fn a_close_or_detach_with_a_payload_ends_the_connection() {
    for kind in [Kind::Close, Kind::Detach] {
        let mut lone = Lone::server_with_job();
        lone.input(&frame(kind, 0, 1, b"x"));
        let what = "it carries nothing";
        assert_eq!(lone.assert_misbehaved(), Misbehaviour::Malformed { kind, what });
    }
}

/// W-5.10: nothing follows the answer to a detached OPEN, whichever it is.
#[test]
fn a_detached_open_ends_with_its_answer() {
    let spec = OpenSpec { detach: true, ..samples::spec("job") };
    for exists in [false, true] {
        let mut pair = Pair::new();
        let channel = pair.client.open(&spec).unwrap();
        pair.drive();
        assert!(
            matches!(&pair.server_events()[..], [Event::Open { spec: of, .. }] if **of == spec)
        );
        let mut server = pair.server.channel(channel).unwrap();
        assert_eq!(server.writable(Stream::Stdout), 0);
        if exists {
            server.accept_attach(&samples::attached(0, 0, None));
        } else {
            server.accept(&samples::opened("job"));
        }
        pair.drive();
        let events = pair.client_events();
        assert!(
            matches!(events[..], [Event::Opened { .. } | Event::Attached { .. }]),
            "{events:?}"
        );
        assert_eq!(pair.client.channels_open() + pair.server.channels_open(), 0);
    }
}

/// W-5.10: nobody is left who could send it.
#[test]
fn a_detached_open_with_stdin_is_not_sent_and_not_taken() {
    let spec = OpenSpec { detach: true, ..samples::spec_with_stdin("job") };
    let mut lone = Lone::new(Role::Client);
    assert_eq!(lone.connection.open(&spec), Err(OpenError::DetachedStdin));
    let mut lone = Lone::new(Role::Server);
    lone.input(&open(1, &spec));
    assert_eq!(lone.events(), []);
    assert_eq!(lone.sent_kinds(), [Kind::Refused]);
}

/// W-5.4, J-1.3: an OPEN of a job that exists goes on with it, stdin included.
#[test]
fn fault_68_an_open_can_be_answered_by_attached() {
    let mut pair = Pair::new();
    let channel = pair.client.open(&samples::spec_with_stdin("job")).unwrap();
    pair.drive();
    pair.server_events();
    let mut server = pair.server.channel(channel).unwrap();
    server.accept_attach(&samples::attached(0, 0, Some(70)));
    server.write(Stream::Stdout, 0, Bytes::from_static(b"again")).unwrap();
    server.exit(&samples::exited(0));
    server.seal(&samples::seal(&samples::sealer_of(b"again"), &Sealer::new()));
    let mut client = pair.client.channel(channel).unwrap();
    assert_eq!(client.writable(Stream::Stdin), 0);
    pair.drive();
    let events = pair.client_events();
    assert!(matches!(events.first(), Some(Event::Attached { .. })));
    assert!(matches!(events.last(), Some(Event::Seal { verdict: Verdict::Whole, .. })));
}

/// W-6.7: stdin goes on where the server says; an end that was ready is one only at that offset.
#[test]
fn stdin_of_a_second_open_goes_on_where_the_first_has_come() {
    for (offset, early) in [(0, true), (0, false), (70, true), (70, false)] {
        let mut pair = Pair::new();
        let channel = pair.client.open(&samples::spec_with_stdin("job")).unwrap();
        if early {
            pair.client.channel(channel).unwrap().finish(Stream::Stdin);
        }
        pair.drive();
        pair.server_events();
        let mut server = pair.server.channel(channel).unwrap();
        server.accept_attach(&samples::attached(0, 0, Some(offset)));
        pair.drive();
        let kept = early && offset == 0;
        if !kept {
            assert_eq!(pair.server_events(), [], "nothing is ended that was not there");
            pair.client.channel(channel).unwrap().finish(Stream::Stdin);
            pair.drive();
        }
        let stream = Stream::Stdin;
        assert_eq!(pair.server_events(), [Event::End { channel, stream }], "{offset} {early}");
    }
}

/// W-6.7: a job that takes no stdin any more is sent none.
#[test]
fn stdin_that_nobody_takes_is_not_sent() {
    let mut pair = Pair::new();
    let channel = pair.client.open(&samples::spec_with_stdin("job")).unwrap();
    pair.client.channel(channel).unwrap().finish(Stream::Stdin);
    pair.drive();
    pair.server_events();
    pair.server.channel(channel).unwrap().accept_attach(&samples::attached(0, 0, None));
    pair.drive();
    assert_eq!(pair.server_events(), []);
    assert!(pair.client.channel(channel).unwrap().write(Stream::Stdin, 0, "x".into()).is_err());
}

/// W-6.7, W-5.6: an answer about another job is none.
#[test]
fn fault_88_an_attached_of_another_job_ends_the_connection() {
    let (mut lone, _) = Lone::client_with_open();
    let other = samples::attached_to("job2", 0, 0, None);
    lone.input(&frame(Kind::Attached, 0, 1, &json::to_vec(&other)));
    assert!(matches!(lone.assert_misbehaved(), Misbehaviour::Malformed { .. }));

    // Of a prefix, any job that begins so is one that was asked for.
    for (job, fits) in [("job2", true), ("jo", false), ("other", false)] {
        let mut lone = Lone::new(Role::Client);
        let attach = afar_proto::message::Attach { prefix: true, ..samples::attach("job", 0, 0) };
        lone.connection.attach(&attach, std::collections::BTreeMap::new()).unwrap();
        let attached = samples::attached_to(job, 0, 0, None);
        lone.input(&frame(Kind::Attached, 0, 1, &json::to_vec(&attached)));
        assert_eq!(lone.connection.is_closed(), !fits, "{job}");
    }
}

/// W-5.1: which life of a supervisor this is; W-8.3: and that another one takes over.
#[test]
fn a_server_tells_its_incarnation_and_that_it_is_replaced() {
    let incarnation = Some(Incarnation::new("boot-1.7").unwrap());
    let config = Config { incarnation: incarnation.clone(), ..Config::default() };
    let mut pair = Pair::silent(Config::default(), config);
    pair.drive();
    let Some(Event::Ready(JobHello { incarnation: told, .. })) = pair.client_events.pop_front()
    else {
        panic!("no hello")
    };
    assert_eq!(told, incarnation);
    pair.server.close(GoodbyeCode::Restart, "");
    pair.drive();
    let goodbye = Goodbye { code: GoodbyeCode::Restart, message: String::new() };
    let closed = ConnectionError::PeerClosed(goodbye);
    assert_eq!(pair.client_events(), [Event::Closed(closed)]);

    let mut lone = Lone::silent(Role::Client, Config::default());
    lone.input(&frame(Kind::JobHello, 0, 0, br#"{"version":1,"incarnation":"no spaces"}"#));
    assert!(matches!(lone.assert_misbehaved(), Misbehaviour::MalformedJson { .. }));
}

/// W-5.4: what is asked for arrives as it was asked for, and what is not there takes no room.
#[test]
fn every_field_of_an_open_is_read_as_it_was_written() {
    let plain = samples::spec("job");
    let text = String::from_utf8(json::to_vec(&plain)).unwrap();
    for field in ["on_disconnect", "detach", "keep_s", "overflow", "memory", "cpu", "pids", "retry"]
    {
        assert!(!text.contains(field), "{text}");
    }
    let retry = Retry { age_ms: 7, incarnation: Some(Incarnation::new("i").unwrap()) };
    let full = OpenSpec {
        on_disconnect: Some(OnDisconnect::Kill),
        detach: true,
        keep_s: Some(60),
        overflow: Overflow::Drop,
        memory_bytes: Some(1 << 29),
        cpu_milli: Some(1_500),
        pids_max: Some(10),
        retry: Some(retry),
        ..plain
    };
    assert_eq!(json::from_slice::<OpenSpec>(&json::to_vec(&full)).unwrap(), full);
}

/// J-1.2: what makes two requests the same one.
#[test]
fn a_digest_is_of_everything_but_the_id_and_the_retry() {
    let spec = samples::spec("job");
    let retry = Some(Retry { age_ms: 9, incarnation: None });
    let again = OpenSpec { job: samples::job_id("other"), retry, ..spec.clone() };
    assert_eq!(again.digest(), spec.digest());
    let others = [
        OpenSpec { stdin: true, ..spec.clone() },
        OpenSpec { merge: true, ..spec.clone() },
        OpenSpec { detach: true, ..spec.clone() },
        OpenSpec { cwd: Some("/".into()), ..spec.clone() },
        OpenSpec { keep_s: Some(0), ..spec.clone() },
        OpenSpec { overflow: Overflow::Kill, ..spec.clone() },
        OpenSpec { pids_max: Some(0), ..spec.clone() },
        OpenSpec { on_disconnect: Some(OnDisconnect::Keep), ..spec.clone() },
        OpenSpec { env: vec![("A".into(), "".into())], ..spec.clone() },
    ];
    for other in &others {
        assert_ne!(other.digest(), spec.digest(), "{other:?}");
    }
}

/// W-5.7: the new reasons, by their words.
#[test]
fn refusals_of_durable_jobs_have_words() {
    let words = [
        (RefusalReason::Unknown, "unknown"),
        (RefusalReason::Ambiguous, "ambiguous"),
        (RefusalReason::Running, "running"),
    ];
    for (reason, word) in words {
        assert_eq!(serde_json::to_value(reason).unwrap(), word);
        assert_eq!(reason.as_str(), word);
    }
}
