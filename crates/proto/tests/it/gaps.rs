//! Gaps in the middle of a stream: named, in order, and credit that goes on behind them.

use std::collections::BTreeMap;

use afar_proto::connection::{Stream, Verdict};
use afar_proto::frame::Kind;
use afar_proto::seal::Sealer;
use afar_proto::{ChannelId, Config, Event, Misbehaviour};
use bytes::Bytes;

use crate::rig::lone::{Lone, data, frame};
use crate::rig::pair::Pair;
use crate::rig::samples;

const OUT: Stream = Stream::Stdout;

fn gap(stream: u8, to: u64) -> Vec<u8> {
    frame(Kind::Gap, stream, 1, &to.to_be_bytes())
}

fn opened(window_bytes: u32) -> (Pair, ChannelId) {
    let config = Config { window_bytes, ..Config::default() };
    let mut pair = Pair::with(config.clone(), config);
    let channel = pair.open(&samples::spec("job"));
    (pair, channel)
}

/// W-6.10: data, the gap, data; the seal is of all, and so only the count can be compared.
#[test]
fn a_gap_is_named_where_it_is() {
    let (mut pair, channel) = opened(1_000);
    let mut server = pair.server.channel(channel).unwrap();
    server.write(OUT, 0, Bytes::from_static(b"abc")).unwrap();
    server.gap(OUT, 10);
    server.gap(OUT, 5);
    server.gap(OUT, 1_000_000);
    server.write(OUT, 0, Bytes::from_static(b"xyz")).unwrap();
    server.gap(OUT, 1_000_009);
    server.exit(&samples::exited(0));
    let mut stdout = samples::sealer_of(b"whatever it was").seal(true);
    stdout.bytes = 1_000_009;
    stdout.gaps = [(3, 1_000_000), (1_000_003, 1_000_009)].into_iter().collect();
    server.seal(&samples::seal_of([("stdout", stdout), ("stderr", Sealer::new().seal(true))]));
    pair.drive();
    let events = pair.client_events();
    let of_stdout: Vec<(&str, u64, u64)> = events
        .iter()
        .filter_map(|event| match event {
            Event::Data { stream: OUT, offset, bytes, .. } => {
                Some(("data", *offset, bytes.len() as u64))
            }
            Event::Gap { stream: OUT, from, to, .. } => Some(("gap", *from, *to)),
            Event::End { stream: OUT, .. } => Some(("end", 0, 0)),
            _ => None,
        })
        .collect();
    // Gaps side by side are told as one, and one at the end before the end.
    let expected = [
        ("data", 0, 3),
        ("gap", 3, 1_000_000),
        ("data", 1_000_000, 3),
        ("gap", 1_000_003, 1_000_009),
        ("end", 0, 0),
    ];
    assert_eq!(of_stdout, expected);
    assert!(matches!(events.last(), Some(Event::Seal { verdict: Verdict::Suffix, .. })));
}

/// W-6.10, W-6.6: credit that was not used is for the bytes behind the gap, and nothing is
/// acknowledged that did not reach its destination, whenever the application takes what.
#[test]
fn credit_and_acknowledgements_pass_a_gap_exactly() {
    for taken_at_once in [4_usize, 10, 16] {
        let (mut pair, channel) = opened(16);
        let mut sent = 0_u64;
        let mut produced = 0_u64;
        let mut unconsumed = 0_usize;
        let mut consumed_to = 0_u64;
        let mut pieces: Vec<(u64, u64)> = Vec::new();
        for round in 0..200_u64 {
            let mut server = pair.server.channel(channel).unwrap();
            if round % 3 == 1 {
                produced += 100;
                server.gap(OUT, produced);
            }
            let bytes = server.writable(OUT).min(5);
            server.write(OUT, 0, vec![7; bytes].into()).unwrap();
            if bytes > 0 {
                pieces.push((produced, produced + bytes as u64));
            }
            produced += bytes as u64;
            sent += bytes as u64;
            pair.drive();
            for event in pair.client_events() {
                if let Event::Data { bytes, .. } = event {
                    unconsumed += bytes.len();
                }
            }
            assert!(unconsumed <= 16, "a window is a bound");
            if unconsumed >= taken_at_once {
                let mut left = taken_at_once as u64;
                for (from, to) in &mut pieces {
                    let step = left.min(*to - *from);
                    *from += step;
                    left -= step;
                    if step > 0 {
                        consumed_to = *from;
                    }
                }
                unconsumed -= taken_at_once;
                pair.client.channel(channel).unwrap().consume(OUT, taken_at_once);
                pair.drive();
            }
            for event in pair.server_events() {
                if let Event::Acked { offset, .. } = event {
                    let next = pieces.iter().find(|(from, to)| from < to);
                    let missing = next.map_or(produced, |(from, _)| *from);
                    assert!(offset <= missing, "{offset} of {consumed_to}, {missing} is missing");
                }
            }
        }
        assert!(sent > 500, "it went on: {sent}");
    }
}

/// W-6.10: what is no gap breaks the channel, at its limits; the connection goes on.
#[test]
fn fault_86_a_gap_that_leads_nowhere_resets_the_channel() {
    let wrong: [(&[Vec<u8>], &str); 5] = [
        (&[data(1, 1, 0, b"abc"), gap(1, 3)], "a gap that leads nowhere"),
        (&[data(1, 1, 0, b"abc"), gap(1, 2)], "a gap that leads nowhere"),
        (&[gap(1, 4), gap(1, 5)], "a gap behind a gap"),
        (&[gap(1, 4), data(1, 1, 4, b""), gap(1, 5)], "a gap behind a gap"),
        (&[frame(Kind::End, 1, 1, &[0; 8]), gap(1, 9)], "a gap after the end of its stream"),
    ];
    for (frames, what) in wrong {
        let (mut lone, _) = Lone::client_with_job();
        lone.input(&frames.concat());
        let failed = lone.events().pop();
        assert!(
            matches!(&failed, Some(Event::Failed { message, .. }) if message == what),
            "{failed:?}"
        );
        lone.assert_open();
    }
    let (mut lone, _) = Lone::client_with_job();
    lone.input(&[gap(1, 4), data(1, 1, 4, b"x"), gap(1, 6), data(1, 1, 6, b"y")].concat());
    assert_eq!(lone.events().len(), 4);
}

/// W-6.1, W-2.6: only of a stream of the server, and eight bytes.
#[test]
fn fault_11_a_gap_of_stdin_or_of_no_form_ends_the_connection() {
    for bytes in [gap(0, 4), gap(3, 4), frame(Kind::Gap, 1, 1, &[0; 7])] {
        let (mut lone, _) = Lone::client_with_job();
        lone.input(&bytes);
        assert!(matches!(lone.assert_misbehaved(), Misbehaviour::Malformed { .. }));
    }
}

/// W-6.10: the largest numbers overflow nothing.
#[test]
fn fault_86_absurd_gaps_are_borne() {
    let (mut lone, channel) = Lone::client_with_job();
    lone.input(&[gap(1, 1 << 62), data(1, 1, 1 << 62, b"x")].concat());
    lone.channel(channel).consume(OUT, 1);
    assert_eq!(lone.events().len(), 2);
    // Behind the last offset there is no room for credit.
    lone.input(&[gap(1, u64::MAX), data(1, 1, u64::MAX, b"x")].concat());
    assert!(matches!(lone.events().last(), Some(Event::Failed { .. })));
    lone.assert_open();
}

/// W-6.8: of a stream that is not wanted no gap is told either, and it is no mismatch.
#[test]
fn a_stopped_stream_tells_no_gaps() {
    let (mut pair, channel) = opened(1_000);
    pair.client.channel(channel).unwrap().stop(OUT);
    let mut server = pair.server.channel(channel).unwrap();
    server.gap(OUT, 10);
    server.finish(OUT);
    server.exit(&samples::exited(0));
    server.seal(&samples::seal(&Sealer::new(), &Sealer::new()));
    pair.drive();
    let events = pair.client_events();
    assert!(!events.iter().any(|event| matches!(event, Event::Gap { .. })), "{events:?}");
    assert!(matches!(events.last(), Some(Event::Seal { verdict: Verdict::Whole, .. })));
}

/// W-6.11: an attachment that does not follow is ended where the job was, with what it is.
#[test]
fn a_look_ends_with_an_answer_behind_the_output() {
    use afar_proto::connection::ResumeStream;
    use afar_proto::message::{Answer, Attach, JobInfo, JobPage, JobState};
    let mut pair = Pair::new();
    let attach = Attach { follow: false, ..samples::attach("job", 0, 0) };
    let fresh = ResumeStream::at(0);
    let streams: BTreeMap<_, _> = Stream::OUTPUTS.map(|stream| (stream, fresh.clone())).into();
    let channel = pair.client.attach(&attach, streams).unwrap();
    pair.drive();
    let mut server = pair.server.channel(channel).unwrap();
    server.accept_attach(&samples::attached(0, 0, None));
    server.write(OUT, 0, Bytes::from_static(b"so far")).unwrap();
    let info = JobInfo::new(samples::job_id("job"), JobState::Running, b"sleep 9");
    let answer = Answer::Page(JobPage { jobs: vec![info], next: None });
    server.answer(&answer);
    pair.drive();
    let events = pair.client_events();
    assert_eq!(events.last(), Some(&Event::Answer { channel, answer: Box::new(answer) }));
    for stream in Stream::OUTPUTS {
        assert!(events.contains(&Event::End { channel, stream }));
    }
    assert_eq!(pair.client.channels_open() + pair.server.channels_open(), 0);
    assert_eq!(pair.up.in_flight(), 0, "there is nothing to confirm");
}
