//! The sticky-packet problem: however the bytes are split or merged, the events are the same.

use std::collections::BTreeMap;

use afar_proto::connection::{ResumeStream, Stream};
use afar_proto::message::{
    Answer, Attach, GoodbyeCode, JobInfo, JobPage, JobState, ListQuery, OpenSpec, Query, Resize,
};
use afar_proto::outcome::RefusalReason;
use afar_proto::{ChannelId, Config, Connection, Event, Instant, Role};
use bytes::Bytes;

use crate::rig::pair::Pair;
use crate::rig::samples;

/// The bytes of a whole conversation, both ways.
pub(crate) struct Conversation {
    pub(crate) up: Vec<u8>,
    pub(crate) down: Vec<u8>,
    /// Where in `up` the client waited for the server's answers: no link merges across that.
    pub(crate) answered_at: usize,
}

/// Jobs of all kinds, side by side: one with everything, one refused, one resumed, one broken off, one
/// that exists already and has a gap, one detached, one looked at, one that is left, and a question.
pub(crate) fn conversation() -> Conversation {
    let mut pair = Pair::silent(Config::default(), Config::default());
    let ids = open_all(&mut pair.client);
    pair.drive();
    let [job, _, resumed, broken, ..] = ids;
    let answered_at = pair.up.record.len();
    answer_all(&mut pair.server, ids);
    pair.drive();

    let mut client = pair.client.channel(job).unwrap();
    client.write(Stream::Stdin, 0, Bytes::from_static(b"in")).unwrap();
    client.finish(Stream::Stdin);
    client.signal("TERM");
    client.resize(Resize { columns: 80, rows: 24, ..Resize::default() });
    client.stop(Stream::Stderr);
    pair.client.channel(resumed).unwrap().close();
    pair.client.channel(broken).unwrap().reset("enough");
    pair.client.channel(ids[7]).unwrap().detach();
    pair.drive();

    let mut server = pair.server.channel(job).unwrap();
    server.exit(&samples::exited(0));
    server.write(Stream::Stdout, 30, Bytes::from_static(b"last")).unwrap();
    let stdout = samples::sealer_of(b"out\nlast");
    let stderr = samples::sealer_of(b"\xff\x00err");
    server.seal(&samples::seal(&stdout, &stderr));
    pair.drive();
    pair.server.close(GoodbyeCode::Done, "");
    pair.client.close(GoodbyeCode::Done, "");
    pair.drive();
    Conversation { up: pair.up.record, down: pair.down.record, answered_at }
}

fn answer_all(server: &mut Connection, ids: [ChannelId; 9]) {
    let [job, refused, resumed, broken, exists, detached, look, left, question] = ids;
    let mut channel = server.channel(job).unwrap();
    channel.accept(&samples::opened("one"));
    channel.write(Stream::Stdout, 10, Bytes::from_static(b"out\n")).unwrap();
    channel.write(Stream::Stderr, 20, Bytes::from_static(b"\xff\x00err")).unwrap();
    server.channel(refused).unwrap().refuse(&samples::refused(RefusalReason::NotFound));
    let mut channel = server.channel(resumed).unwrap();
    channel.accept_attach(&samples::attached_to("three", 5, 9, Some(2)));
    channel.write(Stream::Stdout, 0, Bytes::from_static(b"more")).unwrap();
    server.channel(broken).unwrap().accept(&samples::opened("four"));
    let mut channel = server.channel(exists).unwrap();
    channel.accept_attach(&samples::attached_to("five", 0, 0, None));
    channel.write(Stream::Stdout, 0, Bytes::from_static(b"before")).unwrap();
    channel.gap(Stream::Stdout, 1_000);
    channel.write(Stream::Stdout, 0, Bytes::from_static(b"behind")).unwrap();
    server.channel(detached).unwrap().accept(&samples::opened("six"));
    let mut channel = server.channel(look).unwrap();
    channel.accept_attach(&samples::attached_to("seven", 0, 0, None));
    let info = JobInfo::new(samples::job_id("seven"), JobState::Blocked, b"yes");
    let page = Answer::Page(JobPage { jobs: vec![info], next: Some("on".into()) });
    channel.write(Stream::Stderr, 0, Bytes::from_static(b"so far")).unwrap();
    channel.answer(&page);
    server.channel(left).unwrap().accept(&samples::opened("eight"));
    server.channel(question).unwrap().answer(&page);
}

fn open_all(client: &mut Connection) -> [ChannelId; 9] {
    let one = client.open(&samples::spec_with_stdin("one")).unwrap();
    let two = client.open(&samples::spec("two")).unwrap();
    let resume = |offset| ResumeStream { sealer: None, ..ResumeStream::at(offset) };
    let streams: BTreeMap<_, _> = [(Stream::Stdout, resume(5)), (Stream::Stderr, resume(7))].into();
    let three = client.attach(&samples::attach("three", 5, 7), streams).unwrap();
    let four = client.open(&samples::spec("four")).unwrap();
    let five = client.open(&samples::spec("five")).unwrap();
    let detached = OpenSpec { detach: true, ..samples::spec("six") };
    let six = client.open(&detached).unwrap();
    let look = Attach { follow: false, prefix: true, ..samples::attach("sev", 0, 0) };
    let fresh = ResumeStream::at(0);
    let streams = Stream::OUTPUTS.map(|stream| (stream, fresh.clone()));
    let seven = client.attach(&look, streams.into()).unwrap();
    let eight = client.open(&samples::spec("eight")).unwrap();
    let nine = client.query(&Query::List(ListQuery::default())).unwrap();
    [one, two, three, four, five, six, seven, eight, nine]
}

/// The same end of the conversation, before it has heard anything.
pub(crate) fn fresh_end(role: Role) -> Connection {
    let mut connection = Connection::new(role, Config::default(), Instant::ZERO);
    if role == Role::Client {
        open_all(&mut connection);
    }
    connection
}

/// What an end makes of these segments. A server answers where the recorded one did.
fn replay<'a>(
    role: Role,
    answered_at: usize,
    segments: impl IntoIterator<Item = &'a [u8]>,
) -> Vec<Event> {
    let mut connection = fresh_end(role);
    let mut events = Vec::new();
    let mut left = answered_at;
    for segment in segments {
        let (before, after) = segment.split_at(segment.len().min(left));
        connection.handle_input(Instant::ZERO, before);
        events.extend(std::iter::from_fn(|| connection.poll_event()));
        left -= before.len();
        if left == 0 && !before.is_empty() {
            let ids: Vec<_> = events.iter().filter_map(opened_channel).collect();
            answer_all(&mut connection, ids.try_into().expect("all were asked for"));
        }
        connection.handle_input(Instant::ZERO, after);
        events.extend(std::iter::from_fn(|| connection.poll_event()));
    }
    events
}

fn opened_channel(event: &Event) -> Option<ChannelId> {
    match event {
        Event::Open { channel, .. }
        | Event::Attach { channel, .. }
        | Event::Query { channel, .. } => Some(*channel),
        _ => None,
    }
}

/// W-1.3: at every split, in one-byte segments, in segments of every small size, all in one.
#[test]
fn fault_32_any_split_of_the_bytes_gives_the_same_events() {
    let conversation = conversation();
    let at_server = conversation.answered_at;
    let ends = [(Role::Client, 0, conversation.down), (Role::Server, at_server, conversation.up)];
    for (role, answered, bytes) in ends {
        let whole = replay(role, answered, [&bytes[..]]);
        assert!(whole.len() >= 10, "{whole:?}");
        assert!(matches!(whole.last(), Some(Event::Closed(_))), "{whole:?}");
        for at in 0..=bytes.len() {
            let (before, after) = bytes.split_at(at);
            assert_eq!(replay(role, answered, [before, after]), whole, "split at {at}");
        }
        for size in 1..40 {
            assert_eq!(replay(role, answered, bytes.chunks(size)), whole, "segments of {size}");
        }
    }
}

/// W-1.3: a live pair over links that pass single bytes.
#[test]
fn fault_32_a_pair_over_single_bytes_ends_the_same() {
    let run = |segment: usize| {
        let mut pair = Pair::new();
        pair.up.segment = segment;
        pair.down.segment = segment;
        let channel = pair.open(&samples::spec_with_stdin("cat"));
        let mut sealer = afar_proto::seal::Sealer::new();
        for round in 0..20_u8 {
            let bytes = Bytes::from(vec![round; 1 + usize::from(round) * 37]);
            pair.client.channel(channel).unwrap().write(Stream::Stdin, 0, bytes).unwrap();
            pair.drive();
            for event in pair.server_events() {
                let Event::Data { bytes, .. } = event else { panic!("{event:?}") };
                sealer.update(&bytes);
                let mut server = pair.server.channel(channel).unwrap();
                server.consume(Stream::Stdin, bytes.len());
                server.write(Stream::Stdout, 0, bytes).unwrap();
            }
            pair.drive();
        }
        let mut server = pair.server.channel(channel).unwrap();
        server.exit(&samples::exited(0));
        server.seal(&samples::seal(&sealer, &afar_proto::seal::Sealer::new()));
        pair.drive();
        pair.client_events()
    };
    let whole = run(usize::MAX);
    assert!(matches!(whole.last(), Some(Event::Seal { .. })));
    assert_eq!(run(1), whole);
    assert_eq!(run(3), whole);
}

/// W-1.4: there is no limit on the whole, and nothing of it is known or held beforehand.
#[test]
fn output_has_no_total() {
    let mut pair = Pair::new();
    let channel = pair.open(&samples::spec("yes"));
    let mut sealer = afar_proto::seal::Sealer::new();
    let piece = Bytes::from(vec![b'y'; 1 << 16]);
    for round in 0..400_u64 {
        sealer.update(&piece);
        let mut server = pair.server.channel(channel).unwrap();
        server.write(Stream::Stdout, round, piece.clone()).unwrap();
        pair.drive();
        pair.down.record.clear();
        for event in pair.client_events() {
            let Event::Data { stream, bytes, .. } = event else { panic!("{event:?}") };
            pair.client.channel(channel).unwrap().consume(stream, bytes.len());
        }
    }
    assert!(sealer.bytes() > 10 * u64::from(afar_proto::limits::WINDOW_BYTES_INITIAL));
    let mut server = pair.server.channel(channel).unwrap();
    server.exit(&samples::exited(0));
    server.seal(&samples::seal(&sealer, &afar_proto::seal::Sealer::new()));
    pair.drive();
    let verdict = afar_proto::connection::Verdict::Whole;
    let last = pair.client_events().pop();
    assert!(matches!(last, Some(Event::Seal { verdict: of, .. }) if of == verdict), "{last:?}");
}
