//! The golden vectors of the specification: if a byte of them changes, this is another protocol.

use std::fmt::Write as _;

use afar_proto::connection::{ResumeStream, Stream};
use afar_proto::frame::{Frame, FrameReader, Kind, Phase};
use afar_proto::message::{
    Answer, Attach, AttachMode, AttachStart, AuthOk, AuthQuery, AuthQueryResult, AuthRefused,
    AuthRequest, Command, Delegate, Goodbye, GoodbyeCode, Hello, Incarnation, JobHello, JobInfo,
    JobPage, JobQuery, JobState, KillQuery, ListQuery, OnDisconnect, OpenSpec, Overflow, Query,
    Reset, Resize, Retry, SessionName, SessionRef, SessionScope, Signal, StreamInfo, Terminal,
    Transcript,
};
use afar_proto::outcome::{RefusalReason, Seal, SealDetail, StreamSeal};
use afar_proto::{Config, json};
use bytes::Bytes;
use serde::Serialize;

use crate::rig::pair::Pair;
use crate::rig::samples;

/// Bytes in hex, a line for each header and then sixteen bytes a line.
fn to_hex(bytes: &[u8], phase: Option<Phase>) -> String {
    let mut text = String::new();
    let mut line = |bytes: &[u8]| {
        let words: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(text, "{}", words.join(" ")).expect("a string takes all");
    };
    let Some(phase) = phase else {
        bytes.chunks(16).for_each(line);
        return text;
    };
    let mut reader = FrameReader::new(phase);
    reader.push(bytes);
    while let Some(frame) = reader.next_frame().expect("a vector is frames") {
        line(&frame.header().to_bytes());
        frame.payload.chunks(16).for_each(&mut line);
    }
    assert_eq!(reader.buffered(), 0);
    text
}

fn from_hex(text: &str) -> Vec<u8> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .flat_map(str::split_whitespace)
        .map(|byte| u8::from_str_radix(byte, 16).expect("two digits"))
        .collect()
}

#[track_caller]
fn check(name: &str, file: &str, bytes: &[u8], phase: Option<Phase>) {
    let expected = to_hex(bytes, phase);
    assert!(
        from_hex(file) == bytes,
        "docs/spec/vectors/{name}.hex holds other bytes than these:\n{expected}"
    );
}

macro_rules! vector {
    ($name:literal, $bytes:expr, $phase:expr) => {
        check(
            $name,
            include_str!(concat!("../../../../docs/spec/vectors/", $name, ".hex")),
            &$bytes,
            $phase,
        );
    };
}

fn control(kind: Kind, message: &impl Serialize) -> Vec<u8> {
    of_channel(kind, 0, 0, &json::to_vec(message))
}

fn message(kind: Kind, message: &impl Serialize) -> Vec<u8> {
    of_channel(kind, 0, 1, &json::to_vec(message))
}

fn of_channel(kind: Kind, flags: u8, channel: u32, payload: &[u8]) -> Vec<u8> {
    let payload = Bytes::copy_from_slice(payload);
    Frame { kind, flags, channel, payload }.to_bytes().to_vec()
}

fn client_hello() -> Hello {
    Hello {
        version: 1,
        software: "afar/0.1.0".into(),
        features: Vec::new(),
        host_certificate: None,
    }
}

fn server_hello() -> Hello {
    Hello { features: vec!["example".into()], ..client_hello() }
}

fn ed25519_blob(byte: u8) -> Vec<u8> {
    [&b"\0\0\0\x0bssh-ed25519\0\0\0\x20"[..], &[byte; 32]].concat()
}

fn request() -> AuthRequest {
    AuthRequest {
        user: "alice".into(),
        algorithm: "ssh-ed25519".into(),
        public_key: ed25519_blob(1),
        delegate: Some(Delegate { public_key: ed25519_blob(2), lifetime_s: 3_600 }),
    }
}

/// W-4.1 to W-4.9
#[test]
fn the_vectors_of_authentication() {
    let preauth = Some(Phase::Preauth);
    vector!("hello-client", control(Kind::Hello, &client_hello()), preauth);
    vector!("hello-server", control(Kind::Hello, &server_hello()), preauth);
    let query = AuthQuery::new("alice", [ed25519_blob(1), ed25519_blob(2)]);
    vector!("auth-query", control(Kind::AuthQuery, &query), preauth);
    let result = AuthQueryResult { accepted: Some(1) };
    vector!("auth-query-result", control(Kind::AuthQueryResult, &result), preauth);
    let none = AuthQueryResult { accepted: None };
    vector!("auth-query-result-none", control(Kind::AuthQueryResult, &none), preauth);

    let signed = json::to_vec(&request());
    let length = u32::try_from(signed.len()).unwrap();
    let payload = [&length.to_be_bytes()[..], &signed, b"SSHSIG goes here"].concat();
    vector!("auth", of_channel(Kind::Auth, 0, 0, &payload), preauth);
    let transcript = Transcript {
        exporter: &[0xee; 32],
        client_hello: &json::to_vec(&client_hello()),
        server_hello: &json::to_vec(&server_hello()),
        host_key: &ed25519_blob(3),
        request: &signed,
    };
    vector!("auth-transcript", transcript.to_bytes(), None);

    let ok = AuthOk { delegate_lifetime_s: Some(3_600) };
    vector!("auth-ok", control(Kind::AuthOk, &ok), preauth);
    let refused = AuthRefused { message: "permission denied".into() };
    vector!("auth-refused", control(Kind::AuthRefused, &refused), preauth);
    let goodbye = Goodbye { code: GoodbyeCode::Protocol, message: "unknown kind".into() };
    vector!("goodbye", control(Kind::Goodbye, &goodbye), preauth);
}

/// W-5.1 to W-5.9, W-7.1 to W-7.3, W-7.6
#[test]
fn the_vectors_of_job_messages() {
    let jobs = Some(Phase::Jobs);
    let hello = JobHello {
        version: 1,
        software: "afar/0.1.0".into(),
        features: Vec::new(),
        incarnation: None,
    };
    vector!("job-hello", control(Kind::JobHello, &hello), jobs);
    let spec = OpenSpec {
        command: Command::Argv(vec!["printf".into(), "%s|".into(), vec![0xff, b'a'].into()]),
        cwd: Some("/tmp".into()),
        env: vec![("LANG".into(), "C".into())],
        stdin: true,
        timeout_ms: Some(30_000),
        kill_after_ms: Some(5_000),
        ..samples::spec("job-1")
    };
    vector!("open-argv", message(Kind::Open, &spec), jobs);
    let command = Command::Script("echo out; exit 3".into());
    let script = OpenSpec { command, merge: true, ..samples::spec("job-2") };
    let body = json::to_vec(&script);
    let (head, tail) = body.split_at(20);
    let chunks = [of_channel(Kind::Open, 1, 3, head), of_channel(Kind::Open, 0, 3, tail)].concat();
    vector!("open-script-in-chunks", chunks, jobs);
    let session =
        SessionRef { name: SessionName::new("build").unwrap(), scope: SessionScope::User };
    let command = Command::Script("cd /tmp".into());
    let in_session = OpenSpec { command, session: Some(session), ..samples::spec("job-3") };
    vector!("open-session", message(Kind::Open, &in_session), jobs);
    let terminal = Terminal {
        name: "xterm".into(),
        size: Resize { columns: 80, rows: 24, ..Resize::default() },
        modes: [("erase".to_owned(), 127), ("iutf8".to_owned(), 1)].into(),
    };
    let terminal = Some(Box::new(terminal));
    let shell =
        OpenSpec { command: Command::Shell {}, terminal, stdin: true, ..samples::spec("job-4") };
    vector!("open-terminal", message(Kind::Open, &shell), jobs);
    vector!("opened", message(Kind::Opened, &samples::opened("job-1")), jobs);
    let refused = samples::refused(RefusalReason::NotFound);
    vector!("refused", message(Kind::Refused, &refused), jobs);
    vector!("signal", message(Kind::Signal, &Signal { name: "TERM".into() }), jobs);
    let size = Resize { columns: 80, rows: 24, ..Resize::default() };
    vector!("resize", message(Kind::Resize, &size), jobs);
    vector!("exit", message(Kind::Exit, &samples::exited(3)), jobs);
    let stderr =
        StreamSeal { gaps: [(3, 5)].into_iter().collect(), ..samples::sealer_of(b"").seal(false) };
    let seal =
        samples::seal_of([("stdout", samples::sealer_of(b"abc").seal(true)), ("stderr", stderr)]);
    vector!("seal", message(Kind::Seal, &seal), jobs);
    let restarted = Seal { session_restarted: true, ..seal };
    vector!("seal-of-session", message(Kind::Seal, &restarted), jobs);
    vector!(
        "reset",
        message(Kind::Reset, &Reset { message: "data beyond the window".into() }),
        jobs
    );
    vector!("attach", message(Kind::Attach, &samples::attach("job-1", 12, 0)), jobs);
    vector!("attached", message(Kind::Attached, &samples::attached(12, 4, Some(2))), jobs);
}

/// W-5.1, W-5.4, W-5.10, W-5.11, W-6.7, W-7.3: what outlives a connection.
#[test]
fn the_vectors_of_durable_jobs() {
    let jobs = Some(Phase::Jobs);
    let incarnation = Incarnation::new("4f0c.7").unwrap();
    let hello = JobHello { incarnation: Some(incarnation.clone()), ..samples::job_hello() };
    vector!("job-hello-server", control(Kind::JobHello, &hello), jobs);
    let spec = OpenSpec {
        on_disconnect: Some(OnDisconnect::Keep),
        detach: true,
        keep_s: Some(86_400),
        overflow: Overflow::Drop,
        memory_bytes: Some(1 << 29),
        cpu_milli: Some(1_500),
        pids_max: Some(64),
        retry: Some(Retry { age_ms: 1_200, incarnation: Some(incarnation) }),
        ..samples::spec("job-4")
    };
    vector!("open-detached", message(Kind::Open, &spec), jobs);
    let digest = OpenSpec { cwd: Some("/tmp".into()), ..samples::spec("job-4") }.digest();
    vector!("open-digest", digest, None);
    let watch = Attach {
        prefix: true,
        start: Some(AttachStart::TailLines(10)),
        mode: AttachMode::Watch,
        follow: false,
        ..samples::attach("job", 0, 0)
    };
    vector!("attach-watch", message(Kind::Attach, &watch), jobs);
    let start = Some(AttachStart::SinceUs(1_795_341_600_000_000));
    let since = Attach { start, ..samples::attach("job-4", 0, 0) };
    vector!("attach-since", message(Kind::Attach, &since), jobs);
    let list = ListQuery { states: Some(vec![JobState::Running]), ..ListQuery::default() };
    vector!("query-list", message(Kind::Query, &Query::List(list)), jobs);
    let job = samples::job_id("job");
    let kill = KillQuery { job: job.clone(), prefix: true, signal: Some("INT".into()) };
    vector!("query-kill", message(Kind::Query, &Query::Kill(kill)), jobs);
    let remove = JobQuery { job, prefix: false };
    vector!("query-remove", message(Kind::Query, &Query::Remove(remove)), jobs);
    let mut info = JobInfo::new(samples::job_id("job-4"), JobState::Ended, b"echo 'a b' ''");
    info.set_cwd(b"/tmp");
    info.started_at_us = Some(1_795_341_600_000_000);
    info.ended_at_us = Some(1_795_341_600_004_200);
    info.end = Some(afar_proto::outcome::End::Exited { code: 0 });
    info.receipt = Some(samples::receipt());
    let gaps = [(0, 4_096)].into_iter().collect();
    let stdout = StreamInfo { bytes: 9_000, kept_from: 4_096, gaps };
    info.streams = [("stdout".to_owned(), stdout)].into();
    info.detached = true;
    info.keep_until_us = Some(1_795_428_000_004_200);
    let page = JobPage { jobs: vec![info], next: Some("b2".into()) };
    vector!("answer-page", message(Kind::Answer, &Answer::Page(page)), jobs);
    let done = Answer::Done { job: samples::job_id("job-4") };
    vector!("answer-done", message(Kind::Answer, &done), jobs);
    let empty = samples::sealer_of(b"");
    let detail = Some(SealDetail::OutputQuota);
    let killed = Seal { detail, ..samples::seal(&empty, &empty) };
    vector!("seal-of-quota", message(Kind::Seal, &killed), jobs);
    let restart = Goodbye { code: GoodbyeCode::Restart, message: String::new() };
    vector!("goodbye-restart", control(Kind::Goodbye, &restart), jobs);
}

/// W-6.1 to W-6.8, W-6.10, W-8.2: the binary ones, which are exact.
#[test]
fn the_vectors_of_binary_frames() {
    let jobs = Some(Phase::Jobs);
    let prefix = [0x0102_0304_0506_0708_u64.to_be_bytes(), 1_500_000_u64.to_be_bytes()].concat();
    let stdout = of_channel(Kind::Data, 1, 1, &[&prefix[..], b"hello\n"].concat());
    vector!("data-stdout", stdout, jobs);
    let stdin = of_channel(Kind::Data, 0, 1, &[&[0; 16][..], b"in"].concat());
    vector!("data-stdin", stdin, jobs);
    vector!("end-stderr", of_channel(Kind::End, 2, 1, &6_u64.to_be_bytes()), jobs);
    vector!("window-stdout", of_channel(Kind::Window, 1, 1, &2_097_152_u32.to_be_bytes()), jobs);
    vector!("ack-stdout", of_channel(Kind::Ack, 1, 1, &524_288_u64.to_be_bytes()), jobs);
    vector!("stop-stdout", of_channel(Kind::Stop, 1, 1, b""), jobs);
    vector!("close", of_channel(Kind::Close, 0, 1, b""), jobs);
    vector!("detach", of_channel(Kind::Detach, 0, 1, b""), jobs);
    vector!("gap-stdout", of_channel(Kind::Gap, 1, 1, &1_048_576_u64.to_be_bytes()), jobs);
    vector!("ping", of_channel(Kind::Ping, 0, 0, b"\0\0\0\0\x01\x02\x03\x04"), jobs);
    vector!("pong", of_channel(Kind::Pong, 0, 0, b"\0\0\0\0\x01\x02\x03\x04"), jobs);
}

/// The conversation of the specification's worked example: `cat` with one line.
#[test]
fn the_vectors_of_the_worked_example() {
    let config =
        || Config { software: "afar/0.1.0".into(), window_bytes: 65_536, ..Config::default() };
    let mut pair = Pair::silent(config(), config());
    let spec =
        OpenSpec { command: Command::Argv(vec!["cat".into()]), ..samples::spec_with_stdin("demo") };
    let channel = pair.client.open(&spec).unwrap();
    pair.drive();
    pair.server.channel(channel).unwrap().accept(&samples::opened("demo"));
    pair.drive();
    let mut client = pair.client.channel(channel).unwrap();
    client.write(Stream::Stdin, 0, Bytes::from_static(b"hi\n")).unwrap();
    client.finish(Stream::Stdin);
    pair.drive();
    let mut server = pair.server.channel(channel).unwrap();
    server.write(Stream::Stdout, 1_200, Bytes::from_static(b"hi\n")).unwrap();
    server.finish(Stream::Stdout);
    server.finish(Stream::Stderr);
    pair.drive();
    pair.server.channel(channel).unwrap().exit(&samples::exited(0));
    pair.drive();
    let seal = samples::seal(&samples::sealer_of(b"hi\n"), &samples::sealer_of(b""));
    pair.server.channel(channel).unwrap().seal(&seal);
    pair.drive();
    pair.client.close(GoodbyeCode::Done, "");
    pair.drive();
    vector!("example-client-to-server", pair.up.record, Some(Phase::Jobs));
    vector!("example-server-to-client", pair.down.record, Some(Phase::Jobs));
}

/// A client that knows the hash of what it has is the one that can verify the whole.
#[test]
fn the_example_of_a_resume() {
    let mut pair = Pair::new();
    pair.up.record.clear();
    let sealer = Some(samples::sealer_of(b"hello world\n"));
    let streams = [
        (Stream::Stdout, ResumeStream { offset: 12, unconsumed: 0, sealer }),
        (Stream::Stderr, ResumeStream::at(0)),
    ];
    pair.client.attach(&samples::attach("job-1", 12, 0), streams.into()).unwrap();
    pair.drive();
    vector!("example-attach", pair.up.record, Some(Phase::Jobs));
}
