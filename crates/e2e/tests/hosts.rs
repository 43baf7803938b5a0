//! Whether the host that answers is the one that the user knows: `known_hosts` as ssh has it, and
//! what is said where ssh would ask.
#![cfg(test)]

use std::fs;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use afar_e2e::{Home, Host, Output, Run, Running, Terminal};

/// A host of which nothing is known yet.
struct Stranger {
    host: Host,
}

impl Stranger {
    fn new() -> Self {
        let host = Host::start();
        // The rig lets its client trust the host from the start.
        fs::remove_file(host.known_hosts()).unwrap();
        Self { host }
    }

    fn know(&self, lines: &str) {
        self.host.write("home/.ssh/known_hosts", lines);
    }

    fn known(&self) -> String {
        fs::read_to_string(self.host.known_hosts()).unwrap_or_default()
    }

    /// A line for the host's key under a name.
    fn line(&self, name: &str) -> String {
        format!("{name} {}", Home::public_line(&self.host.host_key()))
    }

    fn port(&self) -> u16 {
        self.host.address().port()
    }

    fn name(&self) -> String {
        format!("[127.0.0.1]:{}", self.port())
    }

    /// Any command that connects, without a terminal at which somebody could be asked.
    fn afar(&self, command: &str, options: &[&str]) -> Run {
        let words = ["--wait", afar_e2e::afar().to_str().unwrap(), command, "-F", "none"];
        let run = self.host.program("setsid", words).arg("-i").arg(self.host.key());
        let run = run.arg("--known-hosts").arg(self.host.known_hosts());
        options.iter().fold(run, Run::arg).arg(self.host.target())
    }

    fn run(&self, options: &[&str]) -> Output {
        self.afar("run", options).arg("--").arg("echo").arg("in").output()
    }

    #[track_caller]
    fn assert_in(&self, options: &[&str]) -> Output {
        let output = self.run(options);
        assert_eq!(output.success().text(), "in\n");
        output
    }

    /// The line that says why the host is not trusted. `known_hosts` stays as it is.
    #[track_caller]
    fn assert_refused(&self, options: &[&str]) -> String {
        let before = self.known();
        let output = self.run(options);
        output.expect_code(255);
        assert_eq!(output.text(), "");
        assert_eq!(self.known(), before);
        let said = output.error_text().to_owned();
        assert!(said.contains("the command was not started"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        said
    }
}

fn fingerprint(key: &Path) -> String {
    let output = Run::new("ssh-keygen", ["-l", "-f", key.to_str().unwrap()]).output();
    output.success().text().split(' ').nth(1).unwrap().to_owned()
}

fn make_ecdsa_key(home: &Home) -> PathBuf {
    let path = home.file("ecdsa");
    let arguments = ["-q", "-t", "ecdsa", "-N", "", "-f", path.to_str().unwrap()];
    let _ = Run::new("ssh-keygen", arguments).output().success();
    path
}

/// The fields of a public key's line.
fn key_fields(key: &Path) -> String {
    Home::public_line(key).split(' ').take(2).collect::<Vec<_>>().join(" ")
}

#[test]
fn an_unknown_host_is_refused_where_nobody_can_be_asked_and_it_is_said_what_to_do() {
    let stranger = Stranger::new();
    let said = stranger.assert_refused(&[]);
    assert!(said.contains(&stranger.name()), "{said}");
    assert!(said.contains(&fingerprint(&stranger.host.host_key())), "{said}");
    assert!(said.contains("afar trust") && said.contains("--accept-new"), "{said}");
    assert!(!stranger.host.known_hosts().exists());
}

#[test]
fn accept_new_trusts_at_first_sight_and_remembers_host_and_port() {
    let stranger = Stranger::new();
    let output = stranger.assert_in(&["--accept-new"]);
    assert!(output.error_text().contains(&fingerprint(&stranger.host.host_key())));
    let key = key_fields(&stranger.host.host_key());
    assert_eq!(stranger.known(), format!("{} {key}\n", stranger.name()));
    // From now on it is known; nothing is said, and nothing written twice.
    let known = stranger.known();
    assert_eq!(stranger.assert_in(&[]).error_text(), "");
    assert_eq!(stranger.assert_in(&["--accept-new"]).error_text(), "");
    assert_eq!(stranger.known(), known);
    // ssh-keygen finds it where ssh would look for it.
    let file = stranger.host.known_hosts();
    let words = ["-F", &stranger.name(), "-f", file.to_str().unwrap()];
    let _ = Run::new("ssh-keygen", words).output().success();
}

#[test]
fn accept_new_with_quiet_says_nothing() {
    let stranger = Stranger::new();
    assert_eq!(stranger.assert_in(&["--accept-new", "-q"]).error_text(), "");
    assert_ne!(stranger.known(), "");
}

#[test]
fn what_is_known_is_kept_when_a_host_is_added() {
    let stranger = Stranger::new();
    // Without a line end, as an editor may leave it, and with what is no line at all.
    let before = "# mine\nother ssh-ed25519 AAAA\n\n|1|x|y nonsense\nlast ssh-rsa BBBB";
    stranger.know(before);
    stranger.assert_in(&["--accept-new"]);
    let key = key_fields(&stranger.host.host_key());
    assert_eq!(stranger.known(), format!("{before}\n{} {key}\n", stranger.name()));
}

#[test]
fn fault_81_a_changed_key_stops_hard_and_both_fingerprints_are_said() {
    let stranger = Stranger::new();
    let old = stranger.host.make_key("old");
    stranger.know(&format!("{} {}", stranger.name(), Home::public_line(&old)));
    // No option that trusts helps.
    for options in [&[][..], &["--accept-new"]] {
        let said = stranger.assert_refused(options);
        assert!(said.contains("has changed"), "{said}");
        assert!(said.contains(&fingerprint(&old)), "{said}");
        assert!(said.contains(&fingerprint(&stranger.host.host_key())), "{said}");
        assert!(said.contains("known_hosts:1"), "{said}");
    }
    // Not before somebody has compared, and says so.
    let output = stranger.afar("trust", &[]).output();
    assert!(output.expect_code(255).error_text().contains("has changed"), "{output:?}");
    let output = stranger.afar("trust", &["--replace"]).output();
    output.expect_code(255);
    let right = fingerprint(&stranger.host.host_key());
    let wrong = fingerprint(&old);
    let output = stranger.afar("trust", &["--replace", "--fingerprint", &wrong]).output();
    output.expect_code(255);
    let _ = stranger.afar("trust", &["--replace", "--fingerprint", &right]).output().success();
    stranger.assert_in(&[]);
    assert!(!stranger.known().contains(&key_fields(&old)), "{}", stranger.known());
}

#[test]
fn a_new_type_of_key_of_a_known_host_is_not_new() {
    let stranger = Stranger::new();
    let ecdsa = make_ecdsa_key(&stranger.host);
    stranger.know(&format!("{} {}", stranger.name(), Home::public_line(&ecdsa)));
    for options in [&[][..], &["--accept-new"]] {
        let said = stranger.assert_refused(options);
        assert!(said.contains("new type"), "{said}");
        assert!(said.contains(&fingerprint(&ecdsa)), "{said}");
        assert!(said.contains(&fingerprint(&stranger.host.host_key())), "{said}");
    }
    let output = stranger.afar("trust", &["--accept-new"]).output();
    output.expect_code(255);
    let right = fingerprint(&stranger.host.host_key());
    let _ = stranger.afar("trust", &["--fingerprint", &right]).output().success();
    stranger.assert_in(&[]);
    // The old one stays.
    assert!(stranger.known().contains(&key_fields(&ecdsa)), "{}", stranger.known());
}

#[test]
fn the_bare_name_is_known_too_and_another_key_there_is_a_warning() {
    let stranger = Stranger::new();
    // sshd's entry for the host, with the same key: people's keys are there.
    stranger.know(&stranger.line("127.0.0.1"));
    stranger.assert_in(&[]);
    let sshds = stranger.host.make_key("sshds");
    stranger.know(&format!("127.0.0.1 {}", Home::public_line(&sshds)));
    let said = stranger.assert_refused(&["--accept-new"]);
    assert!(said.contains("another user's server may be listening"), "{said}");
    // The entry of the port is the closer one.
    stranger.know(
        &(stranger.line(&stranger.name()) + &format!("127.0.0.1 {}", Home::public_line(&sshds))),
    );
    stranger.assert_in(&[]);
}

#[test]
fn a_revoked_key_is_refused_whatever_else_is_known() {
    let stranger = Stranger::new();
    let revoked = format!("@revoked * {}", Home::public_line(&stranger.host.host_key()));
    for lines in [revoked.clone(), stranger.line(&stranger.name()) + &revoked] {
        stranger.know(&lines);
        for options in [&[][..], &["--accept-new"]] {
            let said = stranger.assert_refused(options);
            assert!(said.contains("revoked"), "{said}");
            assert!(said.contains(&fingerprint(&stranger.host.host_key())), "{said}");
        }
        let right = fingerprint(&stranger.host.host_key());
        stranger.afar("trust", &["--fingerprint", &right]).output().expect_code(255);
        assert_eq!(stranger.known(), lines);
    }
    // Another key that is revoked does not matter.
    let other = stranger.host.make_key("other");
    let lines = format!("@revoked * {}", Home::public_line(&other));
    stranger.know(&(lines + &stranger.line(&stranger.name())));
    stranger.assert_in(&[]);
}

#[test]
fn an_authority_whose_certificate_is_not_shown_is_no_first_sight() {
    let stranger = Stranger::new();
    let authority = stranger.host.make_key("authority");
    let line = format!("@cert-authority * {}", Home::public_line(&authority));
    stranger.know(&line);
    for options in [&[][..], &["--accept-new"]] {
        let said = stranger.assert_refused(options);
        assert!(said.contains("@cert-authority"), "{said}");
    }
    stranger.know(&(line + &stranger.line(&stranger.name())));
    stranger.assert_in(&[]);
}

#[test]
fn hashed_names_patterns_and_several_names_are_read() {
    let stranger = Stranger::new();
    let name = stranger.name();
    for names in [
        format!("a.example,{name},b.example"),
        "[127.0.0.*]:*".into(),
        format!("[127.0.0.?]:{}", stranger.port()),
    ] {
        stranger.know(&stranger.line(&names));
        stranger.assert_in(&[]);
    }
    // As `HashKnownHosts yes` writes them.
    stranger.know(&stranger.line(&name));
    let file = stranger.host.known_hosts();
    let words = ["-q", "-H", "-f", file.to_str().unwrap()];
    let _ = Run::new("ssh-keygen", words).output().success();
    assert!(stranger.known().starts_with("|1|"), "{}", stranger.known());
    stranger.assert_in(&[]);
    // A hashed name of another host says nothing; a negated one neither.
    stranger.know(&stranger.line("[127.0.0.1]:1"));
    let _ = Run::new("ssh-keygen", words).output().success();
    stranger.assert_refused(&[]);
    stranger.know(&stranger.line(&format!("*,!127.0.0.1,!{name}")));
    stranger.assert_refused(&[]);
    // A changed key behind a hash is found.
    let old = stranger.host.make_key("old");
    stranger.know(&format!("{name} {}", Home::public_line(&old)));
    let _ = Run::new("ssh-keygen", words).output().success();
    assert!(stranger.assert_refused(&["--accept-new"]).contains("has changed"));
}

#[test]
fn the_host_is_asked_for_the_type_of_key_that_is_known() {
    // A host with two keys, of which the client knows the one that it would not ask for first.
    let home = Home::new();
    let ecdsa = make_ecdsa_key(&home);
    let host = Host::builder().serve_arg("--host-key").serve_arg(&ecdsa).start();
    let stranger = Stranger { host };
    for key in [&ecdsa, &stranger.host.host_key()] {
        stranger.know(&format!("{} {}", stranger.name(), Home::public_line(key)));
        stranger.assert_in(&[]);
    }
}

#[test]
fn trust_shows_a_key_and_adds_it_only_when_told() {
    let stranger = Stranger::new();
    let right = fingerprint(&stranger.host.host_key());
    let output = stranger.afar("trust", &[]).output();
    let said = output.expect_code(255).error_text();
    assert!(said.contains(&right) && said.contains("--fingerprint"), "{said}");
    let wrong = "SHA256:0000000000000000000000000000000000000000000";
    let output = stranger.afar("trust", &["--fingerprint", wrong]).output();
    assert!(output.expect_code(255).error_text().contains(&right));
    assert_eq!(stranger.known(), "");
    let output = stranger.afar("trust", &["--fingerprint", &right]).output();
    assert!(output.success().text().contains(&right), "{output:?}");
    stranger.assert_in(&[]);
    let output = stranger.afar("trust", &[]).output();
    assert!(output.success().text().contains("is known"), "{output:?}");
    // Nobody is logged in for that: it needs no key.
    fs::remove_file(stranger.host.known_hosts()).unwrap();
    let address: SocketAddr = stranger.host.address();
    let run = stranger.host.afar(["trust", "-F", "none", "--accept-new", "--known-hosts"]);
    let run = run.arg(stranger.host.known_hosts()).arg(format!("nobody@{address}"));
    let _ = run.output().success();
    stranger.assert_in(&[]);
}

#[test]
fn a_file_of_known_hosts_that_cannot_be_read_is_an_end() {
    let stranger = Stranger::new();
    fs::create_dir(stranger.host.known_hosts()).unwrap();
    for options in [&[][..], &["--accept-new"]] {
        let output = stranger.run(options);
        output.expect_code(255);
        assert!(output.error_text().contains("known_hosts"), "{output:?}");
    }
}

/// A run at a terminal, up to the question whether the host is to be trusted.
fn ask(stranger: &Stranger) -> (Terminal, Running) {
    let (key, known) = (stranger.host.key(), stranger.host.known_hosts());
    let (key, known) = (key.to_str().unwrap(), known.to_str().unwrap());
    let target = stranger.host.target();
    let words =
        ["run", "-F", "none", "-i", key, "--known-hosts", known, "-n", &target, "echo", "in"];
    let (mut terminal, run) = Terminal::afar(&stranger.host, &words);
    terminal.wait_for(&fingerprint(&stranger.host.host_key()));
    terminal.wait_for("(yes, no, or the fingerprint)? ");
    (terminal, run)
}

#[test]
fn a_person_at_a_terminal_is_asked_and_heard() {
    let stranger = Stranger::new();
    let right = fingerprint(&stranger.host.host_key());
    for answer in ["no", "SHA256:0000000000000000000000000000000000000000000"] {
        let (mut terminal, run) = ask(&stranger);
        terminal.type_line(answer);
        let output = run.wait();
        assert_eq!(output.expect_code(255).text(), "");
        assert_eq!(stranger.known(), "");
    }
    for answer in ["yes", right.as_str()] {
        let (mut terminal, run) = ask(&stranger);
        // What is neither is asked about again.
        terminal.type_line("y");
        terminal.wait_for("Please say yes, no, or the fingerprint: ");
        terminal.type_line(answer);
        assert_eq!(run.wait().success().text(), "in\n");
        stranger.assert_in(&[]);
        fs::remove_file(stranger.host.known_hosts()).unwrap();
    }
}

#[test]
fn the_answer_is_about_the_key_that_was_shown() {
    // While a person looks at the fingerprint, another host takes the place of the first one.
    let stranger = Stranger::new();
    let proxy = Switch::new(stranger.host.address());
    let (key, known) = (stranger.host.key(), stranger.host.known_hosts());
    let target = stranger.host.target_via(proxy.address());
    let words = [
        "run",
        "-F",
        "none",
        "-i",
        key.to_str().unwrap(),
        "--known-hosts",
        known.to_str().unwrap(),
        "-n",
        &target,
        "echo",
        "in",
    ];
    let (mut terminal, run) = Terminal::afar(&stranger.host, &words);
    terminal.wait_for("(yes, no, or the fingerprint)? ");
    let impostor = Host::start();
    proxy.switch_to(impostor.address());
    terminal.type_line("yes");
    let output = run.wait();
    assert_eq!(output.expect_code(255).text(), "");
    assert!(output.error_text().contains(&fingerprint(&impostor.host_key())), "{output:?}");
    // What was said yes to is known, and nothing else.
    assert!(stranger.known().contains(&key_fields(&stranger.host.host_key())));
    assert!(!stranger.known().contains(&key_fields(&impostor.host_key())));
}

/// Passes each connection on to where it was last told to.
struct Switch {
    address: SocketAddr,
    to: Arc<Mutex<SocketAddr>>,
}

impl Switch {
    fn new(to: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let to = Arc::new(Mutex::new(to));
        let now = Arc::clone(&to);
        std::thread::spawn(move || {
            while let Ok((mut client, _)) = listener.accept() {
                let mut server = TcpStream::connect(*now.lock().unwrap()).unwrap();
                let (mut up, mut down) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut up, &mut server);
                    let _ = server.shutdown(Shutdown::Write);
                });
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut down, &mut client);
                    let _ = client.shutdown(Shutdown::Write);
                });
            }
        });
        Self { address, to }
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    fn switch_to(&self, address: SocketAddr) {
        *self.to.lock().unwrap() = address;
    }
}
