//! The agent client against the real ssh-agent, and against agents that misbehave.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use tokio::net::UnixListener;

use super::*;
use crate::signature::SignatureError;
use crate::signer::{SignError, Signer};
use crate::{keygen, sshsig};

/// A real ssh-agent in the foreground, ended by its own pid.
struct RealAgent {
    child: Child,
    /// Kept open, so that nothing it still says can kill it.
    _says: BufReader<ChildStdout>,
    path: PathBuf,
    temp: tempfile::TempDir,
}

impl RealAgent {
    fn start() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("socket");
        let mut child = Command::new("ssh-agent")
            .arg("-D")
            .arg("-a")
            .arg(&path)
            .stdout(Stdio::piped())
            .spawn()
            .expect("ssh-agent is needed (Debian package openssh-client)");
        // It says where it listens once it does.
        let mut line = String::new();
        let mut says = BufReader::new(child.stdout.take().unwrap());
        says.read_line(&mut line).unwrap();
        assert!(line.starts_with("SSH_AUTH_SOCK="), "{line}");
        Self { child, _says: says, path, temp }
    }

    /// Generates a key, gives it to the agent and returns its blob.
    fn add(&self, name: &str, args: &[&str]) -> Vec<u8> {
        let key = self.temp.path().join(name);
        let blob = keygen::generate(&key, args, name);
        self.ssh_add(&[key.to_str().unwrap()]);
        std::fs::remove_file(&key).unwrap();
        blob
    }

    fn ssh_add(&self, args: &[&str]) {
        let output =
            Command::new("ssh-add").args(args).env("SSH_AUTH_SOCK", &self.path).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

impl Drop for RealAgent {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[tokio::test]
async fn a_real_agent_lists_and_signs_with_every_type() {
    let real = RealAgent::start();
    let agent = Agent::new(&real.path);
    assert!(agent.identities().await.unwrap().keys.is_empty());
    for (kind, args) in keygen::KINDS {
        let blob = real.add(kind.ssh_name(), args);
        let keys = agent.identities().await.unwrap().keys;
        let key = keys.iter().find(|key| key.public_blob() == blob).unwrap().clone();
        assert_eq!((key.kind(), key.comment()), (*kind, kind.ssh_name()));
        let signer = Signer::Agent(key);
        let envelope = signer.sign(b"transcript").await.unwrap();
        let verified = sshsig::verify(&blob, &envelope, b"transcript").unwrap();
        assert_eq!(verified.algorithm(), signer.algorithm());
    }
}

#[tokio::test]
async fn a_key_that_has_left_the_agent_is_refused() {
    let real = RealAgent::start();
    real.add("key", &["-t", "ed25519", "-N", ""]);
    let agent = Agent::new(&real.path);
    let key = agent.identities().await.unwrap().keys.remove(0);
    real.ssh_add(&["-D"]);
    let error = Signer::Agent(key).sign(b"").await.unwrap_err();
    assert!(matches!(error, SignError::Agent(AgentError::Refused)), "{error}");
}

#[tokio::test]
async fn nobody_at_the_socket_is_said_with_its_path() {
    let temp = tempfile::tempdir().unwrap();
    let error = Agent::new(&temp.path().join("none")).identities().await.unwrap_err();
    assert!(error.to_string().contains("none"), "{error}");
    assert!(matches!(error, AgentError::Unreachable { .. }));
}

fn frame(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    ssh_wire::put_string(&mut out, body);
    out
}

/// An answer that lists one Ed25519 key.
fn one_key() -> (Vec<u8>, Vec<u8>) {
    let mut blob = Vec::new();
    ssh_wire::put_string(&mut blob, b"ssh-ed25519");
    ssh_wire::put_string(&mut blob, &[7; 32]);
    let mut body = vec![SSH_AGENT_IDENTITIES_ANSWER, 0, 0, 0, 1];
    ssh_wire::put_string(&mut body, &blob);
    ssh_wire::put_string(&mut body, b"a comment");
    (blob, body)
}

/// A round trip with an agent that reads the request and sends these bytes, then closes; both ways
/// a byte at a time.
async fn answered(bytes: &[u8]) -> Result<Vec<u8>, AgentError> {
    let (mut ours, mut theirs) = tokio::io::duplex(1);
    let fake = async move {
        let mut request = [0; 5];
        theirs.read_exact(&mut request).await.unwrap();
        assert_eq!(request, [0, 0, 0, 1, SSH_AGENTC_REQUEST_IDENTITIES]);
        // The client may have hung up by now, which is its right.
        let _ = theirs.write_all(bytes).await;
    };
    let ask = async move { round_trip(&mut ours, &[SSH_AGENTC_REQUEST_IDENTITIES]).await };
    tokio::join!(fake, ask).1
}

#[tokio::test]
async fn an_answer_in_single_bytes_is_one_answer() {
    let (blob, body) = one_key();
    let answer = answered(&frame(&body)).await.unwrap();
    assert_eq!(answer, body);
    let keys = Agent::new(Path::new("/agent")).parse_identities(&answer).unwrap().keys;
    assert_eq!((keys[0].public_blob(), keys[0].comment()), (blob.as_slice(), "a comment"));
}

#[tokio::test]
async fn an_answer_that_ends_early_is_a_broken_connection() {
    let (_, body) = one_key();
    let framed = frame(&body);
    for cut in 0..framed.len() {
        let error = answered(&framed[..cut]).await.unwrap_err();
        assert!(matches!(error, AgentError::Broken(_)), "cut at {cut}: {error}");
    }
}

#[tokio::test]
async fn a_length_over_the_limit_is_refused_before_its_bytes() {
    for bytes in [u32::MAX, 1 << 31, u32::try_from(FRAME_BYTES_MAX).unwrap() + 1] {
        let error = answered(&bytes.to_be_bytes()).await.unwrap_err();
        assert!(matches!(error, AgentError::TooLarge { bytes: b } if b == bytes), "{error}");
    }
    let largest = frame(&vec![SSH_AGENT_FAILURE; FRAME_BYTES_MAX]);
    assert_eq!(answered(&largest).await.unwrap().len(), FRAME_BYTES_MAX);
}

#[test]
fn hostile_lists_are_malformed() {
    let agent = Agent::new(Path::new("/agent"));
    let (_, good) = one_key();
    let mut huge_count = good.clone();
    huge_count[1..5].copy_from_slice(&u32::MAX.to_be_bytes());
    let mut one_too_many = good.clone();
    one_too_many[4] = 2;
    let mut one_too_few = good.clone();
    one_too_few[4] = 0;
    for bad in
        [&[][..], &[99], &[SSH_AGENT_IDENTITIES_ANSWER], &huge_count, &one_too_many, &one_too_few]
    {
        let error = agent.parse_identities(bad).unwrap_err();
        assert!(matches!(error, AgentError::Malformed), "{bad:?}: {error}");
    }
    for cut in 1..good.len() {
        assert!(agent.parse_identities(&good[..cut]).is_err(), "cut at {cut}");
    }
    assert!(matches!(agent.parse_identities(&[SSH_AGENT_FAILURE]), Err(AgentError::Refused)));
}

#[test]
fn keys_that_can_not_be_used_are_told_with_the_reason() {
    let (blob, _) = one_key();
    let mut body = vec![SSH_AGENT_IDENTITIES_ANSWER, 0, 0, 0, 3];
    let mut certificate = Vec::new();
    ssh_wire::put_string(&mut certificate, b"ssh-ed25519-cert-v01@openssh.com");
    for blob in [certificate.as_slice(), b"", &blob] {
        ssh_wire::put_string(&mut body, blob);
        ssh_wire::put_string(&mut body, b"\xff\x1b[2J");
    }
    let held = Agent::new(Path::new("/agent")).parse_identities(&body).unwrap();
    let [key] = held.keys.as_slice() else { panic!("{:?}", held.keys) };
    assert_eq!(key.public_blob(), blob);
    assert_eq!(held.unusable.len(), 2);
    assert!(held.unusable.iter().all(|key| !key.reason.is_empty()));
}

#[test]
fn hostile_signatures_are_malformed() {
    let mut good = vec![SSH_AGENT_SIGN_RESPONSE];
    ssh_wire::put_string(&mut good, b"signature");
    assert_eq!(parse_signature(&good).unwrap(), b"signature");
    for cut in 0..good.len() {
        assert!(matches!(parse_signature(&good[..cut]), Err(AgentError::Malformed)));
    }
    good.push(0);
    assert!(matches!(parse_signature(&good), Err(AgentError::Malformed)));
}

/// An agent at a socket that answers every request with the same bytes, or never.
struct FakeAgent {
    agent: Agent,
    task: tokio::task::JoinHandle<()>,
    _temp: tempfile::TempDir,
}

impl FakeAgent {
    fn start(answer: Option<Vec<u8>>) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let task = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let length = stream.read_u32().await.unwrap();
                let mut request = vec![0; usize::try_from(length).unwrap()];
                stream.read_exact(&mut request).await.unwrap();
                match &answer {
                    Some(answer) => stream.write_all(answer).await.unwrap(),
                    None => std::future::pending().await,
                }
            }
        });
        Self { agent: Agent::new(&path), task, _temp: temp }
    }

    fn key(&self) -> AgentKey {
        let (_, list) = one_key();
        self.agent.parse_identities(&list).unwrap().keys.remove(0)
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn a_signature_that_is_none_is_found_here_and_not_by_the_server() {
    let mut raw = Vec::new();
    ssh_wire::put_string(&mut raw, b"ssh-ed25519");
    ssh_wire::put_string(&mut raw, &[0; 64]);
    let mut body = vec![SSH_AGENT_SIGN_RESPONSE];
    ssh_wire::put_string(&mut body, &raw);
    let fake = FakeAgent::start(Some(frame(&body)));
    let error = Signer::Agent(fake.key()).sign(b"transcript").await.unwrap_err();
    let bad = SignatureError::BadSignature.into();
    assert!(matches!(&error, SignError::Invalid(error) if *error == bad), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_agent_costs_the_timeout_and_no_more() {
    let fake = FakeAgent::start(None);
    let started = tokio::time::Instant::now();
    assert!(matches!(
        fake.agent.identities().await,
        Err(AgentError::TimedOut { after: LIST_TIMEOUT })
    ));
    assert_eq!(started.elapsed().as_secs(), LIST_TIMEOUT.as_secs());
    let key = fake.key();
    assert!(matches!(key.sign_raw(b"").await, Err(AgentError::TimedOut { after: SIGN_TIMEOUT })));
}

#[tokio::test]
async fn what_does_not_fit_a_request_is_not_sent() {
    let (mut ours, _theirs) = tokio::io::duplex(1);
    let error = round_trip(&mut ours, &vec![0; FRAME_BYTES_MAX + 1]).await.unwrap_err();
    assert!(matches!(error, AgentError::RequestTooLarge), "{error}");
}

#[test]
fn the_socket_is_found_as_ssh_finds_it() {
    let variable = |name: &OsStr| match name.to_str() {
        Some("SSH_AUTH_SOCK") => Some(OsString::from("/default")),
        Some("MINE") => Some(OsString::from("/mine")),
        Some("EMPTY") => Some(OsString::new()),
        _ => None,
    };
    let find = |value: Option<&str>| {
        socket_path(value.map(OsStr::new), Some(Path::new("/home/me")), &variable)
    };
    let cases = [
        (None, Some("/default")),
        (Some("none"), None),
        (Some("SSH_AUTH_SOCK"), Some("/default")),
        (Some("$MINE"), Some("/mine")),
        (Some("${MINE}"), Some("/mine")),
        (Some("$EMPTY"), None),
        (Some("$UNSET"), None),
        (Some("~/agent.sock"), Some("/home/me/agent.sock")),
        (Some("/run/agent.sock"), Some("/run/agent.sock")),
    ];
    for (value, expected) in cases {
        assert_eq!(find(value), expected.map(PathBuf::from), "{value:?}");
    }
    assert_eq!(socket_path(None, None, &|_| None), None);
    assert_eq!(socket_path(Some(OsStr::new("~/x")), None, &|_| None), None);
}
