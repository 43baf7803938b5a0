//! FIDO keys: what their token has to say of the person who uses them, and for how long that lasts.
#![cfg(test)]

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use afar_core::key::PublicKeyBlob;
use afar_e2e::raw::{Key, RawClient, RawFrame, auth_frame};
use afar_e2e::{Home, Host, Run};
use afar_net::sshsig;
use afar_proto::frame::Kind;
use afar_proto::json;
use afar_proto::message::{AuthRequest, Delegate};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use rustix::process::Signal;

const TOUCHED: u8 = 1;
const VERIFIED: u8 = 4;

/// `afar run` of a home, with what an agent holds.
fn run_with(host: &Host, agent: &TokenAgent) -> Run {
    let run = host.afar(["run", "-F", "none", "--known-hosts"]).arg(host.known_hosts());
    let run = run.arg("-n").arg(host.target()).args(["--", "echo", "in"]);
    run.env("SSH_AUTH_SOCK", &agent.socket)
}

/// What the listener has said by its end.
fn final_log(host: &Host) -> String {
    host.listener().signal(Signal::TERM);
    host.listener().wait();
    host.log()
}

/// An agent with an ed25519 key in a FIDO token, which is made of software: it signs what a real one
/// would (OpenSSH's PROTOCOL.u2f), with the flags that a test wants.
struct TokenAgent {
    socket: PathBuf,
    token: Arc<Token>,
    line: String,
}

/// The token, and what it will say of its user.
struct Token {
    pair: Ed25519KeyPair,
    blob: Vec<u8>,
    flags: AtomicU8,
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

impl Token {
    const TYPE: &str = "sk-ssh-ed25519@openssh.com";

    fn new() -> Self {
        let pair = Ed25519KeyPair::generate().unwrap();
        let public = string(pair.public_key().as_ref());
        let blob = [string(Self::TYPE.as_bytes()), public, string(b"ssh:")].concat();
        Self { pair, blob, flags: AtomicU8::new(0) }
    }

    fn sign(&self, data: &[u8]) -> Vec<u8> {
        let said = [&[self.flags.load(Ordering::SeqCst)][..], &[0, 0, 0, 9]].concat();
        let (application, data) = (digest(&SHA256, b"ssh:"), digest(&SHA256, data));
        let signed = [application.as_ref(), &said, data.as_ref()].concat();
        let kind = string(Self::TYPE.as_bytes());
        [kind, string(self.pair.sign(&signed).as_ref()), said].concat()
    }
}

impl TokenAgent {
    fn start(home: &Home) -> Self {
        let token = Arc::new(Token::new());
        let key = PublicKeyBlob::from_wire(token.blob.clone()).unwrap();
        let socket = home.file("token-agent");
        let listener = UnixListener::bind(&socket).unwrap();
        let held = Arc::clone(&token);
        // It waits for the next client until the test's process ends.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that goes away says so at the other end.
                let _ = stream.and_then(|stream| answer(stream, &held));
            }
        });
        Self { socket, token, line: key.to_fields() }
    }

    fn touch(&self, flags: u8) {
        self.token.flags.store(flags, Ordering::SeqCst);
    }

    /// Logs in, and asks that an ephemeral key stand in for this one.
    fn delegate(&self, host: &Host, ephemeral: &Key, lifetime_s: u32) -> RawFrame {
        let mut client = RawClient::connect(host.address());
        let request = AuthRequest {
            user: host.user().to_owned(),
            algorithm: Token::TYPE.to_owned(),
            public_key: self.token.blob.clone(),
            delegate: Some(Delegate { public_key: ephemeral.blob().to_vec(), lifetime_s }),
        };
        let request = json::to_vec(&request);
        let data = sshsig::signed_data(&client.transcript(&request));
        let signature = sshsig::assemble(&self.token.blob, &self.token.sign(&data));
        client.link.send(&[client.hello(), auth_frame(&request, &signature)].concat());
        client.link.next_frame().unwrap()
    }
}

/// Answers one request, as the client makes one a connection.
fn answer(mut stream: UnixStream, token: &Token) -> std::io::Result<()> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut request = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut request)?;
    let answer = match request.split_first() {
        Some((11, _)) => {
            [&[12, 0, 0, 0, 1][..], &string(&token.blob), &string(b"a token")].concat()
        }
        Some((13, rest)) => {
            // The key's blob, then what is to be signed.
            let data = &rest[4 + token.blob.len()..];
            let length = u32::from_be_bytes(data[..4].try_into().unwrap()) as usize;
            [vec![14], string(&token.sign(&data[4..4 + length]))].concat()
        }
        _ => vec![5],
    };
    stream.write_all(&string(&answer))
}

#[test]
fn a_fido_key_in_an_agent_has_to_be_touched_unless_its_line_says_otherwise() {
    let host = Host::start();
    let agent = TokenAgent::start(&host);
    std::fs::remove_file(host.key()).unwrap();
    for (options, flags, let_in) in [
        ("", TOUCHED, true),
        ("", 0, false),
        ("", VERIFIED, false),
        ("no-touch-required ", 0, true),
        ("verify-required ", TOUCHED, false),
        ("verify-required ", TOUCHED | VERIFIED, true),
        ("no-touch-required,verify-required ", VERIFIED, true),
    ] {
        host.write("authorized_keys", format!("{options}{}\n", agent.line));
        agent.touch(flags);
        let output = run_with(&host, &agent).output();
        assert_eq!(output.code() == 0, let_in, "{options:?} {flags}: {output:?}");
    }
    let log = final_log(&host);
    for reason in ["its token was not touched", "its token did not verify its user"] {
        assert!(log.contains(reason), "{log}");
    }
}

/// W-4.9
#[test]
fn a_fido_key_that_has_to_be_touched_is_not_stood_in_for_all_day() {
    let host = Host::start();
    let (agent, ephemeral) = (TokenAgent::start(&host), Key::fresh());
    let write = |options: &str| {
        host.write("authorized_keys", format!("{options}{}\n", agent.line));
    };
    let lifetime_s = |flags, wanted_s| {
        agent.touch(flags);
        let ok = agent.delegate(&host, &ephemeral, wanted_s);
        assert!(ok.is(Kind::AuthOk), "{ok:?}");
        ok.json()["delegate_lifetime_s"].as_u64()
    };
    write("");
    assert_eq!(lifetime_s(TOUCHED, 3600), Some(600));
    assert_eq!(lifetime_s(TOUCHED, 599), Some(599));
    drop(RawClient::log_in(host.address(), &ephemeral, host.user()));
    write("no-touch-required,verify-required ");
    assert_eq!(lifetime_s(VERIFIED, 3600), Some(600));
    write("no-touch-required ");
    assert_eq!(lifetime_s(0, 3600), Some(3600));
    drop(RawClient::log_in(host.address(), &ephemeral, host.user()));
    // What counts is what the line says when the ephemeral key is used: nobody has touched the token.
    write("");
    let mut client = RawClient::connect(host.address());
    client.link.send(&[client.hello(), client.auth(&ephemeral, host.user())].concat());
    client.link.expect(Kind::AuthRefused);
    let log = final_log(&host);
    assert!(log.contains("vouched for it: its token was not touched"), "{log}");
}
