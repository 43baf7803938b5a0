//! What the fuzzer does with each decoder, and what must hold for any bytes at all.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use afar_proto::auth::{AuthError, Initiator, InitiatorEvent, Responder, ResponderEvent};
use afar_proto::classic::limits::{REQUEST_BYTES_MAX, REST_TIMEOUT};
use afar_proto::classic::{
    Cut, Foreign, Piece, RequestError, RequestReader, ResponseError, ResponseReader,
    response_header,
};
use afar_proto::connection::{ResumeStream, Stream};
use afar_proto::frame::{Frame, FrameReader, Kind, Phase};
use afar_proto::limits::{AUTH_DEADLINE, REFUSAL_DELAY};
use afar_proto::message::{
    Answer, Attach, Attached, AuthOk, AuthQuery, AuthQueryResult, AuthRefused, AuthRequest,
    Goodbye, Hello, JobHello, JobInfo, JobPage, JobState, ListQuery, OpenSpec, Opened, Query,
    Refused, Reset, Resize, Signal,
};
use afar_proto::outcome::{ExitReport, RefusalReason, Seal};
use afar_proto::{Config, Connection, Event, Instant, Misbehaviour, Role, json};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::auth_pair::request;
use super::samples;

/// Splits off the bytes that say how the rest is treated.
fn controls<const N: usize>(data: &[u8]) -> ([u8; N], &[u8]) {
    data.split_first_chunk::<N>().map_or(([0; N], data), |(controls, rest)| (*controls, rest))
}

fn segment(control: u8) -> usize {
    1 + usize::from(control)
}

/// The frame reader: the same frames and the same error, however the bytes are split.
pub(crate) fn frames(data: &[u8]) {
    let ([phase, size], data) = controls(data);
    let phase = [Phase::Preauth, Phase::Grant, Phase::Jobs][usize::from(phase % 3)];
    let whole = read_frames(phase, [data].into_iter());
    assert_eq!(whole, read_frames(phase, data.chunks(segment(size))));
    if phase != Phase::Jobs {
        // Nothing is skipped in these phases, so that the frames are the bytes.
        let again: Vec<u8> = whole.0.iter().flat_map(|frame| frame.to_bytes().to_vec()).collect();
        assert!(data.starts_with(&again));
    }
}

fn read_frames<'a>(
    phase: Phase,
    segments: impl Iterator<Item = &'a [u8]>,
) -> (Vec<Frame>, Option<Misbehaviour>) {
    let mut reader = FrameReader::new(phase);
    let mut frames = Vec::new();
    for segment in segments {
        reader.push(segment);
        loop {
            match reader.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

/// Each message: what was read is written and read as the same.
pub(crate) fn messages(data: &[u8]) {
    let ([which], data) = controls(data);
    match which % 22 {
        0 => message::<Hello>(data),
        1 => message::<AuthQuery>(data),
        2 => message::<AuthQueryResult>(data),
        3 => message::<AuthRequest>(data),
        4 => message::<AuthOk>(data),
        5 => message::<AuthRefused>(data),
        6 => message::<Goodbye>(data),
        7 => message::<JobHello>(data),
        8 => message::<OpenSpec>(data),
        9 => message::<Opened>(data),
        10 => message::<Refused>(data),
        11 => message::<Signal>(data),
        12 => message::<Resize>(data),
        13 => message::<ExitReport>(data),
        14 => message::<Seal>(data),
        15 => message::<Reset>(data),
        16 => message::<Attach>(data),
        17 => message::<Attached>(data),
        18 => message::<Query>(data),
        19 => message::<Answer>(data),
        20 => message::<BTreeMap<String, json::ByteString>>(data),
        _ => message::<BTreeMap<String, serde_json::Value>>(data),
    }
}

fn message<T: DeserializeOwned + Serialize + PartialEq + Debug>(data: &[u8]) {
    if let Ok(message) = json::from_slice::<T>(data) {
        let again = json::from_slice::<T>(&json::to_vec(&message));
        assert_eq!(again, Ok(message));
    }
}

/// The listener's side of authentication.
pub(crate) fn responder(data: &[u8]) {
    let ([answers, size], data) = controls(data);
    let whole = respond(data, data.len().max(1), answers);
    assert_eq!(whole, respond(data, segment(size), answers));
}

/// What came of it: events, what was sent, and what is left for the supervisor.
type Responded = (Vec<ResponderEvent>, Vec<u8>, Option<Vec<u8>>);

fn respond(data: &[u8], segment: usize, answers: u8) -> Responded {
    let mut now = Instant::ZERO;
    let mut responder = Responder::new("server", now);
    for bytes in data.chunks(segment) {
        responder.handle_input(now, bytes);
    }
    let mut events = Vec::new();
    let mut answers = answers;
    while let Some(event) = responder.poll_event() {
        let yes = answers % 2 == 1;
        answers /= 2;
        match &event {
            ResponderEvent::Query(query) => {
                assert_eq!(data.first(), Some(&Kind::Hello.to_byte()));
                responder.answer_query(now, (yes && !query.keys.is_empty()).then_some(0));
            }
            ResponderEvent::Attempt(_) => {
                assert_eq!(data.first(), Some(&Kind::Hello.to_byte()));
                if yes {
                    events.push(event);
                    responder.accept(&AuthOk { delegate_lifetime_s: None });
                    let sent = responder.take_transmit();
                    let rest = responder.into_rest().to_vec();
                    assert!(data.ends_with(&rest));
                    return (events, sent, Some(rest));
                }
                responder.refuse(now);
            }
            _ => {}
        }
        events.push(event);
        now = now.after(REFUSAL_DELAY);
        responder.handle_timeout(now);
    }
    responder.handle_timeout(now.after(AUTH_DEADLINE));
    events.extend(std::iter::from_fn(|| responder.poll_event()));
    assert_eq!(responder.poll_timeout(), None, "it has come to an end");
    (events, responder.take_transmit(), None)
}

/// The client's side of authentication.
pub(crate) fn initiator(data: &[u8]) {
    let ([choices, size], data) = controls(data);
    let mut initiator = Initiator::new("client", Instant::ZERO);
    let mut choices = choices;
    let mut fed = Vec::new();
    for bytes in data.chunks(segment(size)) {
        fed.extend_from_slice(bytes);
        initiator.handle_input(bytes);
        while let Some(event) = initiator.poll_event() {
            choices = choices.rotate_right(1);
            match event {
                InitiatorEvent::ServerHello(_) | InitiatorEvent::QueryResult(_) => {
                    if choices % 2 == 1 {
                        initiator.query("user", [vec![1; 51], vec![2; 51]]);
                    } else {
                        initiator.authenticate(&Initiator::request_bytes(&request("user")), b"s");
                    }
                }
                InitiatorEvent::Accepted(_) => {
                    assert!(fed.ends_with(&initiator.into_rest()));
                    return;
                }
                InitiatorEvent::Refused(_) | InitiatorEvent::Failed(_) => return,
            }
        }
    }
    initiator.handle_timeout(Instant::ZERO.after(AUTH_DEADLINE));
    assert_eq!(initiator.poll_event(), Some(InitiatorEvent::Failed(AuthError::TimedOut)));
}

/// A server against any client.
pub(crate) fn server_input(data: &[u8]) {
    input(Role::Server, data);
}

/// A client, with channels of each kind asked for, against any server.
pub(crate) fn client_input(data: &[u8]) {
    input(Role::Client, data);
}

fn input(role: Role, data: &[u8]) {
    let ([control, size], data) = controls(data);
    let segment = segment(size);
    let passive = |segment: usize| {
        let mut connection = connection(role, control);
        data.chunks(segment).for_each(|bytes| connection.handle_input(Instant::ZERO, bytes));
        std::iter::from_fn(|| connection.poll_event()).collect::<Vec<_>>()
    };
    assert_eq!(passive(data.len().max(1)), passive(segment), "any split gives the same events");
    active(role, control, data, segment);
}

fn connection(role: Role, control: u8) -> Connection {
    let window_bytes = 1 << (control % 20);
    let config = Config { window_bytes, ..Config::default() };
    let mut connection = Connection::new(role, config, Instant::ZERO);
    if control & 0x80 == 0 {
        let hello = Frame::control(Kind::JobHello, json::to_vec(&samples::job_hello()));
        connection.handle_input(Instant::ZERO, &hello.to_bytes());
    }
    if role == Role::Client {
        connection.open(&samples::spec("job-1")).expect("a channel is free");
        connection.open(&samples::spec_with_stdin("job-1")).expect("a channel is free");
        let streams = Stream::OUTPUTS.map(|stream| (stream, ResumeStream::at(5)));
        let attach = samples::attach("job-1", 5, 5);
        connection.attach(&attach, streams.into()).expect("a channel is free");
        let look = Attach { follow: false, prefix: true, ..samples::attach("jo", 0, 0) };
        connection.attach(&look, BTreeMap::new()).expect("a channel is free");
        let query = Query::List(ListQuery::default());
        connection.query(&query).expect("a channel is free");
        let detached = OpenSpec { detach: true, ..samples::spec("job-1") };
        connection.open(&detached).expect("a channel is free");
    }
    connection
}

/// The same with an application that answers, reads and writes.
fn active(role: Role, control: u8, data: &[u8], segment: usize) {
    let mut connection = connection(role, control);
    let mut sent = FrameReader::new(Phase::Jobs);
    let mut closed = false;
    let mut now = Instant::ZERO;
    for bytes in data.chunks(segment) {
        now = now.after(Duration::from_millis(1));
        connection.handle_input(now, bytes);
        while let Some(event) = connection.poll_event() {
            assert!(!closed, "an event after the last: {event:?}");
            closed = matches!(event, Event::Closed(_));
            react(&mut connection, event);
        }
        let mut out = std::collections::VecDeque::new();
        connection.poll_transmit(&mut out, usize::MAX);
        out.iter().for_each(|bytes| sent.push(bytes));
        while sent.next_frame().expect("our own frames are in order").is_some() {}
        assert_eq!(sent.buffered(), 0, "only whole frames leave");
    }
    connection.handle_eof(now);
    while let Some(event) = connection.poll_event() {
        closed |= matches!(event, Event::Closed(_));
    }
    assert!(closed && connection.is_closed() && connection.poll_timeout().is_none());
    assert!(connection.channels_open() == 0);
}

fn react(connection: &mut Connection, event: Event) {
    match event {
        Event::Open { channel, spec } => {
            let Some(mut handle) = connection.channel(channel) else { return };
            if spec.job.as_str().len() % 4 == 3 {
                return handle.refuse(&samples::refused(RefusalReason::Denied));
            }
            handle.accept(&samples::opened("job"));
            if spec.detach {
                assert!(connection.channel(channel).is_none(), "nothing follows the answer");
                return;
            }
            let writable = handle.writable(Stream::Stdout).min(10_000);
            let written = handle.write(Stream::Stdout, 1, vec![1; writable].into());
            assert_eq!(written, Ok(()), "what is writable is taken");
        }
        Event::Attach { channel, attach } => {
            let Some(mut handle) = connection.channel(channel) else { return };
            let offset = |name: &str| attach.streams.get(name).map_or(0, |offset| offset.0);
            let from = samples::attached_to(
                attach.job.as_str(),
                offset("stdout"),
                offset("stderr"),
                Some(3),
            );
            handle.accept_attach(&from);
        }
        Event::Data { channel, stream, bytes, .. } => {
            let Some(mut handle) = connection.channel(channel) else { return };
            handle.consume(stream, bytes.len());
            if bytes.first() == Some(&b's') {
                handle.stop(stream);
            }
        }
        Event::Writable { channel, stream } => {
            let Some(mut handle) = connection.channel(channel) else { return };
            let writable = handle.writable(stream).min(10_000);
            assert!(writable > 0, "what is said to be writable is");
            let written = handle.write(stream, 1, vec![2; writable].into());
            assert_eq!(written, Ok(()), "what is writable is taken");
        }
        Event::Opened { channel, .. } | Event::Attached { channel, .. } => {
            let Some(mut handle) = connection.channel(channel) else { return };
            handle.writable(Stream::Stdin);
        }
        Event::Signal { channel, .. } => {
            let Some(mut handle) = connection.channel(channel) else { return };
            handle.exit(&samples::exited(0));
        }
        Event::End { channel, .. } => {
            let Some(handle) = connection.channel(channel) else { return };
            let empty = samples::sealer_of(b"");
            handle.seal(&samples::seal(&empty, &empty));
        }
        Event::Query { channel, .. } => {
            let Some(handle) = connection.channel(channel) else { return };
            handle.answer(&page());
        }
        Event::Resize { channel, resize } => {
            let Some(mut handle) = connection.channel(channel) else { return };
            handle.gap(Stream::Stdout, u64::from(resize.columns));
            if resize.rows == 0 {
                handle.answer(&page());
            }
        }
        Event::Abandoned { channel } | Event::Detached { channel } => connection.release(channel),
        _ => {}
    }
}

fn page() -> Answer {
    let info = JobInfo::new(samples::job_id("job-1"), JobState::Running, b"true");
    Answer::Page(JobPage { jobs: vec![info], next: None })
}

/// Answers of the classic protocol: the same pieces, the same error or the same cut, however the
/// bytes are split; and a header that is written is read.
pub(crate) fn classic_response(data: &[u8]) {
    let ([size], data) = controls(data);
    let whole = read_responses(data.chunks(data.len().max(1)));
    assert_eq!(whole, read_responses(data.chunks(segment(size))));
    for (data_size, output) in &whole.answers {
        assert!(u64::try_from(output.len()).is_ok_and(|length| length <= *data_size));
        let again = read_responses([&response_header(*data_size)[..], output].into_iter());
        assert_eq!(again.answers, [(*data_size, output.clone())]);
    }
}

#[derive(Debug, PartialEq)]
struct Responses {
    answers: Vec<(u64, Vec<u8>)>,
    ended: Result<Cut, ResponseError>,
}

fn read_responses<'a>(segments: impl Iterator<Item = &'a [u8]>) -> Responses {
    let mut reader = ResponseReader::new();
    let mut answers: Vec<(u64, Vec<u8>)> = Vec::new();
    for mut segment in segments {
        loop {
            match reader.read(&mut segment) {
                Ok(Some(Piece::Header { data_size })) => answers.push((data_size, Vec::new())),
                Ok(Some(Piece::Data(data))) => {
                    let (_, output) = answers.last_mut().expect("a header comes before data");
                    output.extend_from_slice(data);
                }
                Ok(Some(Piece::End)) => {
                    let (size, output) = answers.last().expect("a header comes before the end");
                    assert_eq!(u64::try_from(output.len()), Ok(*size));
                }
                Ok(None) => break,
                Err(error) => return Responses { answers, ended: Err(error) },
            }
        }
        assert!(segment.is_empty());
    }
    Responses { answers, ended: Ok(reader.handle_eof()) }
}

/// Commands of the classic protocol: nothing is lost or invented but what was refused, and nothing
/// that is taken as a command begins another protocol.
pub(crate) fn classic_request(data: &[u8]) {
    let ([size, pauses], data) = controls(data);
    let mut now = Instant::ZERO;
    let mut reader = RequestReader::new();
    let mut taken = Vec::new();
    for (index, segment) in data.chunks(segment(size)).enumerate() {
        reader.handle_input(segment);
        if usize::from(pauses) & (1 << (index % 8)) != 0 {
            reader.handle_drained(now);
            now = now.after(REST_TIMEOUT);
            reader.handle_timeout(now);
        }
        if !take_requests(&mut reader, data, &mut taken) {
            return;
        }
    }
    reader.handle_eof();
    if take_requests(&mut reader, data, &mut taken) {
        assert_eq!(taken, data);
    }
}

/// Whether the connection may go on.
fn take_requests(reader: &mut RequestReader, data: &[u8], taken: &mut Vec<u8>) -> bool {
    while let Some(request) = reader.poll_request() {
        match request {
            Ok(request) => {
                assert!(!request.is_empty() && request.len() <= REQUEST_BYTES_MAX);
                assert_eq!(Foreign::of(&request), None);
                taken.extend_from_slice(&request);
                assert!(data.starts_with(taken));
            }
            Err(RequestError::TooLong) => {
                assert!(data.len() > REQUEST_BYTES_MAX);
                return false;
            }
            Err(RequestError::Foreign { .. }) => return false,
        }
    }
    true
}
