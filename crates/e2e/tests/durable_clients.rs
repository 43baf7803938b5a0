//! What a client does and says while it has no connection, or one that is dead without its knowing.
#![cfg(test)]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use afar_e2e::raw::{FakeServer, control, job_hello};
use afar_e2e::{
    DEADLINE, Direction, Home, Host, Proxy, Run, Running, Source, Sshd, Terminal, process,
};
use afar_proto::frame::Kind;
use rustix::process::Signal;
use serde_json::json;

/// A host behind a proxy that can be cut.
struct Far {
    host: Host,
    proxy: Proxy,
}

impl Far {
    fn new() -> Self {
        let host = Host::start();
        let proxy = Proxy::start(host.address());
        host.trust(proxy.address(), &host.host_key());
        Self { host, proxy }
    }

    fn target(&self) -> String {
        self.host.target_via(self.proxy.address())
    }

    /// `afar run … -c SCRIPT`, with its outcome in `result`.
    fn run(&self, words: &[&str], script: &str) -> Run {
        let run = self.host.run_at(&self.target(), ["--result"]).arg(self.host.file("result"));
        run.args(words).args(["-c", script])
    }

    /// From now on nobody is there.
    fn go_away(&self) {
        self.proxy.redirect(nobody());
        self.proxy.cut();
    }

    fn come_back(&self) {
        self.proxy.redirect(self.host.address());
    }

    fn silence(&self) {
        self.proxy.stall(Direction::Up);
        self.proxy.stall(Direction::Down);
    }

    #[track_caller]
    fn assert_end(&self, kind: &str, started: &str) {
        let outcome = self.host.json("result");
        let end = (&outcome["end"]["kind"], &outcome["started"]);
        assert_eq!(end, (&json!(kind), &json!(started)), "{outcome}");
    }
}

/// An address where nobody listens.
fn nobody() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap()
}

/// A command that says which signals it gets, and ends with a line of input.
const LISTENS: &str = "trap 'echo int' INT; trap 'echo term' TERM; echo ready; \
                       while :; do read line && exit 4; done";

fn ready(run: Run) -> Running {
    let mut client = run.stdin_from(Source::Piped).spawn();
    assert_eq!(client.line().as_deref(), Some("ready"));
    client
}

#[test]
fn fault_66_over_a_dead_link_nobody_is_told_that_the_command_is_cancelled() {
    let far = Far::new();
    let mut client = ready(far.run(&[], LISTENS));
    client.signal(Signal::TERM);
    assert_eq!(client.line().as_deref(), Some("term"));
    far.silence();
    client.signal(Signal::TERM);
    let output = client.wait();
    let said = output.expect_code(255).error_text();
    assert!(said.contains("nobody has confirmed") && said.contains("afar kill "), "{said}");
    far.assert_end("unknown", "yes");
    far.proxy.cut();
    assert_eq!(far.host.end_jobs(), 1);
    // Where the server answers, that is known.
    far.proxy.resume(Direction::Up);
    far.proxy.resume(Direction::Down);
    let mut client = ready(far.run(&["--kill-after", "100ms"], LISTENS));
    client.signal(Signal::TERM);
    assert_eq!(client.line().as_deref(), Some("term"));
    client.signal(Signal::TERM);
    let output = client.wait();
    assert!(output.expect_code(130).error_text().contains("is cancelled"), "{output:?}");
    far.assert_end("cancelled", "yes");
    far.host.wait_until_idle();
}

#[test]
fn without_a_connection_a_signal_is_kept_and_a_second_one_leaves() {
    let far = Far::new();
    let mut client = ready(far.run(&["-v"], LISTENS));
    far.go_away();
    client.wait_for_stderr("reconnecting");
    client.signal(Signal::TERM);
    client.wait_for_stderr("afar: TERM is sent as soon as there is a connection again");
    far.come_back();
    assert_eq!(client.line().as_deref(), Some("term"));
    client.wait_for_stderr("connected again");
    far.go_away();
    client.wait_for_stderr("connected again\nafar: ");
    client.signal(Signal::INT);
    client.wait_for_stderr("afar: INT is sent as soon as there is a connection again");
    client.signal(Signal::INT);
    let output = client.wait();
    let said = output.expect_code(255).error_text();
    assert!(said.contains("nobody has ended the command") && said.contains("afar kill "), "{said}");
    far.assert_end("unknown", "yes");
    assert_eq!(far.host.end_jobs(), 1);
}

#[test]
fn who_leaves_a_command_that_a_lost_link_ends_is_not_told_that_it_goes_on() {
    let far = Far::new();
    let client = ready(far.run(&["-v", "--on-disconnect", "kill"], LISTENS));
    far.go_away();
    client_leaves(client, "the server ends the command once it has noticed");
    far.assert_end("unknown", "yes");
    far.host.wait_until_idle();
}

fn client_leaves(mut client: Running, says: &str) {
    client.wait_for_stderr("reconnecting");
    client.signal(Signal::TERM);
    client.wait_for_stderr("TERM is sent as soon as");
    client.signal(Signal::TERM);
    let output = client.wait();
    assert!(output.expect_code(255).error_text().contains(says), "{output:?}");
}

/// On a terminal: it erases nothing of what the command has written, and stays on its line.
#[test]
fn the_status_line_stands_below_an_unfinished_line_and_does_not_wrap() {
    const COLUMNS: u16 = 40;
    let far = Far::new();
    let (target, options) = (far.target(), far.host.client_options());
    let script = "printf unfinished; read line; echo \"got $line\"; exit 3";
    let options = options.iter().map(|word| word.to_str().unwrap());
    let words: Vec<&str> =
        ["run"].into_iter().chain(options).chain([target.as_str(), "-c", script]).collect();
    let (mut terminal, run) = Terminal::all_of_afar(&far.host, &words);
    terminal.wait_for("unfinished");
    terminal.resize(24, COLUMNS);
    far.go_away();
    // The terminal makes \r\n of \n.
    assert_eq!(terminal.wait_for("\r\r\n\r\x1b[Kafar: reconnecting to "), "");
    far.come_back();
    let rest = terminal.wait_for("\r\x1b[K");
    let shown = "afar: reconnecting to ".len() + rest.chars().count();
    // As much as fits, with room for the two characters of a Ctrl-C.
    assert_eq!(shown, usize::from(COLUMNS) - 3, "{rest:?}");
    terminal.type_line("it");
    terminal.wait_for("got it");
    run.wait().expect_code(3);
}

#[test]
fn logs_that_follow_say_that_the_connection_is_away() {
    let far = Far::new();
    let mut client = ready(far.run(&["--id", "followed", "--keep", "1h"], LISTENS));
    let job = format!("{}/followed", far.target());
    let run = far.host.afar(["logs", "-f", "-v"]).args(far.host.client_options()).arg(job);
    let mut logs = run.spawn();
    assert_eq!(logs.line().as_deref(), Some("ready"));
    far.go_away();
    logs.wait_for_stderr("reconnecting");
    far.come_back();
    logs.wait_for_stderr("connected again");
    client.write(b"end\n");
    assert_eq!(client.wait().code(), 4);
    logs.wait().success();
}

/// Passes connections to a unix socket on, and takes the place of that until it is dropped.
struct UnixProxy {
    path: PathBuf,
    behind: PathBuf,
    sockets: Arc<Mutex<Vec<UnixStream>>>,
}

impl UnixProxy {
    fn in_front_of(path: &Path) -> Self {
        let behind = path.with_extension("behind");
        std::fs::rename(path, &behind).unwrap();
        let listener = UnixListener::bind(path).unwrap();
        let sockets: Arc<Mutex<Vec<UnixStream>>> = Arc::default();
        let (to, kept) = (behind.clone(), Arc::clone(&sockets));
        std::thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                let server = UnixStream::connect(&to).unwrap();
                let ends = || [client.try_clone().unwrap(), server.try_clone().unwrap()];
                let ([up_from, up_to], [down_to, down_from]) = (ends(), ends());
                std::thread::spawn(move || pass(up_from, up_to));
                std::thread::spawn(move || pass(down_from, down_to));
                kept.lock().unwrap().extend(ends());
            }
        });
        Self { path: path.to_owned(), behind, sockets }
    }

    fn cut(&self) {
        for socket in self.sockets.lock().unwrap().drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for UnixProxy {
    fn drop(&mut self) {
        self.cut();
        // Whoever cleans up asks the socket whose it is.
        let _ = std::fs::rename(&self.behind, &self.path);
    }
}

fn pass(mut from: UnixStream, mut to: UnixStream) {
    let mut buffer = [0; 4096];
    while let Ok(count) = from.read(&mut buffer)
        && count > 0
        && to.write_all(&buffer[..count]).is_ok()
    {}
    let _ = to.shutdown(Shutdown::Write);
}

/// A job that answers each line, over a link that `cut` cuts.
#[track_caller]
fn goes_on(run: Run, cut: impl Fn(&Running)) {
    let mut client = ready(run);
    for line in ["one", "two"] {
        client.write(format!("{line}\n").as_bytes());
        assert_eq!(client.line().as_deref(), Some(line));
        cut(&client);
    }
    client.write(b"three\n");
    assert_eq!(client.line().as_deref(), Some("three"));
    assert_eq!(client.wait().code(), 6);
}

const ECHOES: &str = "echo ready; cat; exit 6";

#[test]
fn fault_65_the_local_supervisor_is_reached_again() {
    let host = Host::start();
    host.run_at("local", ["--", "true"]).output().success();
    let proxy = UnixProxy::in_front_of(&host.supervisor_socket());
    let run = host.run_at("local", ["--result"]).arg(host.file("result")).args(["-c", ECHOES]);
    goes_on(run, |_| proxy.cut());
    assert!(host.json("result")["reconnects"].as_u64() >= Some(1));
}

#[test]
fn fault_65_a_host_behind_ssh_is_reached_again() {
    let host = Host::start();
    let sshd = Sshd::serving(&host, "");
    let home = sshd.home();
    let target = format!("ssh://{}@{}", host.user(), sshd.address());
    let run = host.afar(["run", "-F", "none", "--known-hosts"]).arg(home.known_hosts());
    let run = run.arg("-i").arg(home.key()).arg("--remote-afar").arg(afar_e2e::afar());
    let run = run.arg("--result").arg(host.file("result")).args([&target, "-c", ECHOES]);
    // Its ssh is all that a client has of the connection.
    goes_on(run, |client| process::kill_descendants(client.pid()));
    assert!(host.json("result")["reconnects"].as_u64() >= Some(1));
}

/// The listener remembers the ephemeral keys that others vouched for, and is gone.
#[test]
fn fault_55_a_passphrase_is_asked_for_once_over_a_listener_that_was_restarted() {
    let mut far = Far::new();
    let key = far.host.key();
    let change = ["-q", "-p", "-P", "", "-N", "open sesame", "-f", key.to_str().unwrap()];
    let _ = Run::new("ssh-keygen", change).output().success();
    let (target, options) = (far.target(), far.host.client_options());
    let options = options.iter().map(|word| word.to_str().unwrap());
    let words: Vec<&str> =
        ["run", "-v"].into_iter().chain(options).chain([target.as_str(), "-c", ECHOES]).collect();
    let (mut terminal, mut client) = Terminal::afar(&far.host, &words);
    terminal.wait_for("Passphrase for ");
    terminal.type_line("open sesame");
    assert_eq!(client.line().as_deref(), Some("ready"));
    far.host.listener().kill();
    far.go_away();
    client.wait_for_stderr("reconnecting");
    far.host.restart_listener();
    far.come_back();
    client.wait_for_stderr("connected again");
    terminal.type_line("still here");
    assert_eq!(client.line().as_deref(), Some("still here"));
    terminal.type_keys("\x04");
    assert_eq!(client.wait().code(), 6);
    assert!(!terminal.shown().contains("Passphrase"), "{}", terminal.shown());
}

/// Who only looks on, or has said that the command is to go on, ends nothing, wherever the server has
/// got with the request: to drop the job without a word would be a CLOSE (`J-2.3`).
#[test]
fn who_leaves_before_the_answer_and_wants_no_end_asks_for_none() {
    let home = Home::new();
    let host_key = home.make_key("host_key");
    let (asked, was_asked) = channel();
    let (said, was_said) = channel();
    let server = FakeServer::start(&host_key, move |server| {
        server.link.expect(Kind::Auth);
        server.link.send(&[control(Kind::AuthOk, b"{}"), job_hello()].concat());
        server.link.expect(Kind::Attach);
        asked.send(()).unwrap();
        let (frames, _) = server.link.rest();
        said.send(frames).unwrap();
    });
    home.trust(server.address(), &host_key);
    let run = home.afar(["wait", "-F", "none", "--known-hosts"]).arg(home.known_hosts());
    let client = run.arg(format!("{}/job", server.address())).spawn();
    was_asked.recv_timeout(DEADLINE).unwrap();
    client.signal(Signal::TERM);
    assert_eq!(client.wait().signal(), Some(Signal::TERM.as_raw()));
    let frames = was_said.recv_timeout(DEADLINE).unwrap();
    let has = |kind| frames.iter().any(|frame| frame.is(kind));
    assert!(has(Kind::Detach) && !has(Kind::Close), "{frames:?}");
}

/// The host has proved itself, the request is on its way, and nobody answers.
#[test]
fn a_login_that_gets_no_answer_is_told_as_that_and_not_as_a_cut() {
    let home = Home::new();
    let host_key = home.make_key("host_key");
    let server = FakeServer::start(&host_key, |server| {
        server.link.expect(Kind::Auth);
        server.link.rest();
    });
    home.trust(server.address(), &host_key);
    let run = home.afar(["run", "-v", "-F", "none", "--result"]).arg(home.file("result"));
    let run = run.args(["--connect-timeout", "300ms", "--reconnect-for", "1s", "--known-hosts"]);
    let run = run.arg(home.known_hosts()).arg(server.address().to_string()).arg("true");
    let output = run.output();
    let said = output.expect_code(255).error_text();
    assert!(said.contains("did not answer within 300ms; reconnecting"), "{said}");
    assert!(said.contains("within 1s") && !said.contains("was cut"), "{said}");
    let outcome = home.json("result");
    assert_eq!(
        (&outcome["started"], &outcome["end"]["kind"]),
        (&json!("unknown"), &json!("unknown"))
    );
}
