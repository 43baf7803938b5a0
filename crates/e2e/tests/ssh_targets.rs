//! Targets `ssh://HOST`, through a real ssh and sshd, and `afar stdio` behind them.
#![cfg(test)]

use std::fs::{self, File};
use std::io::Read as _;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use afar_e2e::{Home, Host, Output, Random, Run, Sink, Source, Sshd, Terminal, process};
use rustix::fs::OFlags;
use rustix::process::Signal;

/// A host whose supervisor is reached through an sshd. Its listener is not used; it is there
/// because a [`Host`] cleans up after itself.
struct Far {
    sshd: Sshd,
    host: Host,
}

impl Far {
    fn new() -> Self {
        Self::configured("")
    }

    fn configured(configuration: &str) -> Self {
        let host = Host::start();
        Self { sshd: Sshd::serving(&host, configuration), host }
    }

    fn target(&self) -> String {
        format!("ssh://{}@{}", self.host.user(), self.sshd.address())
    }

    /// `afar run OPTIONS ssh://…`, with all that ssh needs, but for where afar is.
    fn bare(&self) -> Run {
        let home = self.sshd.home();
        let run = self.host.afar(["run", "-F", "none", "--known-hosts"]).arg(home.known_hosts());
        run.arg("-i").arg(home.key())
    }

    fn run(&self, words: &[&str]) -> Run {
        let run = self.bare().arg("--remote-afar").arg(afar_e2e::afar()).arg(self.target());
        words.iter().fold(run, Run::arg)
    }

    fn script(&self, script: &str) -> Run {
        self.run(&["-c", script])
    }
}

/// One line, with the phase in front, that says that nothing was started.
#[track_caller]
fn assert_fails(output: &Output, phase: &str, words: &[&str]) {
    output.expect_code(255);
    assert_eq!(output.text(), "");
    let last = output.error_text().lines().last().unwrap_or_default();
    assert!(last.starts_with(&format!("afar: {phase}: ")), "{output:?}");
    for word in words.iter().chain(&["the command was not started"]) {
        assert!(last.contains(word), "{word:?} is not in {last:?}");
    }
}

/// `W-3.3`
#[test]
fn everything_of_run_works_over_ssh() {
    let far = Far::new();
    let output = far.script("echo out; echo err >&2; exit 3").output();
    output.expect_code(3);
    assert_eq!((output.text(), output.error_text()), ("out\n", "err\n"));
    // The argv is exact, whatever shells are on the way.
    let words = ["--", "printf", "%s|", "a b", "$HOME", "'", "", "*", "\\"];
    assert_eq!(far.run(&words).output().success().text(), "a b|$HOME|'||*|\\|");
    far.run(&["--", "sh", "-c", "kill -9 $$"]).output().expect_code(137);
    far.run(&["--timeout", "200ms", "--", "sleep", "100"]).output().expect_code(124);
    far.run(&["--", "no-such-program"]).output().expect_code(127);
    assert_eq!(far.run(&["--", "cat"]).stdin("fed").output().success().text(), "fed");

    let result = far.host.file("result.json");
    let run = far.run(&["--result", result.to_str().unwrap(), "--", "echo", "x"]);
    run.output().success();
    let result = far.host.json("result.json");
    assert_eq!(result["phase"], "done");
    assert_eq!(result["target"], far.target());
    assert_eq!(result["streams"]["stdout"]["bytes"], 2);
}

#[test]
fn what_a_run_is_told_arrives_over_ssh_too() {
    let far = Far::new();
    let output = far.run(&["--cwd", "/usr", "-e", "A=it's a b", "-c", "pwd; echo \"$A\""]).output();
    assert_eq!(output.success().text(), "/usr\nit's a b\n");
    let output = far.run(&["--merge", "-c", "echo a; echo b >&2; echo c"]).output();
    assert_eq!((output.success().text(), output.error_text()), ("a\nb\nc\n", ""));
    // ssh's own words are none of the events.
    let output = far.run(&["--json", "-c", "printf out; printf err >&2; exit 3"]).output();
    let parse = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
    let events: Vec<_> = output.expect_code(3).text().lines().map(parse).collect();
    assert_eq!(events[0]["event"], "started");
    for (stream, text) in [("stdout", "out"), ("stderr", "err")] {
        let mut outputs = events.iter().filter(|event| event["event"] == "output");
        let output = outputs.find(|event| event["stream"] == stream).unwrap();
        assert_eq!(output["data"], text);
    }
    let last = events.last().unwrap();
    assert_eq!((&last["event"], &last["target"]), (&"finished".into(), &far.target().into()));
    assert_eq!(last["end"], serde_json::json!({"kind": "exited", "code": 3}));
}

#[test]
fn a_session_lasts_from_one_connection_of_ssh_to_the_next() {
    let far = Far::new();
    let session = |words: &[&str]| far.run(&[&["--session", "s"], words].concat()).output();
    session(&["--", "cd", "/usr"]).success();
    session(&["-e", "V=a b", "-c", "f() { echo \"f $V\" >&2; return 3; }"]).success();
    let output = session(&["--merge", "-c", "pwd; f"]);
    assert_eq!(output.expect_code(3).text(), "/usr\nf a b\n");
    assert_eq!(session(&["-c", "echo $?"]).success().text(), "3\n");
    // Whoever comes by another way as the same user, under the same grant, finds it as well.
    let local = far.host.run_at("local", ["--session", "s", "-c", "pwd"]).output();
    assert_eq!(local.success().text(), "/usr\n");
    let output = session(&["--cwd", "/", "--", "true"]);
    assert!(output.expect_code(255).error_text().contains("--cwd"), "{output:?}");
    let result = far.run(&["-q", "--session", "s", "--result", "-", "-c", "exit 4"]).output();
    let outcome: serde_json::Value = serde_json::from_str(result.expect_code(4).text()).unwrap();
    assert_eq!(outcome["session_restarted"], true);
}

#[test]
fn large_streams_arrive_whole_in_both_directions() {
    let far = Far::new();
    let bytes = 30_000_000;
    let run = far.run(&["--", "cat"]).stdin_from(Source::Random { seed: 1, bytes });
    let output = run.stdout_to(Sink::Digest).output();
    let mut expected = blake3::Hasher::new();
    let mut random = Random::new(1).take(bytes);
    std::io::copy(&mut random, &mut expected).unwrap();
    let digest = output.success().digest.clone().unwrap();
    assert_eq!((digest.bytes, digest.blake3), (bytes, expected.finalize().to_hex().to_string()));
}

#[test]
fn nothing_of_ours_is_left_when_the_command_has_ended() {
    let far = Far::new();
    // The reaper fails the test if ssh stays.
    far.script("echo x").reaped().output().success();
    far.script("exec >&- 2>&-; sleep 0").reaped().output().success();
}

/// `W-3.3`
#[test]
fn a_greeting_of_the_login_shell_is_skipped_and_told_to_who_wants_to_know() {
    let command = "printf 'Welcome to \\033[31mFar\\n> '; exec sh -c \"$SSH_ORIGINAL_COMMAND\"";
    let far = Far::configured(&format!("ForceCommand {command}"));
    let output = far.script("echo in").output();
    assert_eq!((output.success().text(), output.error_text()), ("in\n", ""));
    let output = far.run(&["-v", "--", "echo", "in"]).output();
    assert_eq!(output.success().text(), "in\n");
    assert!(output.error_text().contains(r"Welcome to \x1b[31mFar"), "{output:?}");
}

#[test]
fn another_program_at_the_other_end_is_named_by_what_it_prints() {
    let far = Far::configured("ForceCommand echo This account is closed; exit 1");
    assert_fails(&far.script("echo in").output(), "connect", &["This account is closed"]);
    let far = Far::configured("ForceCommand yes hello");
    assert_fails(&far.script("echo in").output(), "connect", &["is not afar: hello"]);
}

#[test]
fn nothing_is_sent_to_a_program_that_is_not_afar() {
    // A shell that reads its stdin would execute what a script holds.
    let home = Home::new();
    let (received, program) = (home.file("received"), home.file("not-ssh"));
    fs::write(&program, format!("#!/bin/sh\nexec cat >'{}'\n", received.display())).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    // Without a terminal, at which a person would be given more time.
    let run = home.program("setsid", ["--wait"]).arg(afar_e2e::afar()).arg("run");
    let run = run.args(["--connect-timeout", "500ms", "--ssh"]).arg(&program);
    let output = run.args(["ssh://web", "-c", "secret"]).output();
    assert_fails(&output, "connect", &["web did not answer within 500ms"]);
    assert_eq!(fs::read(&received).unwrap(), b"");
}

#[test]
fn the_phase_is_the_one_that_ssh_reached() {
    let far = Far::new();
    let missing = far.bare().arg("--remote-afar").arg("/no/afar").arg(far.target());
    let words = ["/no/afar is not installed on 127.0.0.1", "--remote-afar"];
    assert_fails(&missing.arg("--").arg("true").output(), "connect", &words);

    let stranger = Home::new();
    let refused = far.host.afar(["run", "-F", "none", "-i"]).arg(stranger.key());
    let refused = refused.arg("--known-hosts").arg(far.sshd.home().known_hosts());
    let refused = refused.arg(far.target()).arg("--").arg("true").output();
    assert_fails(&refused, "authenticate", &["Permission denied"]);

    let unknown = far.host.afar(["run", "-F", "none", "-i"]).arg(far.sshd.home().key());
    let unknown = unknown.arg("--known-hosts").arg(far.host.file("nothing-known"));
    let unknown = unknown.arg(far.target()).arg("--").arg("true").output();
    assert_fails(&unknown, "authenticate", &["Host key verification failed"]);

    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let closed = far.host.afar(["run", "-F", "none"]).arg(format!("ssh://{address}"));
    assert_fails(&closed.arg("--").arg("true").output(), "connect", &["Connection refused"]);

    let program = far.bare().arg("--ssh").arg("no-such-ssh").arg(far.target());
    let words = ["no-such-ssh", "--ssh"];
    assert_fails(&program.arg("--").arg("true").output(), "connect", &words);
}

#[test]
fn a_host_that_does_not_answer_is_given_up() {
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = format!("ssh://{}", mute.local_addr().unwrap());
    let home = Home::new();
    let run = home.afar(["run", "-F", "none", "--connect-timeout", "1s", &target, "true"]);
    assert_fails(&run.reaped().output(), "connect", &["127.0.0.1"]);
}

#[test]
fn a_ctrl_c_goes_to_the_command_and_not_to_ssh() {
    let far = Far::new();
    let script = "trap 'echo caught; exit 7' INT; echo ready; while :; do sleep 0.1; done";
    let words =
        ["--known-hosts", far.sshd.home().known_hosts().to_str().unwrap(), "-i"].map(str::to_owned);
    let key = far.sshd.home().key();
    let (afar, target) = (afar_e2e::afar(), far.target());
    let mut all = vec!["run", "-F", "none"];
    all.extend(words.iter().map(String::as_str));
    all.extend([key.to_str().unwrap(), "--remote-afar", afar.to_str().unwrap(), &target]);
    all.extend(["-c", script]);
    let (mut terminal, mut run) = Terminal::afar(&far.host, &all);
    assert_eq!(run.line().as_deref(), Some("ready"));
    // What the terminal's driver does with it: the signal goes to all of the foreground group.
    terminal.type_line("\u{3}");
    assert_eq!(run.line().as_deref(), Some("caught"));
    run.wait().expect_code(7);
}

#[test]
fn ssh_asks_at_the_terminal() {
    let far = Far::new();
    let locked = far.sshd.home().file("locked");
    fs::copy(far.sshd.home().key(), &locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o600)).unwrap();
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-p", "-P", "", "-N", "open sesame", "-f"]).arg(&locked);
    assert!(keygen.output().unwrap().status.success());
    let known = far.sshd.home().known_hosts();
    let (afar, target) = (afar_e2e::afar(), far.target());
    let words = [
        "run",
        "-F",
        "none",
        "--known-hosts",
        known.to_str().unwrap(),
        "-i",
        locked.to_str().unwrap(),
        "--remote-afar",
        afar.to_str().unwrap(),
        "-n",
        &target,
        "echo",
        "in",
    ];
    let (mut terminal, run) = Terminal::afar(&far.host, &words);
    terminal.wait_for("Enter passphrase for key");
    terminal.type_line("open sesame");
    assert_eq!(run.wait().success().text(), "in\n");

    // Whoever is told to end while ssh asks leaves the terminal as it was.
    let (mut terminal, run) = Terminal::afar(&far.host, &words);
    terminal.wait_for("Enter passphrase for key");
    assert!(!terminal.shows_what_is_typed());
    run.signal(Signal::TERM);
    let output = run.wait();
    assert!(output.error_text().contains("the command was not started"), "{output:?}");
    assert!(terminal.shows_what_is_typed());
}

#[test]
fn a_lost_link_is_told_and_the_command_goes_on() {
    let far = Far::new();
    let started = || {
        let run = far.script("echo $$; exec sleep 300").args(["--reconnect-for", "0"]);
        let mut run = run.spawn();
        let pid = run.line().unwrap().parse().unwrap();
        (run, process::Process::open(pid).unwrap())
    };
    let find = |root: u32, name: &str| {
        let all = process::descendants(root);
        let is_it =
            |command: &str| command.split(' ').next().is_some_and(|word| word.ends_with(name));
        let found = all.into_iter().find(|entry| is_it(&entry.command));
        process::Process::open(found.unwrap().pid).unwrap()
    };
    let (run, job) = started();
    find(run.pid(), "/ssh").kill();
    let output = run.wait();
    output.expect_code(255);
    assert!(output.error_text().contains("the command was started"), "{output:?}");
    assert!(job.is_running());
    job.kill();

    // The same when it is we who are gone.
    let (run, job) = started();
    run.process().kill();
    assert_eq!(run.wait().signal(), Some(9));
    assert!(job.is_running());
    job.kill();
}

/// Starts `afar stdio` with one socket as stdin and stdout, as sshd may.
fn stdio(home: &Home) -> (UnixStream, File, std::process::Child) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let kept = File::from(OwnedFd::from(theirs.try_clone().unwrap()));
    let mut command = Command::new(afar_e2e::afar());
    command.arg("stdio").env_clear().envs(home.environment());
    command.stdin(OwnedFd::from(theirs.try_clone().unwrap())).stdout(OwnedFd::from(theirs));
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    (ours, kept, child)
}

/// `W-3.3`
#[test]
fn stdio_leaves_its_descriptors_as_they_are_and_ends_with_its_stdin() {
    let host = Host::start();
    let (mut ours, kept, mut child) = stdio(&host);
    let mut preamble = [0; 14];
    ours.read_exact(&mut preamble).unwrap();
    assert_eq!(&preamble, b"\0AFAR-STDIO/1\n");
    // The flag would be shared with whoever has the descriptor too.
    assert!(!rustix::fs::fcntl_getfl(&kept).unwrap().contains(OFlags::NONBLOCK));
    drop(kept);
    ours.shutdown(std::net::Shutdown::Write).unwrap();
    // The supervisor's own first words, and then the end.
    ours.read_to_end(&mut Vec::new()).unwrap();
    assert!(child.wait().unwrap().success());
}

/// `W-3.3`
#[test]
fn stdio_that_has_no_supervisor_says_so_in_the_protocol() {
    let far = Far::configured("");
    let run = far.host.file("run");
    fs::write(run.join("afar"), "in the way").unwrap();
    let output = far.run(&["--", "true"]).output();
    fs::remove_file(run.join("afar")).unwrap();
    output.expect_code(255);
    let said = output.error_text();
    assert!(
        said.contains("the server can't run commands now") && said.contains("run/afar"),
        "{said}"
    );
    assert!(said.contains("the command was not started"), "{said}");
}

#[test]
fn stdio_is_not_for_people() {
    let home = Home::new();
    let (_terminal, run) = Terminal::afar(&home, &["stdio"]);
    let output = run.wait();
    output.expect_code(255);
    assert!(output.error_text().contains("ssh://"), "{output:?}");
}

/// A program for `ProxyCommand`: connects its stdin and stdout to a host and port.
const RELAY: &str = "\
import socket, sys, threading
link = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def up():
    while data := sys.stdin.buffer.read1(65536):
        link.sendall(data)
    link.shutdown(socket.SHUT_WR)
threading.Thread(target=up, daemon=True).start()
while data := link.recv(65536):
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
";

#[test]
fn a_proxy_of_the_configuration_is_named_and_ssh_goes_through_it() {
    let far = Far::new();
    let (relay, home) = (far.host.write("relay.py", RELAY), far.sshd.home());
    let address = far.sshd.address();
    let config = far.host.write(
        "ssh_config",
        format!(
            "Host behind\n HostName {}\n Port {}\n User {}\n IdentityFile {}\n \
             UserKnownHostsFile {}\n ProxyCommand python3 {} %h %p\n",
            address.ip(),
            address.port(),
            far.host.user(),
            home.key().display(),
            home.known_hosts().display(),
            relay.display()
        ),
    );
    let run = |target: &str| {
        let run = far.host.afar(["run", "-F"]).arg(&config).arg("--remote-afar");
        run.arg(afar_e2e::afar()).arg(target).arg("--").arg("echo").arg("in").output()
    };
    assert_fails(&run("behind"), "resolve", &["ProxyCommand", "ssh://behind"]);
    assert_eq!(run("ssh://behind").success().text(), "in\n");
}
