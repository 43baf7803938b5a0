//! Host certificates: a host whose key nobody has seen is known by its authority, or not at all.
#![cfg(test)]

use std::path::{Path, PathBuf};

use afar_e2e::{Home, Host, Output, Run, Sshd};
use rustix::process::Signal;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn keygen<'a>(arguments: impl IntoIterator<Item = &'a str>) {
    let _ = Run::new("ssh-keygen", arguments).output().success();
}

fn certificate(key: &Path) -> PathBuf {
    PathBuf::from(format!("{}-cert.pub", text(key)))
}

/// Certifies a host's key; the certificate then lies beside it.
fn certify(authority: &Path, key: &Path, options: &[&str]) {
    let public = format!("{}.pub", text(key));
    let words = ["-q", "-s", text(authority), "-I", "a host"];
    keygen(words.iter().chain(options).copied().chain([public.as_str()]));
}

/// A line of known_hosts.
fn known(marker: &str, names: &str, key: &Path) -> String {
    format!("{marker}{names} {}", Home::public_line(key))
}

fn run(host: &Host) -> Run {
    // In a session of its own, so that the terminal of whoever runs the tests is not asked.
    let words = ["--wait", text(afar_e2e::afar()), "run", "-F", "none", "--known-hosts"];
    let run = host.program("setsid", words).arg(host.known_hosts());
    run.arg("-i").arg(host.key()).arg("-n").arg(host.target()).arg("echo").arg("in")
}

#[track_caller]
fn assert_in(output: &Output) {
    assert_eq!(output.success().text(), "in\n");
}

/// The line that says why the host is not trusted.
#[track_caller]
fn refused(host: &Host) -> String {
    let output = run(host).output();
    let said = output.expect_code(255).error_text().to_owned();
    assert_eq!((output.text(), said.lines().count()), ("", 1), "{said}");
    assert!(said.contains("the command was not started"), "{said}");
    said
}

/// Ends the listener and starts another one, which reads its files anew. What is known of the host
/// stays as it is; the rig would make its key known.
fn restart(host: &mut Host) {
    let known = std::fs::read_to_string(host.known_hosts()).unwrap();
    host.listener().signal(Signal::TERM);
    host.listener().wait();
    host.restart_listener();
    host.write("home/.ssh/known_hosts", known);
}

const GOOD: [&str; 3] = ["-h", "-n", "127.0.0.1"];

/// W-4.14
#[test]
fn a_host_is_known_by_its_authority_alone() {
    let mut host = Host::start();
    let authority = host.make_key("authority");
    certify(&authority, &host.host_key(), &GOOD);
    restart(&mut host);
    for names in ["127.0.0.1", "127.0.0.*", "*", &format!("[127.0.0.1]:{}", host.address().port())]
    {
        let line = known("@cert-authority ", names, &authority);
        host.write("home/.ssh/known_hosts", &line);
        assert_in(&run(&host).output());
        // Nothing was learnt: it is the authority that is known.
        assert_eq!(std::fs::read_to_string(host.known_hosts()).unwrap(), line);
    }
    // Another key that was known is outweighed: that is what an authority is for.
    let other = host.make_key("other");
    let changed = known("", "127.0.0.1", &other);
    let line = known("@cert-authority ", "*", &authority);
    host.write("home/.ssh/known_hosts", format!("{changed}{line}"));
    assert_in(&run(&host).output());
    host.write("home/.ssh/known_hosts", changed);
    assert!(refused(&host).contains("has changed"));
    // Who knows the key has no need of the certificate.
    let key = known("", "127.0.0.1", &host.host_key());
    host.write("home/.ssh/known_hosts", key);
    std::fs::remove_file(certificate(&host.host_key())).unwrap();
    restart(&mut host);
    assert_in(&run(&host).output());
}

/// One way in which a host's certificate is not good: a name, the authority, ssh-keygen's options and
/// what the client says.
type Variant<'a> = (&'a str, &'a Path, &'a [&'a str], &'a str);

#[test]
fn fault_77_each_bad_certificate_of_a_host_is_refused_with_its_reason() {
    let mut host = Host::start();
    let (authority, other) = (host.make_key("authority"), host.make_key("other"));
    let sshd_certificate = host.file("sshd-cert.pub");
    let sshd = Sshd::start_with(&format!("HostCertificate {}\n", text(&sshd_certificate)));
    let line = known("@cert-authority ", "*", &authority);
    host.write("home/.ssh/known_hosts", &line);
    sshd.home().write("home/.ssh/known_hosts", &line);
    let sshd_key = sshd.home().file("host_key");
    // What OpenSSH's ssh makes of the same certificate; it reads it anew for each connection.
    let ask_ssh = |authority: &Path, options: &[&str]| {
        certify(authority, &sshd_key, options);
        std::fs::rename(certificate(&sshd_key), &sshd_certificate).unwrap();
        sshd.ssh(&["-o", "StrictHostKeyChecking=yes"], "echo in").output().code()
    };
    let variants: &[Variant<'_>] = &[
        ("another authority", &other, &GOOD, "is of another authority"),
        ("another host", &authority, &["-h", "-n", "web.example"], "does not name 127.0.0.1"),
        ("a user's", &authority, &["-n", "127.0.0.1"], "has shown no certificate"),
        (
            "of yesterday",
            &authority,
            &["-h", "-n", "127.0.0.1", "-V", "20200101:20210101"],
            "no certificate",
        ),
    ];
    for (what, authority, options, reason) in variants {
        certify(authority, &host.host_key(), options);
        restart(&mut host);
        let said = refused(&host);
        assert!(said.contains(reason) && said.contains("@cert-authority only"), "{what}: {said}");
        assert_eq!(ask_ssh(authority, options), 255, "ssh: {what}");
    }
    certify(&authority, &host.host_key(), &GOOD);
    assert_eq!(ask_ssh(&authority, &GOOD), 0);
    restart(&mut host);
    assert_in(&run(&host).output());
    // A revocation outweighs it, of the authority and of the key.
    for key in [&authority, &host.host_key()] {
        let revoked = known("@revoked ", "*", key);
        host.write("home/.ssh/known_hosts", format!("{line}{revoked}"));
        assert!(refused(&host).contains("revoked"), "{}", refused(&host));
    }
    // None at all.
    std::fs::remove_file(certificate(&host.host_key())).unwrap();
    restart(&mut host);
    host.write("home/.ssh/known_hosts", &line);
    assert!(refused(&host).contains("has shown no certificate"));
    host.listener().signal(Signal::TERM);
    host.listener().wait();
    // What the server itself sees to be useless, it does not show, and says so.
    let log = host.log();
    for reason in ["the certificate is a user's", "the certificate has expired"] {
        assert!(log.contains(reason), "{reason}: {log}");
    }
}

#[test]
fn every_type_of_host_key_is_proved_and_certified() {
    let mut host = Host::start();
    let authority = host.make_key("authority");
    for options in [
        &["-t", "ecdsa", "-b", "256"][..],
        &["-t", "ecdsa", "-b", "384"],
        &["-t", "ecdsa", "-b", "521"],
        &["-t", "rsa", "-b", "3072"],
    ] {
        for suffix in ["", ".pub", "-cert.pub"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", text(&host.host_key())));
        }
        let key = host.host_key();
        keygen(["-q", "-N", "", "-f", text(&key)].iter().chain(options).copied());
        restart(&mut host);
        host.write("home/.ssh/known_hosts", known("", "127.0.0.1", &key));
        assert_in(&run(&host).output());
        certify(&authority, &key, &GOOD);
        restart(&mut host);
        host.write("home/.ssh/known_hosts", known("@cert-authority ", "*", &authority));
        assert_in(&run(&host).output());
    }
}

#[test]
fn of_several_host_keys_the_one_that_is_known_is_shown() {
    let home = Home::new();
    let rsa = home.file("rsa");
    keygen(["-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", text(&rsa)]);
    let host = Host::builder().serve_arg("--host-key").serve_arg(&rsa).start();
    for key in [&rsa, &host.host_key()] {
        host.write("home/.ssh/known_hosts", known("", "127.0.0.1", key));
        assert_in(&run(&host).output());
    }
}

#[test]
fn trust_knows_a_certified_host_and_says_what_is_wrong_with_another() {
    let mut host = Host::start();
    let authority = host.make_key("authority");
    certify(&authority, &host.host_key(), &GOOD);
    restart(&mut host);
    host.write("home/.ssh/known_hosts", known("@cert-authority ", "*", &authority));
    let trust = |host: &Host| {
        let words = ["--wait", text(afar_e2e::afar()), "trust", "-F", "none", "--known-hosts"];
        host.program("setsid", words).arg(host.known_hosts()).arg(host.target()).output()
    };
    assert!(trust(&host).success().text().contains("is known: ssh-ed25519"));
    certify(&authority, &host.host_key(), &["-h", "-n", "elsewhere"]);
    restart(&mut host);
    let output = trust(&host);
    let said = output.expect_code(255).error_text();
    assert!(said.contains("--fingerprint"), "{said}");
}
