//! What anybody may send who can reach the port: nothing of it runs anything, and all others go on.
#![cfg(test)]

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use afar_core::limits::{PACE, PACED_WAIT_MAX};
use afar_e2e::raw::{
    End, Key, RawClient, Witness, auth_frame, control, frame, header, job_hello, open, spec,
};
use afar_e2e::{Home, Host};
use afar_proto::frame::Kind;
use afar_proto::json;
use afar_proto::limits::{PREAUTH_PAYLOAD_BYTES_MAX, QUERIES_MAX, QUERY_KEYS_MAX, REFUSAL_DELAY};
use afar_proto::message::AuthQuery;
use rustix::process::Signal;

/// Connections at once, where many are made.
const PARALLEL: usize = 16;

/// A file that nothing makes but a job.
struct Canary(PathBuf);

impl Canary {
    fn new(host: &Host) -> Self {
        Self(host.file("canary"))
    }

    /// The job part's hello and what asks for the job.
    fn wanted(&self) -> Vec<u8> {
        let path = self.0.to_str().unwrap();
        [job_hello(), open(1, &spec("canary", &["touch", path]))].concat()
    }

    #[track_caller]
    fn assert_absent(&self) {
        assert!(!self.0.exists(), "a job was run for somebody who is nobody");
    }
}

/// What the listener has said by its end.
fn final_log(host: &Host) -> String {
    host.listener().signal(Signal::TERM);
    host.listener().wait();
    host.log()
}

/// Sends bytes of a client that is not let in, the canary behind them, and demands a goodbye.
#[track_caller]
fn assert_said_goodbye(host: &Host, what: &str, bytes: impl FnOnce(&RawClient) -> Vec<u8>) {
    let canary = Canary::new(host);
    let mut client = RawClient::connect(host.address());
    let bytes = bytes(&client);
    client.link.send(&[bytes, canary.wanted()].concat());
    let (frames, end) = client.link.rest();
    let [.., goodbye] = &frames[..] else { panic!("{what}: {end:?} without a goodbye") };
    assert!(goodbye.is(Kind::Goodbye), "{what}: {frames:?} {end:?}");
    let code = goodbye.json()["code"].clone();
    assert!(code == "protocol" || code == "incompatible", "{what}: {goodbye:?}");
    assert_eq!(end, End::Closed, "{what}");
    canary.assert_absent();
}

#[test]
fn fault_08_what_is_no_tls_is_closed_and_logged_escaped() {
    let host = Host::start();
    let mut witness = Witness::new(&host);
    for bytes in [
        b"GET / HTTP/1.1\r\nHost: \x1b[31mred\r\n\r\n".as_slice(),
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n\x1b]0;x",
        b"SSH-2.0-OpenSSH_9.9 \x1b[2J\r\n",
        b"\x1b[31m\x07",
        &[0; 4096],
        &[0xff; 4096],
    ] {
        let mut socket = TcpStream::connect(host.address()).unwrap();
        socket.write_all(bytes).unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        // A reset is an end too: there may be unread bytes on the other side.
        let _ = socket.read_to_end(&mut answer);
        // Nothing but an alert record: type 21, seven bytes in all.
        assert!(answer.is_empty() || (answer[0] == 21 && answer.len() == 7), "{answer:?}");
        witness.assert_served();
    }
    drop(witness);
    host.wait_until_idle();
    let log = final_log(&host);
    assert!(log.matches("TLS: ").count() >= 6, "{log}");
    assert!(log.bytes().all(|byte| byte == b'\n' || (0x20..0x7f).contains(&byte)), "{log:?}");
}

#[test]
fn fault_02_03_lengths_over_the_limit_are_an_end_before_anything_is_read() {
    let host = Host::start();
    let mut witness = Witness::new(&host);
    for length in [PREAUTH_PAYLOAD_BYTES_MAX + 1, 1 << 31, u32::MAX] {
        for kind in [Kind::Hello, Kind::AuthQuery, Kind::Auth, Kind::Open, Kind::Data] {
            let what = format!("{kind:?} of {length}");
            assert_said_goodbye(&host, &what, |_| header(kind.to_byte(), 0, 0, length));
            assert_said_goodbye(&host, &what, |client| {
                [client.hello(), header(kind.to_byte(), 0, 0, length)].concat()
            });
        }
    }
    witness.assert_served();
}

#[test]
fn fault_09_11_12_13_15_frames_that_nobody_may_send_here_are_an_end() {
    let host = Host::start();
    let mut witness = Witness::new(&host);
    let key = Key::of_file(&host.key());
    // Unknown kinds, also those that may be ignored later on.
    for kind in [0x00, 0x08, 0x0e, 0x23, 0x7f, 0xbf, 0xc0, 0xff] {
        assert_said_goodbye(&host, "unknown kind", |client| {
            [client.hello(), frame(kind, 0, 0, b"{}")].concat()
        });
    }
    // Of the other role, of the other part, or of no peer at all.
    for kind in Kind::ALL {
        if matches!(kind, Kind::Auth | Kind::AuthQuery | Kind::Goodbye) {
            continue;
        }
        assert_said_goodbye(&host, &format!("{kind:?} after the hello"), |client| {
            [client.hello(), control(kind, &client.hello()[12..])].concat()
        });
        if kind != Kind::Hello {
            assert_said_goodbye(&host, &format!("{kind:?} before the hello"), |client| {
                control(kind, &client.hello()[12..])
            });
        }
    }
    assert_said_goodbye(&host, "AUTH before the hello", |client| client.auth(&key, host.user()));
    // No channel exists yet; no flag means anything.
    assert_said_goodbye(&host, "a channel", |client| {
        frame(Kind::Hello.to_byte(), 0, 1, &client.hello()[12..])
    });
    assert_said_goodbye(&host, "a flag", |client| {
        frame(Kind::Hello.to_byte(), 1, 0, &client.hello()[12..])
    });
    assert_said_goodbye(&host, "reserved bits", |client| {
        let mut hello = client.hello();
        hello[3] = 1;
        hello
    });
    assert_said_goodbye(&host, "no version", |_| control(Kind::Hello, b"{\"version\":0}"));
    witness.assert_served();
}

#[test]
fn fault_10_an_open_without_an_auth_is_an_end_and_runs_nothing() {
    let host = Host::start();
    assert_said_goodbye(&host, "an OPEN first", |_| Vec::new());
    assert_said_goodbye(&host, "an OPEN after the hello", RawClient::hello);
    // After a key that was only asked about.
    let key = Key::of_file(&host.key());
    assert_said_goodbye(&host, "an OPEN after a query", |client| {
        let query = AuthQuery::new(host.user(), [key.blob().to_vec()]);
        [client.hello(), control(Kind::AuthQuery, &json::to_vec(&query))].concat()
    });
}

#[test]
fn fault_10_what_follows_a_refused_auth_is_neither_decoded_nor_run() {
    let host = Host::start();
    let canary = Canary::new(&host);
    for behind in [
        canary.wanted(),
        // Each of these would be an end of its own, if anybody looked.
        [header(0x70, 0xff, 7, u32::MAX), canary.wanted()].concat(),
        [b"GET / HTTP/1.1\r\n\r\n".to_vec(), canary.wanted()].concat(),
    ] {
        let mut client = RawClient::connect(host.address());
        let refused = client.auth(&Key::fresh(), host.user());
        client.link.send(&[client.hello(), refused, behind.clone()].concat());
        assert_eq!(client.link.expect(Kind::AuthRefused).json()["message"], "permission denied");
        // Not even a second, good, AUTH is looked at.
        let good = client.auth(&Key::of_file(&host.key()), host.user());
        client.link.send(&[good, behind].concat());
        client.link.finish();
        assert_eq!(client.link.rest(), (Vec::new(), End::Closed));
        canary.assert_absent();
    }
}

#[test]
fn fault_23_24_25_26_messages_that_are_no_strict_json_are_an_end() {
    let host = Host::start();
    let mut witness = Witness::new(&host);
    let nested = |depth: usize| {
        let (open, close) = ("[".repeat(depth - 1), "]".repeat(depth - 1));
        format!("{{\"version\":1,\"later\":{open}{close}}}")
    };
    let hellos: Vec<Vec<u8>> = vec![
        nested(33).into(),
        nested(10_000).into(),
        b"[".repeat(30_000),
        b"{\"a\":".repeat(6_000),
        br#"{"version":1,"version":1}"#.to_vec(),
        br#"{"version":1,"later":{"a":1,"\u0061":2}}"#.to_vec(),
        b"{\"version\":1,\"software\":\"\xff\"}".to_vec(),
        br#"{"version":1,"software":"\ud800"}"#.to_vec(),
        br#"{"version":1,"later":1e400}"#.to_vec(),
        br#"{"version":1,"later":9007199254740993}"#.to_vec(),
        br#"{"version":-1}"#.to_vec(),
        br#"{"version":4294967296}"#.to_vec(),
        br#"{"version":"1"}"#.to_vec(),
        br#"{"version":1} x"#.to_vec(),
        br#"[1]"#.to_vec(),
        br#"{}"#.to_vec(),
        Vec::new(),
    ];
    for hello in hellos {
        let what = hello.get(..60).unwrap_or(&hello).escape_ascii().to_string();
        assert_said_goodbye(&host, &what, |_| control(Kind::Hello, &hello));
    }
    // In the signed part, with a signature that is good.
    let key = Key::of_file(&host.key());
    let signed = String::from_utf8(json::to_vec(&key.request(host.user()))).unwrap();
    for bad in [
        signed.replacen('{', "{\"user\":\"root\",", 1),
        signed.replacen('{', "{\"later\":1,", 1),
        format!("{signed}{signed}"),
        String::new(),
    ] {
        assert_said_goodbye(&host, &bad, |client| {
            let signature = key.sign(&client.transcript(bad.as_bytes()));
            [client.hello(), auth_frame(bad.as_bytes(), &signature)].concat()
        });
    }
    // A count that is not there.
    for prefix in [u32::MAX, 1 << 31, 5] {
        let payload = [prefix.to_be_bytes().as_slice(), b"{}"].concat();
        assert_said_goodbye(&host, "a length within AUTH", |client| {
            [client.hello(), control(Kind::Auth, &payload)].concat()
        });
    }
    assert_said_goodbye(&host, "an AUTH of three bytes", |client| {
        [client.hello(), control(Kind::Auth, &[0; 3])].concat()
    });
    witness.assert_served();
}

#[test]
fn questions_about_keys_are_bounded_in_number() {
    let host = Host::start();
    let keys: Vec<Vec<u8>> = (0..=QUERY_KEYS_MAX).map(|_| Key::fresh().blob().to_vec()).collect();
    assert_said_goodbye(&host, "a key too many", |client| {
        let query = AuthQuery::new(host.user(), keys);
        [client.hello(), control(Kind::AuthQuery, &json::to_vec(&query))].concat()
    });
    let query = AuthQuery::new(host.user(), [Key::of_file(&host.key()).blob().to_vec()]);
    let query = control(Kind::AuthQuery, &json::to_vec(&query));
    assert_said_goodbye(&host, "a question too many", |client| {
        let all = query.repeat(usize::try_from(QUERIES_MAX).unwrap() + 1);
        [client.hello(), all].concat()
    });
}

#[test]
fn fault_27_a_signature_is_over_the_bytes_that_were_sent() {
    let host = Host::start();
    let canary = Canary::new(&host);
    let key = Key::of_file(&host.key());
    let signed = json::to_vec(&key.request(host.user()));
    let text = String::from_utf8(signed.clone()).unwrap();
    let delegating = key.request_delegating(host.user(), &Key::fresh(), 60);
    for other in [
        // The same message in other bytes.
        text.replace(':', ": ").into_bytes(),
        format!("{text} ").into_bytes(),
        text.replacen("user", "\\u0075ser", 1).into_bytes(),
        // Another message.
        json::to_vec(&delegating),
    ] {
        let mut client = RawClient::connect(host.address());
        let signature = key.sign(&client.transcript(&signed));
        let flight = [client.hello(), auth_frame(&other, &signature), canary.wanted()].concat();
        client.link.send(&flight);
        client.link.expect(Kind::AuthRefused);
    }
    // Another hello than was signed.
    let mut client = RawClient::connect(host.address());
    let auth = client.auth(&key, host.user());
    client.set_hello(br#"{"version":1,"software":"raw","features":["downgraded"]}"#);
    client.link.send(&[client.hello(), auth, canary.wanted()].concat());
    client.link.expect(Kind::AuthRefused);
    // An unknown field of the hello is ignored, and signed.
    let mut client = RawClient::connect(host.address());
    client.set_hello(br#"{"version":7,"later":[1]}"#);
    let flight = [client.hello(), client.auth(&key, host.user())].concat();
    client.link.send(&flight);
    client.link.expect(Kind::AuthOk);
    canary.assert_absent();
}

#[test]
fn fault_74_what_was_captured_on_one_connection_is_refused_on_another() {
    let host = Host::start();
    let canary = Canary::new(&host);
    let key = Key::of_file(&host.key());
    let mut first = RawClient::connect(host.address());
    let captured = [first.hello(), first.auth(&key, host.user())].concat();
    first.link.send(&captured);
    first.link.expect(Kind::AuthOk);
    // While the first one lives, and after it.
    for _ in 0..2 {
        let mut other = RawClient::connect(host.address());
        other.link.send(&[captured.clone(), canary.wanted()].concat());
        other.link.expect(Kind::AuthRefused);
        first.link.finish();
    }
    // On the same connection it is no AUTH any more either, but see `hostile_jobs`.
    canary.assert_absent();
}

#[test]
fn fault_75_every_refusal_has_the_same_bytes_and_the_same_time() {
    let known = KnownKeys::new();
    let (expired, elsewhere) = (Key::of_file(&known.expired), Key::of_file(&known.elsewhere));
    let host = Host::builder().authorized_keys(&known.lines).start();
    let right = Key::of_file(&known.right);
    let user = host.user().to_owned();
    let request = |key: &Key, user: &str| {
        let (key, user) = (key.clone(), user.to_owned());
        move |client: &RawClient| client.auth(&key, &user)
    };
    type Attempt = Box<dyn Fn(&RawClient) -> Vec<u8>>;
    // Names of one length: the client's bytes are no part of what is compared, and yet.
    let unknown: String = "x".repeat(user.len());
    let attempts: Vec<(&str, Attempt)> = vec![
        ("a wrong key", Box::new(request(&Key::fresh(), &user))),
        ("an unknown user", Box::new(request(&right, &unknown))),
        ("both", Box::new(request(&Key::fresh(), &unknown))),
        ("an expired key", Box::new(request(&expired, &user))),
        ("another address", Box::new(request(&elsewhere, &user))),
        ("no signature", {
            let signed = json::to_vec(&right.request(&user));
            Box::new(move |_: &RawClient| auth_frame(&signed, b""))
        }),
        ("another's signature", {
            let (signed, key) = (json::to_vec(&right.request(&user)), Key::fresh());
            Box::new(move |client| auth_frame(&signed, &key.sign(&client.transcript(&signed))))
        }),
        ("no key", {
            let mut request = right.request(&user);
            request.public_key = b"nonsense".to_vec();
            let signed = json::to_vec(&request);
            Box::new(move |_: &RawClient| auth_frame(&signed, b"signature"))
        }),
    ];
    let mut seen = Vec::new();
    for (what, attempt) in &attempts {
        let mut client = RawClient::connect(host.address());
        let flight = [client.hello(), attempt(&client)].concat();
        let sent = Instant::now();
        client.link.send(&flight);
        let refusal = client.link.expect(Kind::AuthRefused);
        assert!(sent.elapsed() >= REFUSAL_DELAY, "{what} was refused early");
        client.link.finish();
        assert_eq!(client.link.rest(), (Vec::new(), End::Closed), "{what}");
        seen.push((what, refusal, client.link.received_bytes()));
    }
    for (what, refusal, bytes) in &seen[1..] {
        assert_eq!((refusal, bytes), (&seen[0].1, &seen[0].2), "{what}");
    }
    // It is none of these that a good one gets.
    let client = RawClient::log_in(host.address(), &right, &user);
    drop(client);
    let log = final_log(&host);
    // Root serves everybody whom there is.
    let is_root = rustix::process::geteuid().is_root();
    let no_such_user = if is_root { "there is no such user" } else { "serves only the user" };
    for reason in ["expired", "from=", "no line holds this key", no_such_user] {
        assert!(log.contains(reason), "the log does not say {reason:?}:\n{log}");
    }
}

/// Keys of which all but one are listed with what keeps them out.
struct KnownKeys {
    right: PathBuf,
    expired: PathBuf,
    elsewhere: PathBuf,
    lines: String,
    _home: Home,
}

impl KnownKeys {
    fn new() -> Self {
        let home = Home::new();
        let (right, expired, elsewhere) =
            (home.key(), home.make_key("expired"), home.make_key("elsewhere"));
        let lines = [
            Home::public_line(&right),
            format!("expiry-time=\"20200101Z\" {}", Home::public_line(&expired)),
            format!("from=\"192.0.2.0/24\" {}", Home::public_line(&elsewhere)),
        ];
        Self { lines: lines.concat(), right, expired, elsewhere, _home: home }
    }
}

/// For tests that fail to log in more often than one address may.
fn without_penalties() -> Host {
    Host::builder().serve_arg("--penalty-exempt").serve_arg("127.0.0.0/8").start()
}

#[test]
fn fault_82_who_guesses_is_slowed_and_a_good_key_still_gets_in() {
    // W-4.11: a burst that has begun before its first refusal is answered at once.
    let host = Host::start();
    let ask = |client: &mut RawClient| {
        let auth = client.auth(&Key::fresh(), host.user());
        client.link.send(&[client.hello(), auth].concat());
    };
    let refused = |client: &mut RawClient| {
        client.link.expect(Kind::AuthRefused);
        client.link.finish();
        client.link.rest();
    };
    let mut burst: Vec<RawClient> = (0..40).map(|_| RawClient::connect(host.address())).collect();
    burst.iter_mut().for_each(ask);
    burst.iter_mut().for_each(refused);
    // From here on it is one a second, whoever it is: of two, the second one waits.
    let started = Instant::now();
    for _ in 0..2 {
        let mut client = RawClient::connect(host.address());
        ask(&mut client);
        refused(&mut client);
    }
    assert!(started.elapsed() >= PACE, "{:?}", started.elapsed());
    let started = Instant::now();
    host.script("echo in").output().success();
    assert!(started.elapsed() < PACED_WAIT_MAX, "{:?}", started.elapsed());
    // The line is as long as one waits for it; who comes then is closed unheard.
    let line: Vec<TcpStream> =
        (0..20).map(|_| TcpStream::connect(host.address()).unwrap()).collect();
    let mut late = TcpStream::connect(host.address()).unwrap();
    assert_eq!(late.read(&mut [0]).unwrap(), 0);
    assert!(host.log().contains("failed too often"), "{}", host.log());
    drop(line);
}

#[test]
fn a_refusal_always_arrives_as_a_refusal() {
    const ATTEMPTS: usize = 320;
    let host = without_penalties();
    let canary = Canary::new(&host);
    let huge = "x".repeat(3 << 20);
    let path = canary.0.to_str().unwrap();
    let pipelined = [job_hello(), open(1, &spec("canary", &["touch", path, &huge]))].concat();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::Relaxed) < ATTEMPTS {
                    let mut client = RawClient::connect(host.address());
                    let auth = client.auth(&Key::fresh(), host.user());
                    client.link.send(&[&client.hello()[..], &auth, &pipelined].concat());
                    // Some have said everything then, some would go on.
                    if next.load(Ordering::Relaxed).is_multiple_of(2) {
                        client.link.finish();
                    }
                    let first = client.link.next_frame();
                    assert!(first.as_ref().is_ok_and(|f| f.is(Kind::AuthRefused)), "{first:?}");
                    client.link.finish();
                    assert_eq!(client.link.rest(), (Vec::new(), End::Closed));
                }
            });
        }
    });
    canary.assert_absent();
}

/// Where a client may be that nobody has let in.
#[derive(Clone, Copy, Debug)]
enum State {
    Connected,
    Greeted,
    Asked,
    Refused,
    RefusalTold,
}

#[test]
fn without_an_authorised_key_nothing_runs_whatever_is_sent_in_whatever_state() {
    let host = without_penalties();
    let canary = Canary::new(&host);
    let right = Key::of_file(&host.key());
    let kinds = Kind::ALL.iter().map(|kind| kind.to_byte()).chain([0x00, 0x70, 0xc0, 0xff]);
    let states =
        [State::Connected, State::Greeted, State::Asked, State::Refused, State::RefusalTold];
    let payloads: [Vec<u8>; 3] = [
        Vec::new(),
        b"{}".to_vec(),
        // Everything that any message has, so that each kind finds what it wants.
        json::to_vec(&spec("canary", &["touch", canary.0.to_str().unwrap()])),
    ];
    let walk: Vec<(State, u8, u32, &Vec<u8>)> = kinds
        .flat_map(|kind| states.map(|state| (state, kind)))
        .flat_map(|(state, kind)| [0, 1].map(|channel| (state, kind, channel)))
        .flat_map(|(state, kind, channel)| {
            payloads.iter().map(move |payload| (state, kind, channel, payload))
        })
        .collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(|| {
                while let Some(step) = walk.get(next.fetch_add(1, Ordering::Relaxed)) {
                    take_step(&host, &canary, &right, *step);
                }
            });
        }
    });
    canary.assert_absent();
    // And with an authorised key it does: the canary is alive.
    let mut client = RawClient::log_in(host.address(), &right, host.user());
    client.open(1, &spec("canary", &["touch", canary.0.to_str().unwrap()]));
    client.link.expect(Kind::Seal);
    assert!(canary.0.exists());
}

fn take_step(
    host: &Host,
    canary: &Canary,
    right: &Key,
    (state, kind, channel, payload): (State, u8, u32, &Vec<u8>),
) {
    let mut client = RawClient::connect(host.address());
    let hello = client.hello();
    let wrong = client.auth(&Key::fresh(), host.user());
    let before = match state {
        State::Connected => Vec::new(),
        State::Greeted => hello,
        State::Asked => {
            let query = AuthQuery::new(host.user(), [right.blob().to_vec()]);
            [hello, control(Kind::AuthQuery, &json::to_vec(&query))].concat()
        }
        State::Refused | State::RefusalTold => [hello, wrong].concat(),
    };
    client.link.send(&before);
    match state {
        State::Asked => assert_eq!(client.link.expect(Kind::AuthQueryResult).json()["accepted"], 0),
        State::RefusalTold => drop(client.link.expect(Kind::AuthRefused)),
        _ => {}
    }
    client.link.send(&[frame(kind, 0, channel, payload), canary.wanted()].concat());
    client.link.finish();
    let (frames, end) = client.link.rest();
    let allowed = |kind: u8| {
        [Kind::Goodbye, Kind::AuthRefused].iter().any(|allowed| allowed.to_byte() == kind)
    };
    let what = format!("{state:?}, then {kind:#04x} on {channel}: {frames:?} {end:?}");
    assert!(frames.iter().all(|frame| allowed(frame.kind)), "{what}");
    if matches!(state, State::Refused) {
        assert!(frames.len() == 1 && frames[0].is(Kind::AuthRefused), "{what}");
    }
    assert_eq!(end, End::Closed, "{what}");
}
