//! The client against a server that lies: nothing that it says steers a terminal, takes memory
//! without bound, or passes for an outcome.
#![cfg(test)]

use std::net::Shutdown;
use std::path::PathBuf;

use afar_e2e::raw::{FakeServer, RawServer, control, data, frame, header, window};
use afar_e2e::{Direction, Home, Host, Output, Proxy, Run, Sink};
use afar_proto::frame::Kind;
use afar_proto::json;
use afar_proto::limits::WINDOW_BYTES_INITIAL;
use afar_proto::outcome::{End, ExitReport, Receipt, Seal};
use afar_proto::seal::Sealer;

/// Clears the screen, sets the title, colours, with C0 and C1, and turns the text around.
const EVIL: &str = r"\u001b[2J\u001b]0;pwned\u0007\u009b31m\r\n\u202eevil\u2066";

/// What a server does with a client that has made TLS with it.
type Script = fn(&mut RawServer);

/// A person with a host that they trust and should not.
struct Victim {
    home: Home,
    server: FakeServer,
}

impl Victim {
    fn of(script: impl Fn(&mut RawServer) + Send + 'static) -> Self {
        let home = Home::new();
        let host_key = home.make_key("host_key");
        let server = FakeServer::start(&host_key, script);
        home.trust(server.address(), &host_key);
        Self { home, server }
    }

    /// `afar run OPTIONS TARGET -- true`. What such a server breaks is not asked for again.
    fn run(&self, options: &[&str]) -> Run {
        let run = self.home.afar(["run", "-F", "none", "--reconnect-for", "0", "-i"]);
        let run = run.arg(self.home.key());
        let run = run.arg("--known-hosts").arg(self.home.known_hosts());
        let run = options.iter().fold(run, Run::arg);
        run.arg("--id").arg("job").arg(self.server.address().to_string()).arg("--").arg("true")
    }

    fn result_path(&self) -> PathBuf {
        self.home.file("result")
    }

    /// The outcome of a run that afar has to call a failure.
    #[track_caller]
    fn failure(&self) -> (Output, serde_json::Value) {
        let path = self.result_path();
        let output = self.run(&["--result", path.to_str().unwrap()]).output();
        output.expect_code(255);
        assert!(output.error_text().starts_with("afar: "), "{output:?}");
        let result = self.home.json("result");
        assert_ne!(result["phase"], "done", "{result}");
        (output, result)
    }
}

fn of_channel(kind: Kind, channel: u32, payload: &[u8]) -> Vec<u8> {
    frame(kind.to_byte(), 0, channel, payload)
}

fn exit_frame(channel: u32, end: &End) -> Vec<u8> {
    let report = ExitReport { end: end.clone(), receipt: Receipt::default() };
    of_channel(Kind::Exit, channel, &json::to_vec(&report))
}

fn end_frame(channel: u32, stream: u8, offset: u64) -> Vec<u8> {
    frame(Kind::End.to_byte(), stream, channel, &offset.to_be_bytes())
}

fn seal_of(end: &End, stdout: &[u8]) -> Seal {
    let mut sealer = Sealer::new();
    sealer.update(stdout);
    Seal {
        end: end.clone(),
        receipt: Receipt::default(),
        streams: [
            ("stdout".to_owned(), sealer.seal(true)),
            ("stderr".to_owned(), Sealer::new().seal(true)),
        ]
        .into(),
        streams_left_open: false,
        session_restarted: false,
        detail: None,
    }
}

fn seal_frame(channel: u32, seal: &Seal) -> Vec<u8> {
    of_channel(Kind::Seal, channel, &json::to_vec(seal))
}

const EXITED: End = End::Exited { code: 0 };

/// Lets the client in, says that its job was started, and then sends this.
fn started(server: &mut RawServer, then: impl FnOnce(u32) -> Vec<u8>) {
    let channel = server.let_in();
    server.say_opened(channel, "job");
    server.link.send(&then(channel));
}

/// A job that has written `claimed` and exited with 0, of which `sent` is sent.
fn finished(channel: u32, sent: &[u8], claimed: &[u8]) -> Vec<u8> {
    let length = u64::try_from(sent.len()).unwrap();
    [data(channel, 1, 0, sent), ended(channel, length, claimed)].concat()
}

/// The end of a job that has sent so many bytes, written `claimed`, and exited with 0.
fn ended(channel: u32, sent_bytes: u64, claimed: &[u8]) -> Vec<u8> {
    [
        end_frame(channel, 1, sent_bytes),
        end_frame(channel, 2, 0),
        exit_frame(channel, &EXITED),
        seal_frame(channel, &seal_of(&EXITED, claimed)),
    ]
    .concat()
}

#[test]
fn an_honest_fake_is_believed() {
    // What the others differ from.
    let victim = Victim::of(|server| started(server, |id| finished(id, b"out", b"out")));
    let output = victim.run(&["-v"]).output();
    assert_eq!(output.success().text(), "out");
}

#[test]
fn fault_85_what_a_server_says_is_shown_escaped() {
    let cases: [(&str, Script); 8] = [
        ("a refusal of the key", |server| {
            server.link.expect(Kind::Auth);
            server.link.send(&control(Kind::AuthRefused, &evil(r#"{"message":"EVIL"}"#)));
        }),
        ("a goodbye instead of a verdict", |server| {
            server.link.expect(Kind::Auth);
            let goodbye = evil(r#"{"code":"protocol","message":"EVIL"}"#);
            server.link.send(&control(Kind::Goodbye, &goodbye));
        }),
        ("a goodbye", |server| {
            server.let_in();
            let goodbye = evil(r#"{"code":"EVIL","message":"EVIL"}"#);
            server.link.send(&control(Kind::Goodbye, &goodbye));
        }),
        ("a hello of the job part", |server| {
            server.link.expect(Kind::Auth);
            let hello = evil(r#"{"version":0,"software":"EVIL","features":["EVIL"]}"#);
            let flight = [control(Kind::AuthOk, b"{}"), control(Kind::JobHello, &hello)];
            server.link.send(&flight.concat());
        }),
        ("a refusal of the job", |server| {
            let channel = server.let_in();
            let refused =
                evil(r#"{"phase":"spawn","reason":"not_found","message":"EVIL","started":"no"}"#);
            server.link.send(&of_channel(Kind::Refused, channel, &refused));
        }),
        ("a refusal for a reason of its own", |server| {
            let channel = server.let_in();
            let refused = evil(r#"{"phase":"spawn","reason":"EVIL","started":"no"}"#);
            server.link.send(&of_channel(Kind::Refused, channel, &refused));
        }),
        ("a reset", |server| {
            started(server, |id| of_channel(Kind::Reset, id, &evil(r#"{"message":"EVIL"}"#)));
        }),
        ("a signal's name", |server| {
            started(server, |id| {
                let name = serde_json::from_slice::<String>(&evil("\"EVIL\"")).unwrap();
                let end = End::Signaled { signal: 250, name, core: true };
                let seal = seal_of(&end, b"");
                let ends = [end_frame(id, 1, 0), end_frame(id, 2, 0), exit_frame(id, &end)];
                [ends.concat(), seal_frame(id, &seal)].concat()
            });
        }),
    ];
    for (what, script) in cases {
        for verbosity in [&[][..], &["-v"], &["-q"], &["--json"]] {
            let output = Victim::of(script).run(verbosity).output();
            assert_ne!(output.code(), 0, "{what}: {output:?}");
            let said = format!("{}{}", output.text(), output.error_text());
            let steers = |c: char| (c.is_control() && c != '\n') || "\u{202e}\u{2066}".contains(c);
            assert!(!said.contains(steers), "{what}: {said:?}");
            // One line of its own a failure, whatever line breaks there are in it.
            let lines = output.error_text().lines();
            assert!(lines.clone().all(|line| line.starts_with("afar: ")), "{what}: {output:?}");
        }
    }
}

fn evil(text: &str) -> Vec<u8> {
    text.replace("EVIL", EVIL).into_bytes()
}

#[test]
fn fault_85_the_output_of_a_job_is_its_own() {
    let bytes = b"\x1b[31mred\x1b[0m\x00\xff\r\n";
    let victim = Victim::of(move |server| started(server, |id| finished(id, bytes, bytes)));
    assert_eq!(victim.run(&[]).output().success().stdout, bytes);
}

#[test]
fn fault_86_absurd_sizes_are_refused_before_they_are_believed() {
    let cases: [(&str, Script); 11] = [
        ("a verdict of four gigabytes", |server| {
            server.link.expect(Kind::Auth);
            server.link.send(&header(Kind::AuthOk.to_byte(), 0, 0, u32::MAX));
        }),
        ("a refusal of 33 kilobytes", |server| {
            server.link.expect(Kind::Auth);
            server.link.send(&header(Kind::AuthRefused.to_byte(), 0, 0, 33 * 1024));
        }),
        ("a life of all ages for the ephemeral key", |server| {
            server.link.expect(Kind::Auth);
            let ok = br#"{"delegate_lifetime_s":9007199254740992}"#;
            server.link.send(&control(Kind::AuthOk, ok));
        }),
        ("a key that was not asked about", |server| {
            server.link.expect(Kind::Auth);
            server.link.send(&control(Kind::AuthQueryResult, br#"{"accepted":4294967295}"#));
        }),
        ("data of four gigabytes", |server| {
            started(server, |id| header(Kind::Data.to_byte(), 1, id, u32::MAX));
        }),
        ("nesting", |server| {
            started(server, |id| of_channel(Kind::Exit, id, "[".repeat(60_000).as_bytes()));
        }),
        ("a process id beyond any", |server| {
            let channel = server.let_in();
            let opened = br#"{"job":"job","pid":9007199254740992,"started_at_us":1}"#;
            server.link.send(&of_channel(Kind::Opened, channel, opened));
        }),
        ("data at the end of all offsets", |server| {
            started(server, |id| data(id, 1, u64::MAX, b"x"));
        }),
        ("an end at the end of all offsets", |server| {
            started(server, |id| end_frame(id, 1, u64::MAX));
        }),
        ("data beyond the credit", |server| {
            started(server, |id| {
                let piece = vec![b'x'; 64 * 1024];
                let pieces = usize::try_from(WINDOW_BYTES_INITIAL).unwrap() / piece.len() + 1;
                let offset = |index: usize| u64::try_from(index * piece.len()).unwrap();
                // All at once, so that no credit for what was printed comes in between; and if it
                // does, the last offset is still beyond it.
                let all = (0..pieces * 64).flat_map(|index| data(id, 1, offset(index), &piece));
                all.collect()
            });
        }),
        ("credit beyond all limits", |server| {
            started(server, |id| window(id, 0, u32::MAX).repeat(2));
        }),
    ];
    for (what, script) in cases {
        let victim = Victim::of(script);
        let (output, result) = victim.failure();
        assert!(output.stdout.len() <= 8 << 20, "{what}: {} bytes", output.stdout.len());
        assert!(output.stderr.len() < 4096, "{what}: {output:?}");
        assert_ne!(result["end"]["kind"], "exited", "{what}: {result}");
    }
}

#[test]
fn fault_86_single_bytes_that_nobody_reads_take_little_memory() {
    // Within the window of 2 MiB, and each a frame of its own.
    const PIECES: usize = 1 << 20;
    let (arrived, has_arrived) = std::sync::mpsc::channel();
    let victim = Victim::of(move |server| {
        started(server, |id| {
            (0..PIECES as u64).flat_map(|offset| data(id, 1, offset, b"x")).collect()
        });
        // The client answers when it has taken all that came before.
        server.link.send(&frame(Kind::Ping.to_byte(), 0, 0, &[7; 8]));
        server.link.expect(Kind::Pong);
        arrived.send(()).unwrap();
        server.link.send(&ended(1, PIECES as u64, &[b'x'; PIECES]));
    });
    let run = victim.run(&[]).spawn();
    has_arrived.recv().unwrap();
    let memory = run.process().memory();
    // As events of their own they would take a hundred megabytes and more.
    assert!(memory.peak < 48 << 20, "{memory:?}");
    assert_eq!(run.wait().success().stdout, [b'x'; PIECES]);
}

#[test]
fn fault_86_absurd_numbers_in_an_outcome_are_only_numbers() {
    let victim = Victim::of(|server| {
        let channel = server.let_in();
        let opened = br#"{"job":"job","pid":4294967295,"started_at_us":9007199254740992}"#;
        let receipt = Receipt {
            wall_us: 1 << 53,
            user_us: 1 << 53,
            sys_us: 1 << 53,
            max_rss_bytes: 1 << 53,
            ..Receipt::default()
        };
        let seal = Seal { receipt, ..seal_of(&EXITED, b"") };
        let report = ExitReport { end: EXITED, receipt };
        let frames = [
            of_channel(Kind::Opened, channel, opened),
            of_channel(Kind::Exit, channel, &json::to_vec(&report)),
            end_frame(channel, 1, 0),
            end_frame(channel, 2, 0),
            seal_frame(channel, &seal),
        ];
        server.link.send(&frames.concat());
    });
    for options in [&["-v"][..], &["--json"], &["--result", "-"]] {
        let _ = victim.run(options).output().success();
    }
}

#[test]
fn fault_86_a_long_message_is_cut() {
    let victim = Victim::of(|server| {
        let channel = server.let_in();
        let message = "long ".repeat(12_000);
        let refused =
            format!(r#"{{"phase":"spawn","reason":"other","message":"{message}","started":"no"}}"#);
        server.link.send(&of_channel(Kind::Refused, channel, refused.as_bytes()));
    });
    let (output, _) = victim.failure();
    assert!(output.stderr.len() < 2048, "{} bytes", output.stderr.len());
}

#[test]
fn fault_87_output_that_is_not_what_was_sealed_is_a_failure_and_said_so() {
    let less = |id| finished(id, b"half", b"half of it");
    let other = |id| finished(id, b"this", b"that");
    let more = |id| finished(id, b"this and that", b"this");
    let none = |id| {
        let seal = Seal { streams: [].into(), ..seal_of(&EXITED, b"") };
        let ends = [end_frame(id, 1, 0), end_frame(id, 2, 0), exit_frame(id, &EXITED)];
        [ends.concat(), seal_frame(id, &seal)].concat()
    };
    let cases: [fn(u32) -> Vec<u8>; 4] = [less, other, more, none];
    for script in cases {
        let victim = Victim::of(move |server| started(server, script));
        let (output, result) = victim.failure();
        let said = "the output that arrived on stdout is not what the command wrote";
        assert!(output.error_text().contains(said), "{output:?}");
        assert_eq!(result["phase"], "stream", "{result}");
    }
}

#[test]
fn fault_88_an_outcome_of_a_job_that_was_never_started_is_refused() {
    let cases: [fn(u32) -> Vec<u8>; 5] = [
        |id| exit_frame(id, &EXITED),
        |id| seal_frame(id, &seal_of(&EXITED, b"")),
        |id| data(id, 1, 0, b"made up"),
        |id| end_frame(id, 1, 0),
        |id| finished(id, b"made up", b"made up"),
    ];
    for script in cases {
        let victim = Victim::of(move |server| {
            let channel = server.let_in();
            server.link.send(&script(channel));
        });
        let (output, result) = victim.failure();
        assert_eq!(output.text(), "");
        assert_ne!(result["started"], "yes", "{result}");
        assert_ne!(result["end"]["kind"], "exited", "{result}");
    }
}

#[test]
fn fault_88_an_answer_about_another_job_is_refused() {
    let victim = Victim::of(|server| {
        let channel = server.let_in();
        server.say_opened(channel, "another");
        server.link.send(&finished(channel, b"made up", b"made up"));
    });
    let (output, _) = victim.failure();
    assert_eq!(output.text(), "");
}

#[test]
fn fault_88_a_job_that_was_started_cannot_have_been_not_started() {
    let not_started = End::NotStarted { reason: "not_found".to_owned() };
    let exit = not_started.clone();
    let in_exit = Victim::of(move |server| started(server, |id| exit_frame(id, &exit)));
    let in_seal = Victim::of(move |server| {
        started(server, |id| {
            let ends = [end_frame(id, 1, 0), end_frame(id, 2, 0), exit_frame(id, &EXITED)];
            [ends.concat(), seal_frame(id, &seal_of(&not_started, b""))].concat()
        });
    });
    for victim in [in_exit, in_seal] {
        let (_, result) = victim.failure();
        assert_eq!(result["started"], "yes", "{result}");
        assert_ne!(result["end"]["kind"], "not_started", "{result}");
    }
}

#[test]
fn fault_29_an_end_before_the_seal_is_a_cut_however_it_comes() {
    fn all_but_the_seal(id: u32) -> Vec<u8> {
        let ends = [end_frame(id, 1, 3), end_frame(id, 2, 0), exit_frame(id, &EXITED)];
        [data(id, 1, 0, b"out"), ends.concat()].concat()
    }
    let cases: [(&str, Script); 4] = [
        ("in order, by close_notify", |server| started(server, all_but_the_seal)),
        ("without close_notify", |server| {
            started(server, all_but_the_seal);
            server.link.socket().shutdown(Shutdown::Write).unwrap();
        }),
        ("in the middle of a frame", |server| {
            started(server, |id| {
                let whole = finished(id, b"out", b"out");
                whole[..whole.len() - 1].to_vec()
            });
        }),
        ("with a goodbye", |server| {
            started(server, |id| {
                let goodbye = control(Kind::Goodbye, br#"{"code":"done"}"#);
                [all_but_the_seal(id), goodbye].concat()
            });
        }),
    ];
    for (what, script) in cases {
        let victim = Victim::of(script);
        let (output, result) = victim.failure();
        assert_eq!(output.text(), "out", "{what}");
        assert_eq!(result["started"], "yes", "{what}: {result}");
        assert!(output.error_text().contains("closed") || output.error_text().contains("cut"));
    }
}

#[test]
fn fault_29_a_line_that_is_cut_in_the_middle_of_output_is_never_complete() {
    let host = Host::start();
    // Nobody reads what arrives, so no more comes than the window of 2 MiB.
    for bytes in [1, 100_000, 2_000_000] {
        let proxy = Proxy::start(host.address());
        host.trust(proxy.address(), &host.host_key());
        let result = host.file("result");
        let target = host.target_via(proxy.address());
        let result = result.to_str().unwrap();
        let arguments = ["--reconnect-for", "0", "--result", result, "-c", "exec yes"];
        let run = host.run_at(&target, arguments).stdout_to(Sink::Digest).spawn();
        // The login takes some bytes too; where exactly it is cut does not matter.
        proxy.wait_for(Direction::Down, 4_000 + bytes);
        proxy.cut();
        let output = run.wait();
        output.expect_code(255);
        assert!(output.error_text().contains("cut"), "{output:?}");
        let result = host.json("result");
        assert_eq!(result["started"], "yes", "{result}");
        assert_ne!(result["phase"], "done", "{result}");
        // It runs on, for all that this client knows.
        assert_eq!(result["end"]["kind"], "unknown", "{result}");
        assert_eq!(host.end_jobs(), 1);
    }
}

#[test]
fn a_server_that_refuses_the_hello_is_named() {
    // Something that speaks afar's TLS and then nonsense.
    let victim = Victim::of(|server| {
        server.link.send(b"GET / HTTP/1.1\r\n\r\n");
        server.link.rest();
    });
    let (output, result) = victim.failure();
    // Nor does the time that it would have for another link make it wait.
    victim.run(&["--reconnect-for", "1m"]).output().expect_code(255);
    assert!(output.error_text().contains("protocol"), "{output:?}");
    assert_eq!(result["phase"], "authenticate", "{result}");
}
