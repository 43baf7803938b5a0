//! The keys that a client logs in with: files, locked files, an agent, the one that was accepted
//! before, and the ephemeral one that an accepted key vouched for.
#![cfg(test)]

use std::fs::File;
use std::io::{Read as _, Write as _, pipe};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::Duration;

use afar_client::{Account, Client, Command, Error, SshConfig, Target};
use afar_e2e::raw::{FakeServer, Key, RawClient, control};
use afar_e2e::{DEADLINE, Direction, Home, Host, Output, Proxy, Run, Running, Source, Terminal};
use afar_proto::frame::Kind;
use rustix::process::Signal;

/// `afar run OPTIONS TARGET echo in` of a home; the options say what keys there are.
fn run_with(home: &Home, options: &[&str], target: &str) -> Run {
    let run = home.afar(["run", "-F", "none", "--known-hosts"]).arg(home.known_hosts());
    let run = options.iter().fold(run, Run::arg);
    run.arg("-n").arg(target).arg("--").arg("echo").arg("in")
}

#[track_caller]
fn assert_in(output: &Output) {
    assert_eq!(output.success().text(), "in\n");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What the listener has said by its end.
fn final_log(host: &Host) -> String {
    host.listener().signal(Signal::TERM);
    host.listener().wait();
    host.log()
}

fn passphrase(key: &Path, passphrase: &str) {
    let change = ["-q", "-p", "-P", "", "-N", passphrase, "-f", text(key)];
    let _ = Run::new("ssh-keygen", change).output().success();
}

#[test]
fn a_key_file_is_enough() {
    let host = Host::start();
    let key = host.key();
    assert_in(&run_with(&host, &["-i", text(&key)], &host.target()).output());
    // And it is found where ssh looks for it.
    assert_in(&run_with(&host, &[], &host.target()).output());
}

#[test]
fn a_locked_key_is_unlocked_by_the_person_at_the_terminal() {
    let host = Host::start();
    passphrase(&host.key(), "open sesame");
    let (target, known) = (host.target(), host.known_hosts());
    let words = ["run", "-F", "none", "--known-hosts", text(&known), "-n", &target, "echo", "in"];
    let (mut terminal, run) = Terminal::afar(&host, &words);
    terminal.wait_for("Passphrase for ");
    terminal.wait_for(".ssh/id_ed25519: ");
    terminal.type_line("wrong");
    terminal.wait_for("Wrong passphrase. ");
    terminal.type_line("open sesame");
    let output = run.wait();
    assert_in(&output);
    // Nothing of what was typed is shown anywhere.
    assert!(!output.error_text().contains("sesame"), "{output:?}");
    assert!(!terminal.shown().contains("sesame"));
}

#[test]
fn a_passphrase_that_stays_wrong_is_an_end() {
    let host = Host::start();
    passphrase(&host.key(), "open sesame");
    let (target, known) = (host.target(), host.known_hosts());
    let words = ["run", "-F", "none", "--known-hosts", text(&known), "-n", &target, "echo", "in"];
    let (mut terminal, run) = Terminal::afar(&host, &words);
    for _ in 0..3 {
        terminal.wait_for("Passphrase for ");
        terminal.type_line("wrong");
    }
    let output = run.wait();
    output.expect_code(255);
    assert_eq!(output.text(), "");
    assert!(output.error_text().contains("passphrase"), "{output:?}");
}

#[test]
fn a_locked_key_without_anybody_at_a_terminal_is_an_end_that_says_what_to_do() {
    let host = Host::start();
    passphrase(&host.key(), "open sesame");
    // In a session of its own, so that the terminal of whoever runs the tests is not asked.
    let run = host.program("setsid", ["--wait", text(afar_e2e::afar()), "run", "-F", "none"]);
    let run = run.arg("--known-hosts").arg(host.known_hosts());
    let output = run.arg(host.target()).arg("true").output();
    output.expect_code(255);
    assert!(output.error_text().contains("ssh-add"), "{output:?}");
    assert!(output.error_text().contains("the command was not started"), "{output:?}");
}

#[test]
fn a_passphrase_is_asked_for_with_no_connection_open() {
    let home = Home::new();
    let host_key = home.make_key("host_key");
    passphrase(&home.key(), "open sesame");
    let (ended, has_ended) = channel();
    let server = FakeServer::start(&host_key, move |server| {
        let first = server.link.next_frame();
        assert!(first.is_ok_and(|frame| frame.is(Kind::Hello)));
        let next = server.link.next_frame().unwrap();
        if next.is(Kind::AuthQuery) {
            server.link.send(&control(Kind::AuthQueryResult, br#"{"accepted":0}"#));
            ended.send(server.link.rest()).unwrap();
        } else {
            assert!(next.is(Kind::Auth), "{next:?}");
            server.link.send(&control(Kind::AuthRefused, br#"{"message":"no"}"#));
        }
    });
    home.trust(server.address(), &host_key);
    let (target, known) = (server.address().to_string(), home.known_hosts());
    let words = ["run", "-F", "none", "--known-hosts", text(&known), "-n", &target, "true"];
    let (mut terminal, run) = Terminal::afar(&home, &words);
    terminal.wait_for("Passphrase for ");
    // Nobody has typed anything, and it has gone: without an AUTH, without a request.
    let (frames, _) = has_ended.recv_timeout(DEADLINE).expect("the connection is closed by now");
    assert_eq!(frames, []);
    terminal.type_line("open sesame");
    run.wait().expect_code(255);
}

/// A run whose stdin holds some bytes; what of them is still there at its end.
fn left_of_stdin(run: Run) -> (Output, Vec<u8>) {
    let (mut ours, mut theirs) = pipe().unwrap();
    theirs.write_all(b"still here").unwrap();
    drop(theirs);
    let stdin = ours.try_clone().unwrap();
    let output = run.stdin_from(Source::File(File::from(OwnedFd::from(stdin)))).output();
    let mut left = Vec::new();
    ours.read_to_end(&mut left).unwrap();
    (output, left)
}

#[test]
fn nothing_of_stdin_is_read_for_a_command_that_is_not_started() {
    let host = Host::start();
    let (output, left) = left_of_stdin(host.run(["/no/such/program"]));
    output.expect_code(127);
    assert_eq!(left, b"still here");
    // What a job is started for is read: nothing is left.
    let (output, left) = left_of_stdin(host.run(["cat"]));
    assert_eq!((output.success().text(), left), ("still here", Vec::new()));
    host.write("authorized_keys", "");
    let (output, left) = left_of_stdin(host.run(["cat"]));
    output.expect_code(255);
    assert_eq!(left, b"still here");
}

#[test]
fn a_refusal_is_said_however_large_the_request_behind_it_is() {
    let host = Host::start();
    host.write("authorized_keys", "");
    // Two megabytes, in arguments that the kernel takes.
    let word = "x".repeat(100_000);
    for _ in 0..20 {
        let run = (0..15).fold(host.run(["--", "echo"]), |run, _| run.arg(&word));
        let output = run.output();
        output.expect_code(255);
        let said = output.error_text();
        assert!(said.contains("accepts none of the keys"), "{said}");
        assert!(said.contains("the command was not started"), "{said}");
    }
}

/// An ssh-agent of the test's.
struct Agent {
    running: Running,
    socket: PathBuf,
}

impl Agent {
    fn start(home: &Home) -> Self {
        // The path of a socket is at most 108 bytes.
        let socket = home.file("agent");
        let mut running = home.program("ssh-agent", ["-D", "-a", text(&socket)]).spawn();
        // Its first line says where it listens.
        assert!(running.line().is_some_and(|line| line.contains("SSH_AUTH_SOCK")));
        Self { running, socket }
    }

    fn add(&self, home: &Home, key: &Path) {
        let run = home.program("ssh-add", ["-q", text(key)]);
        let _ = run.env("SSH_AUTH_SOCK", &self.socket).output().success();
    }

    fn stop(self) {
        self.running.signal(Signal::TERM);
        let _ = self.running.wait();
    }
}

/// A key of this type, made by ssh-keygen.
fn make_key(home: &Home, name: &str, options: &[&str]) -> PathBuf {
    let path = home.file(name);
    let arguments = ["-q", "-N", "", "-C", "e2e", "-f", text(&path)];
    let _ = Run::new("ssh-keygen", arguments.iter().chain(options)).output().success();
    path
}

#[test]
fn an_agent_signs_with_every_type_of_key_that_it_holds() {
    let host = Host::start();
    let agent = Agent::start(&host);
    std::fs::remove_file(host.key()).unwrap();
    for (name, options) in [
        ("ed25519", &["-t", "ed25519"][..]),
        ("p256", &["-t", "ecdsa", "-b", "256"]),
        ("p384", &["-t", "ecdsa", "-b", "384"]),
        ("p521", &["-t", "ecdsa", "-b", "521"]),
        ("rsa2048", &["-t", "rsa", "-b", "2048"]),
        ("rsa4096", &["-t", "rsa", "-b", "4096"]),
    ] {
        let key = make_key(&host, name, options);
        agent.add(&host, &key);
        host.write("authorized_keys", Home::public_line(&key));
        // The private half is the agent's alone.
        std::fs::remove_file(&key).unwrap();
        let run = run_with(&host, &[], &host.target()).env("SSH_AUTH_SOCK", &agent.socket);
        let output = run.output();
        assert_eq!(output.text(), "in\n", "{name}: {output:?}");
    }
    // Without the agent none of them is there.
    let output = run_with(&host, &[], &host.target()).output();
    assert!(output.expect_code(255).error_text().contains("no key"), "{output:?}");
    agent.stop();
}

#[test]
fn a_file_of_every_type_and_format_of_key_is_enough() {
    let host = Host::start();
    for (name, options) in [
        ("p256", &["-t", "ecdsa", "-b", "256"][..]),
        ("p384", &["-t", "ecdsa", "-b", "384"]),
        ("p521", &["-t", "ecdsa", "-b", "521"]),
        ("rsa3072", &["-t", "rsa", "-b", "3072"]),
        ("pem", &["-t", "rsa", "-b", "2048", "-m", "PEM"]),
        ("pkcs8", &["-t", "ecdsa", "-m", "PKCS8"]),
    ] {
        let key = make_key(&host, name, options);
        host.write("authorized_keys", Home::public_line(&key));
        let output = run_with(&host, &["-i", text(&key)], &host.target()).output();
        assert_eq!(output.text(), "in\n", "{name}: {output:?}");
    }
}

#[test]
fn a_key_file_that_cannot_be_used_says_why() {
    let host = Host::start();
    for (name, options, why) in [
        ("small", &["-t", "rsa", "-b", "1024"][..], "1024 bits"),
        ("locked_pem", &["-t", "rsa", "-m", "PEM", "-N", "secret"], "ssh-keygen -p -f"),
    ] {
        let key = make_key(&host, name, options);
        std::fs::remove_file(key.with_extension("pub")).unwrap();
        let output = run_with(&host, &["-i", text(&key)], &host.target()).output();
        let said = output.expect_code(255).error_text();
        assert!(said.contains(why) && said.contains(name), "{said}");
        assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    }
}

#[test]
fn of_many_keys_in_an_agent_the_one_that_is_authorised_is_found() {
    let host = Host::start();
    let agent = Agent::start(&host);
    let keys: Vec<PathBuf> = (0..12)
        .map(|number| make_key(&host, &format!("key{number}"), &["-t", "ed25519"]))
        .collect();
    keys.iter().for_each(|key| agent.add(&host, key));
    std::fs::remove_file(host.key()).unwrap();
    host.write("authorized_keys", Home::public_line(&keys[11]));
    let run = run_with(&host, &[], &host.target()).env("SSH_AUTH_SOCK", &agent.socket);
    assert_in(&run.output());
    // sshd would have closed the connection after six.
    host.write("authorized_keys", "");
    let run = run_with(&host, &[], &host.target()).env("SSH_AUTH_SOCK", &agent.socket);
    let output = run.output();
    assert!(output.expect_code(255).error_text().contains("accepts none of the keys"));
    agent.stop();
}

#[test]
fn an_agent_that_is_gone_or_dumb_does_not_matter_where_a_file_does() {
    let host = Host::start();
    let nothing = host.file("no-agent");
    assert_in(&run_with(&host, &[], &host.target()).env("SSH_AUTH_SOCK", &nothing).output());
    // A file that is no socket.
    let file = host.write("file", "");
    assert_in(&run_with(&host, &[], &host.target()).env("SSH_AUTH_SOCK", &file).output());
}

/// Three key files, of which the server takes one, and what the client sends for a login.
struct ThreeKeys {
    host: Host,
    keys: Vec<PathBuf>,
    proxy: Proxy,
}

impl ThreeKeys {
    fn new() -> Self {
        let host = Host::start();
        let keys: Vec<PathBuf> = (0..3).map(|n| host.make_key(&format!("key{n}"))).collect();
        let proxy = Proxy::start(host.address());
        host.trust(proxy.address(), &host.host_key());
        Self { host, keys, proxy }
    }

    fn authorise(&self, index: usize) {
        self.host.write("authorized_keys", Home::public_line(&self.keys[index]));
    }

    /// A run with all three keys; how many bytes the client sent for it.
    fn run(&self) -> (Output, u64) {
        let before = self.proxy.passed(Direction::Up);
        let [first, second, third] = [0, 1, 2].map(|index| text(&self.keys[index]));
        let options = ["-i", first, "-i", second, "-i", third];
        let target = self.host.target_via(self.proxy.address());
        let output = run_with(&self.host, &options, &target).output();
        (output, self.proxy.passed(Direction::Up) - before)
    }

    fn remembered(&self) -> String {
        std::fs::read_to_string(self.host.file("home/state/afar/accepted_keys")).unwrap_or_default()
    }

    fn fingerprint(&self, index: usize) -> String {
        let output = Run::new("ssh-keygen", ["-l", "-f", text(&self.keys[index])]).output();
        output.success().text().split(' ').nth(1).unwrap().to_owned()
    }
}

#[test]
fn the_key_that_was_accepted_is_used_without_asking_the_next_time() {
    let three = ThreeKeys::new();
    three.authorise(2);
    let (output, asking) = three.run();
    assert_in(&output);
    assert!(three.remembered().contains(&three.fingerprint(2)), "{}", three.remembered());
    let (output, remembering) = three.run();
    assert_in(&output);
    // A question about three keys is some hundred bytes, which are not sent any more.
    assert!(remembering + 150 < asking, "{remembering} bytes, {asking} with a question");
}

#[test]
fn a_remembered_key_that_was_removed_gives_way_to_another() {
    let three = ThreeKeys::new();
    three.authorise(2);
    assert_in(&three.run().0);
    three.authorise(0);
    assert_in(&three.run().0);
    assert!(three.remembered().contains(&three.fingerprint(0)), "{}", three.remembered());
    assert!(!three.remembered().contains(&three.fingerprint(2)), "{}", three.remembered());
    // And with none of them there is nothing to remember.
    three.host.write("authorized_keys", "");
    let (output, _) = three.run();
    assert!(output.expect_code(255).error_text().contains("accepts none of the keys"));
    for index in 0..3 {
        assert!(output.error_text().contains(&three.fingerprint(index)), "{output:?}");
        assert!(!three.remembered().contains(&three.fingerprint(index)));
    }
    // What is remembered is a hint and no more.
    three.authorise(1);
    let rubbish = "\u{0}\n nonsense\nroot@127.0.0.1:1 SHA256:x\n";
    three.host.write("home/state/afar/accepted_keys", rubbish);
    assert_in(&three.run().0);
}

// The ephemeral key, through the library: one client, several connections.

/// A client of the library with the host's key file, and no other.
fn client(host: &Host) -> Client {
    let account = Account { name: host.user().into(), home: host.file("home") };
    Client::builder()
        .identity(host.key())
        .agent(false)
        .known_hosts(host.known_hosts())
        .ssh_config(SshConfig::None)
        .delegate_for(Some(Duration::from_secs(3600)))
        .account(move || Some(account.clone()))
        .build()
}

async fn run_once(client: &Client, target: &Target) -> Result<Vec<u8>, Error> {
    let job = client.run(target, Command::argv(["echo", "in"])).await?;
    Ok(job.output(1024).await?.stdout.to_vec())
}

#[tokio::test]
async fn an_ephemeral_key_logs_in_again_until_its_key_is_removed() {
    let host = Host::builder().serve_arg("-v").start();
    let target = Target::parse(&host.target()).unwrap();
    let client = client(&host);
    assert_eq!(run_once(&client, &target).await.unwrap(), b"in\n");
    // Without its key file it has only what the first login has left it.
    std::fs::rename(host.key(), host.file("hidden")).unwrap();
    for _ in 0..3 {
        assert_eq!(run_once(&client, &target).await.unwrap(), b"in\n");
    }
    // Another client has nothing.
    assert!(run_once(&self::client(&host), &target).await.is_err());
    // The restrictions of its key are its own, as they are now.
    let line = Home::public_line(&host.key());
    host.write("authorized_keys", format!("command=\"echo forced\" {line}"));
    assert_eq!(run_once(&client, &target).await.unwrap(), b"forced\n");
    host.write("authorized_keys", "");
    assert!(run_once(&client, &target).await.is_err());
    // It is forgotten by the client then, and comes back with its key only.
    host.write("authorized_keys", line);
    assert!(run_once(&client, &target).await.is_err());
    std::fs::rename(host.file("hidden"), host.key()).unwrap();
    assert_eq!(run_once(&client, &target).await.unwrap(), b"in\n");
    let log = final_log(&host);
    assert!(log.contains("vouched for it: "), "{log}");
}

#[test]
fn an_ephemeral_key_vouches_for_no_other_one_and_is_gone_with_the_listener() {
    let mut host = Host::start();
    let (key, ephemeral, third) = (Key::of_file(&host.key()), Key::fresh(), Key::fresh());
    let attempt = |host: &Host, key: &Key, to: &Key| {
        let mut client = RawClient::connect(host.address());
        let auth = client.auth_of(key, &key.request_delegating(host.user(), to, 60));
        client.link.send(&[client.hello(), auth].concat());
        client.link.next_frame().unwrap()
    };
    let ok = attempt(&host, &key, &ephemeral);
    assert_eq!(ok.json()["delegate_lifetime_s"], 60);
    let ok = attempt(&host, &ephemeral, &third);
    assert!(ok.is(Kind::AuthOk) && ok.json()["delegate_lifetime_s"].is_null(), "{ok:?}");
    assert!(attempt(&host, &third, &third).is(Kind::AuthRefused));
    host.listener().kill();
    host.restart_listener();
    assert!(attempt(&host, &ephemeral, &third).is(Kind::AuthRefused));
}

#[test]
fn nobody_vouches_for_the_key_of_another() {
    // The holder of a restricted key says that another listed key stands in for its own.
    let home = Home::new();
    let restricted = home.make_key("restricted");
    let host = Host::start();
    let lines = [
        format!("command=\"echo restricted\" {}", Home::public_line(&restricted)),
        Home::public_line(&host.key()),
    ];
    host.write("authorized_keys", lines.concat());
    let (restricted, free) = (Key::of_file(&restricted), Key::of_file(&host.key()));
    let mut client = RawClient::connect(host.address());
    let request = restricted.request_delegating(host.user(), &free, 3600);
    let flight = [client.hello(), client.auth_of(&restricted, &request)].concat();
    client.link.send(&flight);
    client.link.expect(Kind::AuthOk);
    // The other one is as free as before.
    assert_eq!(host.script("echo free").output().success().text(), "free\n");
}
