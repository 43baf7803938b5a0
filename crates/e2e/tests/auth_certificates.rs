//! Certificates: the good ones log in by themselves, and every other one is refused in the same bytes,
//! with the reason in the server's log only. Where sshd has the same rules, it is asked too.
#![cfg(test)]

use std::path::{Path, PathBuf};

use afar_e2e::raw::{End, Key, RawClient};
use afar_e2e::{Account, Home, Host, HostBuilder, Output, Run, Sshd, can_make_accounts};
use afar_proto::frame::Kind;
use rustix::process::Signal;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn keygen<'a>(arguments: impl IntoIterator<Item = &'a str>) {
    let _ = Run::new("ssh-keygen", arguments).output().success();
}

/// `NAME.pub` of a key.
fn public(key: &Path) -> PathBuf {
    PathBuf::from(format!("{}.pub", text(key)))
}

/// Authorities, and the files about them that a server reads.
struct Authorities {
    home: Home,
    good: PathBuf,
    /// Trusted, and revoked.
    revoked: PathBuf,
    rsa: PathBuf,
    /// Trusted by nobody.
    other: PathBuf,
    trusted: PathBuf,
    krl: PathBuf,
}

impl Authorities {
    fn new() -> Self {
        let home = Home::for_everybody();
        let [good, revoked, other] = ["good", "revoked", "other"].map(|name| home.make_key(name));
        let rsa = home.file("rsa");
        keygen(["-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", text(&rsa)]);
        let lines = [&good, &revoked, &rsa].map(|key| Home::public_line(key)).concat();
        let trusted = home.write("trusted", format!("# ours\n{lines}"));
        set_mode(&trusted, 0o644);
        let krl = home.file("krl");
        let spec = home.write("spec", "serial: 66\nserial: 70-80\nid: gone\n");
        keygen(["-q", "-k", "-f", text(&krl), "-s", text(&public(&good)), text(&spec)]);
        keygen(["-q", "-k", "-u", "-f", text(&krl), text(&public(&revoked))]);
        Self { home, good, revoked, rsa, other, trusted, krl }
    }

    /// Certifies a key, whose certificate then lies beside it.
    fn certify(&self, authority: &Path, key: &Path, options: &[&str]) {
        let public = public(key);
        let words = ["-q", "-s", text(authority), "-I", "a laptop"];
        keygen(words.iter().chain(options).copied().chain([text(&public)]));
    }

    /// A host that trusts them, and no key of its own.
    fn host(&self) -> HostBuilder {
        Host::builder()
            .authorized_keys("")
            .serve_arg("--trusted-user-ca-keys")
            .serve_arg(&self.trusted)
            .serve_arg("--revoked-keys")
            .serve_arg(&self.krl)
    }

    /// An sshd that does.
    fn sshd(&self) -> Sshd {
        let configuration = format!(
            "TrustedUserCAKeys {}\nRevokedKeys {}\nAuthorizedKeysFile none\n",
            text(&self.trusted),
            text(&self.krl)
        );
        Sshd::start_with(&configuration)
    }
}

/// A run that offers what lies in the home's `.ssh`, and what an agent holds.
fn run(host: &Host, words: &[&str]) -> Run {
    let run = host.afar(["run", "-F", "none", "--known-hosts"]).arg(host.known_hosts());
    words.iter().fold(run.arg("-n").arg(host.target()).arg("--"), Run::arg)
}

/// The same with a key that is named.
fn run_with(host: &Host, key: &Path, words: &[&str]) -> Run {
    let run = host.afar(["run", "-F", "none", "--known-hosts"]).arg(host.known_hosts());
    let run = run.arg("-i").arg(key).arg("-n").arg(host.target()).arg("--");
    words.iter().fold(run, Run::arg)
}

#[track_caller]
fn assert_in(output: &Output) {
    assert_eq!(output.success().text(), "in\n");
}

fn final_log(host: &Host) -> String {
    host.listener().signal(Signal::TERM);
    host.listener().wait();
    host.log()
}

/// One way in which a certificate is not good: a name, the authority, ssh-keygen's options, what the
/// log says, and whether OpenSSH 9.2 agrees.
type Variant<'a> = (&'a str, &'a Path, Vec<&'a str>, &'a str, bool);

fn bad_variants<'a>(authorities: &'a Authorities, user: &'a str) -> Vec<Variant<'a>> {
    let Authorities { good, revoked, rsa, other, .. } = authorities;
    let named = |options: &[&'a str]| [&["-n", user], options].concat();
    vec![
        ("unlisted authority", other, named(&[]), "no line trusts the certificate's", true),
        ("expired", good, named(&["-V", "20200101:20210101"]), "has expired", true),
        ("not yet valid", good, named(&["-V", "20900101:20910101"]), "not yet valid", true),
        ("wrong principal", good, vec!["-n", "somebody"], "does not name", true),
        ("no principals", good, vec![], "has no principals", true),
        ("a host's", good, named(&["-h"]), "is a host's", true),
        ("critical", good, named(&["-O", "critical:odd@e2e=x"]), "odd@e2e", true),
        ("source", good, named(&["-O", "source-address=192.0.2.0/24"]), "source-address", true),
        ("serial", good, named(&["-z", "66"]), "revoked by its serial number 66", true),
        ("serial in a range", good, named(&["-z", "75"]), "serial number 75", true),
        ("key id", good, named(&["-I", "gone"]), "revoked by its key id", true),
        ("revoked authority", revoked, named(&[]), "authority is revoked", true),
        ("sha-1", rsa, named(&["-t", "ssh-rsa"]), "signature algorithm", true),
    ]
}

fn set_mode(path: &Path, mode: u32) {
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
    std::fs::set_permissions(path, permissions).unwrap();
}

#[test]
fn fault_77_each_bad_certificate_is_refused_and_only_the_log_says_why() {
    let authorities = Authorities::new();
    let host = authorities.host().start();
    let sshd = authorities.sshd();
    let user = host.user().to_owned();
    // As good as it gets, before and after, so that it is the variant that is refused.
    let good = || {
        for key in [host.key(), sshd.home().key()] {
            authorities.certify(&authorities.good, &key, &["-n", &user, "-z", "1"]);
        }
        assert_in(&run(&host, &["echo", "in"]).output());
        assert_in(&sshd.run("echo in"));
    };
    good();
    let unlisted = {
        let mut client = RawClient::connect(host.address());
        refusal(&mut client, &Key::fresh(), &user)
    };
    let variants = bad_variants(&authorities, &user);
    for (what, authority, options, _, by_sshd) in &variants {
        authorities.certify(authority, &host.key(), options);
        let output = run(&host, &["echo", "in"]).output();
        let said = output.expect_code(255).error_text();
        assert!(said.contains("accepts none of the keys"), "{what}: {said}");
        assert_eq!(output.text(), "", "{what}");
        // Without asking first: the answer is that to a key that nobody knows, byte for byte.
        let mut client = RawClient::connect(host.address());
        let key = Key::certified(&host.key());
        assert_eq!(refusal(&mut client, &key, &user), unlisted, "{what}");
        if *by_sshd {
            authorities.certify(authority, &sshd.home().key(), options);
            assert_eq!(sshd.run("echo in").code(), 255, "{what}: sshd lets it in");
        }
    }
    good();
    let log = final_log(&host);
    for (what, .., reason, _) in &variants {
        // All that an administrator wants to know of it, on one line.
        let line = log.lines().find(|line| line.contains(reason));
        let line = line.unwrap_or_else(|| panic!("{what}: {reason:?} is not in the log:\n{log}"));
        for words in [": 127.0.0.1:", &format!("{user:?} ")] {
            assert!(line.contains(words), "{what}: no {words:?} in {line}");
        }
    }
}

/// What a key gets that is refused: the frame, and how many bytes there were.
#[track_caller]
fn refusal(client: &mut RawClient, key: &Key, user: &str) -> (Vec<u8>, usize) {
    let flight = [client.hello(), client.auth(key, user)].concat();
    client.link.send(&flight);
    let refusal = client.link.expect(Kind::AuthRefused);
    client.link.finish();
    assert_eq!(client.link.rest(), (Vec::new(), End::Closed));
    (refusal.payload, client.link.received_bytes())
}

#[test]
fn fault_77_a_certificate_that_its_authority_never_signed_is_refused() {
    let authorities = Authorities::new();
    let host = authorities.host().start();
    authorities.certify(&authorities.good, &host.key(), &["-n", "somebody"]);
    // The name is bent in place: everything else about the certificate is good.
    let path = PathBuf::from(format!("{}-cert.pub", text(&host.key())));
    let line = std::fs::read(&path).unwrap();
    let (blob, _) = afar_core::key::PublicKeyBlob::from_public_line(&line).unwrap();
    let mut bytes = blob.into_bytes();
    let user = host.user().as_bytes();
    let prefixed = |name: &[u8]| [&u32::try_from(name.len()).unwrap().to_be_bytes(), name].concat();
    // A list of one name is a string in a string.
    let (old, new) = (prefixed(&prefixed(b"somebody")), prefixed(&prefixed(user)));
    let at = bytes.windows(old.len()).position(|window| window == old).unwrap();
    let tail = bytes.split_off(at + old.len());
    bytes.truncate(at);
    let bent = [bytes, new, tail].concat();
    let blob = afar_core::key::PublicKeyBlob::from_wire(bent).unwrap();
    std::fs::write(&path, blob.to_fields()).unwrap();
    let output = run(&host, &["echo", "in"]).output();
    assert!(output.expect_code(255).error_text().contains("accepts none of the keys"));
    let mut client = RawClient::connect(host.address());
    let _ = refusal(&mut client, &Key::certified(&host.key()), host.user());
    let log = final_log(&host);
    assert!(log.contains("authority's signature on the certificate"), "{log}");
}

#[test]
fn a_certificate_of_every_type_of_key_and_nothing_else_logs_in() {
    let authorities = Authorities::new();
    let host = authorities.host().start();
    for (name, options) in [
        ("ed25519", &["-t", "ed25519"][..]),
        ("p256", &["-t", "ecdsa", "-b", "256"]),
        ("p521", &["-t", "ecdsa", "-b", "521"]),
        ("rsa", &["-t", "rsa", "-b", "4096"]),
    ] {
        let key = host.file(name);
        keygen(["-q", "-N", "", "-f", text(&key)].iter().chain(options).copied());
        authorities.certify(&authorities.rsa, &key, &["-n", host.user()]);
        assert_in(&run_with(&host, &key, &["echo", "in"]).output());
    }
}

#[test]
fn a_certificate_in_the_agent_only_logs_in() {
    let authorities = Authorities::new();
    let host = authorities.host().start();
    authorities.certify(&authorities.good, &host.key(), &["-n", host.user()]);
    let socket = host.file("agent");
    let mut agent = host.program("ssh-agent", ["-D", "-a", text(&socket)]).spawn();
    assert!(agent.line().is_some_and(|line| line.contains("SSH_AUTH_SOCK")));
    let add = host.program("ssh-add", ["-q", text(&host.key())]);
    let _ = add.env("SSH_AUTH_SOCK", &socket).output().success();
    let certificate = PathBuf::from(format!("{}-cert.pub", text(&host.key())));
    for file in [host.key(), public(&host.key()), certificate] {
        std::fs::remove_file(file).unwrap();
    }
    let with_agent = |run: Run| run.env("SSH_AUTH_SOCK", &socket);
    assert_in(&with_agent(run(&host, &["echo", "in"])).output());
    let shown = with_agent(host.afar(["keys", "-F", "none"])).output();
    let lines: Vec<&str> = shown.success().text().lines().collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("certificate \"a laptop\"")), "{lines:?}");
    // The key in the agent, its certificate in a file.
    let _ = with_agent(host.program("ssh-add", ["-q", "-D"])).output().success();
    assert_eq!(with_agent(run(&host, &["echo", "in"])).output().code(), 255);
    let other = host.make_key("other");
    authorities.certify(&authorities.good, &other, &["-n", host.user()]);
    let key_only = host.file("alone");
    std::fs::rename(&other, &key_only).unwrap();
    let _ = with_agent(host.program("ssh-add", ["-q", text(&key_only)])).output().success();
    assert_eq!(with_agent(run(&host, &["echo", "in"])).output().code(), 255);
    std::fs::remove_file(&key_only).unwrap();
    let by_file = run_with(&host, &public(&other), &["echo", "in"]);
    assert_in(&with_agent(by_file).output());
    agent.signal(Signal::TERM);
    let _ = agent.wait();
}

#[test]
fn a_certificate_file_of_ssh_config_is_offered() {
    let authorities = Authorities::new();
    let host = authorities.host().start();
    authorities.certify(&authorities.good, &host.key(), &["-n", host.user()]);
    let beside = PathBuf::from(format!("{}-cert.pub", text(&host.key())));
    let elsewhere = host.file("elsewhere");
    std::fs::rename(&beside, &elsewhere).unwrap();
    assert_eq!(run(&host, &["echo", "in"]).output().code(), 255);
    let config = format!(
        "Host 127.0.0.1\n IdentityFile {}\n CertificateFile {}\n",
        text(&host.key()),
        text(&elsewhere)
    );
    let config = host.write("config", config);
    let run = host.afar(["run", "-F", text(&config), "--known-hosts"]).arg(host.known_hosts());
    assert_in(&run.arg("-n").arg(host.target()).arg("echo").arg("in").output());
}

#[test]
fn a_line_of_authorized_keys_trusts_an_authority_for_its_principals() {
    let authorities = Authorities::new();
    let line =
        |options: &str| format!("cert-authority{options} {}", Home::public_line(&authorities.good));
    let host = Host::builder().authorized_keys(&line("")).start();
    let sshd = Sshd::start();
    for (options, names, let_in) in [
        ("", host.user(), true),
        ("", "ops", false),
        (",principals=\"ops,dev\"", "dev", true),
        (",principals=\"ops,dev\"", host.user(), false),
        (",from=\"192.0.2.0/24\"", host.user(), false),
        (",expiry-time=\"20200101\"", host.user(), false),
    ] {
        host.write("authorized_keys", line(options));
        sshd.home().write("authorized_keys", line(options));
        for key in [host.key(), sshd.home().key()] {
            authorities.certify(&authorities.good, &key, &["-n", names]);
        }
        let expected = if let_in { 0 } else { 255 };
        assert_eq!(run(&host, &["true"]).output().code(), expected, "{options} {names}");
        assert_eq!(sshd.run("true").code(), expected, "sshd: {options} {names}");
    }
    // The authority's own key is no key.
    let output = run_with(&host, &authorities.good, &["true"]).output();
    assert_eq!(output.code(), 255);
}

/// W-4.15: root's server serves the account that a certificate names, as that account.
#[test]
fn a_certificate_lets_into_the_account_that_it_names_and_into_no_other() {
    if !can_make_accounts() {
        return;
    }
    let authorities = Authorities::new();
    let host = authorities.host().serve_accounts();
    let host = host.serve_arg("--penalty-exempt").serve_arg("127.0.0.1").start();
    let (ann, bob) = (Account::new(), Account::new());
    let certify = |authority: &Path, options: &[&str]| {
        authorities.certify(authority, &host.key(), options);
    };
    let asks = |account: &Account, words: &[&str]| {
        let run = host.afar(["run", "-F", "none", "--known-hosts"]).arg(host.known_hosts());
        let run = run.arg("-n").arg(host.target_of(account)).arg("--");
        words.iter().fold(run, Run::arg).output()
    };
    let refuses = |account: &Account| {
        asks(account, &["true"]).expect_code(255);
    };

    certify(&authorities.good, &["-n", ann.name()]);
    let (ann_is, bob_is) = (format!("{}\n", ann.name()), format!("{}\n", bob.name()));
    assert_eq!(asks(&ann, &["id", "-un"]).success().text(), ann_is);
    refuses(&bob);
    assert_eq!(run(&host, &["true"]).output().code(), 255, "root is not named");
    certify(&authorities.good, &["-n", &format!("{},{}", ann.name(), bob.name())]);
    assert_eq!(asks(&bob, &["id", "-un"]).success().text(), bob_is);
    certify(&authorities.good, &["-n", ann.name(), "-O", "force-command=echo forced; id -un"]);
    assert_eq!(asks(&ann, &["true"]).success().text(), format!("forced\n{ann_is}"));

    // What is not good is none for an account either.
    for options in [&["-V", "20200101:20210101"][..], &["-z", "66"], &["-h"]] {
        certify(&authorities.good, &[&["-n", ann.name()], options].concat());
        refuses(&ann);
    }
    certify(&authorities.revoked, &["-n", ann.name()]);
    refuses(&ann);

    // An authority of the account's own, which is read as the account.
    certify(&authorities.other, &["-n", "ops"]);
    refuses(&ann);
    let line = Home::public_line(&authorities.other);
    ann.authorize(&format!("cert-authority,principals=\"ops\" {line}"));
    assert_eq!(asks(&ann, &["id", "-un"]).success().text(), ann_is);
    refuses(&bob);
    let log = final_log(&host);
    for reason in ["does not name", "has expired", "serial number 66", "authority is revoked"] {
        assert!(log.contains(reason), "{reason}:\n{log}");
    }
}

#[test]
fn what_a_certificate_forces_is_what_runs() {
    let authorities = Authorities::new();
    let host = authorities.host().start();
    let options = ["-n", host.user(), "-O", "force-command=echo forced: $SSH_ORIGINAL_COMMAND"];
    authorities.certify(&authorities.good, &host.key(), &options);
    let output = run(&host, &["id", "-u"]).output();
    assert_eq!(output.success().text(), "forced: id -u\n");
    authorities.certify(&authorities.good, &host.key(), &["-n", host.user()]);
    assert_in(&run(&host, &["echo", "in"]).output());
}

#[test]
fn fault_76_what_is_revoked_while_the_server_runs_is_refused_from_then_on() {
    let authorities = Authorities::new();
    let list = authorities.home.write("list", "# nobody yet\n");
    set_mode(&list, 0o644);
    let host = Host::builder()
        .serve_arg("--trusted-user-ca-keys")
        .serve_arg(&authorities.trusted)
        .serve_arg("--revoked-keys")
        .serve_arg(&list)
        .start();
    let own = Key::of_file(&host.key());
    let user = host.user().to_owned();
    assert_in(&run(&host, &["echo", "in"]).output());
    // One that it has vouched for, too.
    let ephemeral = Key::fresh();
    let mut client = RawClient::connect(host.address());
    let request = own.request_delegating(&user, &ephemeral, 60);
    let flight = [client.hello(), client.auth_of(&own, &request)].concat();
    client.link.send(&flight);
    client.link.expect(Kind::AuthOk);
    drop(RawClient::log_in(host.address(), &ephemeral, &user));
    authorities.home.write("list", Home::public_line(&host.key()));
    assert_eq!(run(&host, &["true"]).output().code(), 255);
    for key in [&own, &ephemeral] {
        let mut client = RawClient::connect(host.address());
        let _ = refusal(&mut client, key, &user);
    }
    authorities.home.write("list", "");
    assert_in(&run(&host, &["echo", "in"]).output());
    // A list that can't be understood, or read, lets nobody in.
    authorities.home.write("list", "rubbish\n");
    assert_eq!(run(&host, &["true"]).output().code(), 255);
    std::fs::remove_file(&list).unwrap();
    assert_eq!(run(&host, &["true"]).output().code(), 255);
    authorities.home.write("list", "");
    assert_in(&run(&host, &["echo", "in"]).output());
    let log = final_log(&host);
    for reason in ["the key is revoked", "every key counts as revoked"] {
        assert!(log.contains(reason), "{reason}:\n{log}");
    }
}

#[test]
fn fault_83_a_server_does_not_start_with_files_that_it_cannot_believe() {
    let home = Home::for_everybody();
    let open = home.write("open", "");
    set_mode(&open, 0o666);
    let (missing, closed) = (home.file("missing"), home.write("closed", ""));
    let private = Home::new();
    let hidden = private.write("hidden", "");
    let mut cases = vec![(&open, "written by others"), (&missing, "No such file")];
    if rustix::process::geteuid().is_root() {
        // Other users' supervisors could not look at it.
        cases.push((&closed, "chmod a+r"));
        set_mode(&hidden, 0o644);
        cases.push((&hidden, "not everybody may enter"));
    }
    for flag in ["--trusted-user-ca-keys", "--revoked-keys"] {
        for (file, why) in &cases {
            let output = home.afar(["serve", "--listen", "127.0.0.1:0", flag, text(file)]).output();
            let said = output.expect_code(255).error_text();
            assert!(said.contains(why) && said.contains(text(file)), "{said}");
            assert_eq!(said.lines().count(), 1, "{said}");
        }
    }
}
