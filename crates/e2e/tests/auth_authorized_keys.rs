//! `authorized_keys` as sshd has it: the same lines in front of a real sshd and of afar.
#![cfg(test)]

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use afar_e2e::{Home, Host, Output, Sshd};
use rustix::process::Signal;

/// A file of keys in front of both servers; `KEY` stands for the line of the user's key.
struct Both {
    host: Host,
    sshd: Sshd,
}

impl Both {
    fn start() -> Self {
        Self { host: Host::start(), sshd: Sshd::start() }
    }

    fn set(&self, text: &str) {
        let with_key = |home: &Home| text.replace("KEY", Home::public_line(&home.key()).trim_end());
        self.host.write("authorized_keys", with_key(&self.host));
        self.sshd.home().write("authorized_keys", with_key(self.sshd.home()));
    }

    /// What a script gives through each: `None` where the key is refused.
    fn run(&self, script: &str) -> [Option<(i32, String)>; 2] {
        let seen = |output: Output, refused: &str| {
            if output.code() == 255 && output.error_text().contains(refused) {
                return None;
            }
            Some((output.code(), output.text().to_owned()))
        };
        [
            seen(self.host.script(script).output(), "accepts none of the keys"),
            seen(self.sshd.run(script), "Permission denied"),
        ]
    }

    /// What both give.
    #[track_caller]
    fn agree(&self, line: &str, script: &str) -> Option<(i32, String)> {
        self.set(line);
        let [ours, sshds] = self.run(script);
        assert_eq!(ours, sshds, "{line}\n{script}\nsshd says: {}", self.sshd.log());
        ours
    }

    #[track_caller]
    fn agree_on_granted(&self, line: &str) {
        let granted = self.agree(line, "echo granted");
        assert_eq!(granted, Some((0, "granted\n".to_owned())), "{line}");
    }

    #[track_caller]
    fn agree_on_refused(&self, line: &str) {
        assert_eq!(self.agree(line, "echo granted"), None, "{line}");
    }
}

/// What the listener has said by its end.
fn final_log(host: &Host) -> String {
    host.listener().signal(Signal::TERM);
    host.listener().wait();
    host.log()
}

#[test]
fn fault_84_a_forced_command_replaces_every_request_and_is_told_it() {
    let both = Both::start();
    let told = r#"command="printf '%s|' \"${SSH_ORIGINAL_COMMAND-unset}\"; exit 3" KEY"#;
    for script in ["true", "echo a  b 'c d' \"$HOME\" ; exit 1", "printf '\\377'", " leading", "#"]
    {
        let seen = both.agree(told, script);
        assert_eq!(seen, Some((3, format!("{script}|"))));
    }
    let shell = r#"command="echo $0 $# $PWD" KEY"#;
    both.agree(shell, "true");
    both.agree(r#"command="echo #1" KEY"#, "true");
    both.agree(r#"command="echo \"a b\"" KEY"#, "true");
    both.agree("command=\"echo 'a\\b'\" KEY", "true");
    both.agree(r#"Command="echo case" KEY"#, "true");
    both.agree(r#"command="exit 7",restrict KEY"#, "true");
    both.agree(r#"command="cat; echo done" KEY"#, "true");
    both.agree(r#"command="/no/such/program" KEY"#, "true");
}

#[test]
fn fault_84_restrictions_that_do_not_concern_a_command_let_it_run() {
    let both = Both::start();
    for options in [
        "restrict",
        "no-pty",
        "NO-PTY",
        "restrict,pty",
        "no-port-forwarding,no-agent-forwarding,no-X11-forwarding,no-user-rc",
        "permitopen=\"localhost:80\",permitlisten=\"8080\"",
        "tunnel=\"1\"",
    ] {
        both.agree_on_granted(&format!("{options} KEY"));
    }
    both.agree_on_granted("  KEY");
    both.agree_on_granted("\tKEY");
    both.agree_on_granted("# a comment\n\n   # another\nKEY");
    both.agree_on_granted("KEY with more # comment");
}

#[test]
fn fault_84_from_and_expiry_time_let_in_and_keep_out() {
    let both = Both::start();
    for options in [
        "from=\"127.0.0.1\"",
        "from=\"127.0.0.0/8\"",
        "from=\"127.0.0.?\"",
        "from=\"*\"",
        "from=\"192.0.2.1,127.0.0.1\"",
        "expiry-time=\"29990101\"",
        "expiry-time=\"29990101Z\"",
        "expiry-time=\"299901012359Z\"",
        "from=\"127.0.0.1\",expiry-time=\"29990101\"",
    ] {
        both.agree_on_granted(&format!("{options} KEY"));
    }
    for options in [
        "from=\"192.0.2.1\"",
        "from=\"!127.0.0.1,*\"",
        "from=\"*,!127.0.0.0/8\"",
        "from=\"10.0.0.0/8\"",
        "from=\"\"",
        "from=\"127.0.0.1/8\"",
        "expiry-time=\"20200101\"",
        "expiry-time=\"20200101Z\"",
        "expiry-time=\"29990101\",expiry-time=\"20200101\"",
        "from=\"127.0.0.1\",expiry-time=\"20200101\"",
        "expiry-time=\"tomorrow\"",
        "principals=\"root\"",
        "cert-authority",
    ] {
        both.agree_on_refused(&format!("{options} KEY"));
    }
}

#[test]
fn fault_84_environment_takes_no_effect_unless_it_is_enabled() {
    let both = Both::start();
    let line = "environment=\"E2E_SET=yes\" KEY";
    let seen = both.agree(line, "echo ${E2E_SET-unset}");
    assert_eq!(seen, Some((0, "unset\n".to_owned())));
    // Its form is checked all the same.
    both.agree_on_refused("environment=\"no value\" KEY");
    let Both { host, .. } = both;
    assert!(final_log(&host).contains("environment= is not enabled"));
}

#[test]
fn fault_79_a_malformed_line_grants_nothing_and_other_lines_do() {
    let both = Both::start();
    for bad in [
        "frobnicate KEY",
        "no-pty,frobnicate KEY",
        "command=\"unclosed KEY",
        "command=bare KEY",
        "command KEY",
        "no-pty=\"yes\" KEY",
        "command=\"a\",command=\"b\" KEY",
        "from=\"127.0.0.1\",from=\"*\" KEY",
        "ssh-ed25519",
        "ssh-ed25519 AAAA",
        "ssh-ed25519 !!!!",
        "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f",
        "nonsense",
        "no-such-type AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f",
        "KEY-in-a-comment".trim_start_matches("KEY"),
    ] {
        both.agree_on_refused(bad);
        both.agree_on_granted(&format!("{bad}\nKEY"));
        both.agree_on_granted(&format!("KEY\n{bad}"));
    }
    // The first line that lets the key in decides.
    let both_lines = "from=\"192.0.2.1\",command=\"echo first\" KEY\ncommand=\"echo second\" KEY";
    assert_eq!(both.agree(both_lines, "true"), Some((0, "second\n".to_owned())));
    let both_lines = "command=\"echo first\" KEY\nKEY";
    assert_eq!(both.agree(both_lines, "true"), Some((0, "first\n".to_owned())));
    both.agree_on_refused("");
    both.agree_on_refused("\0KEY");
    let Both { host, .. } = both;
    let log = final_log(&host);
    assert!(log.contains("unknown option"), "{log}");
    assert!(log.contains("a quote in the options is not closed"), "{log}");
}

#[test]
fn fault_83_a_file_that_others_can_write_grants_nothing_and_the_log_says_so() {
    let both = Both::start();
    let chmod = |home: &Home, mode: u32| {
        fs::set_permissions(home.file("authorized_keys"), Permissions::from_mode(mode)).unwrap();
    };
    for (mode, granted) in [
        (0o600, true),
        (0o644, true),
        (0o444, true),
        (0o620, false),
        (0o664, false),
        (0o602, false),
        (0o666, false),
        (0o777, false),
    ] {
        both.set("KEY");
        chmod(&both.host, mode);
        chmod(both.sshd.home(), mode);
        let [ours, sshds] = both.run("echo granted");
        assert_eq!(ours.is_some(), granted, "{mode:o}");
        // Debian's sshd lets a user's own group write, where nobody else is in it.
        let group_only = mode & 0o022 == 0o020;
        assert!(ours == sshds || group_only, "{mode:o}: {ours:?} {sshds:?}");
    }
    let Both { host, .. } = both;
    let log = final_log(&host);
    assert!(log.contains("can be written by others (mode 0664)"), "{log}");
}

#[test]
fn fault_83_so_does_one_in_a_directory_that_others_can_write() {
    let (host, sshd) = (Host::start(), Sshd::start());
    let both = Both { host, sshd };
    both.agree_on_granted("KEY");
    let directory = |home: &Home| home.file("authorized_keys").parent().unwrap().to_owned();
    for home in [&*both.host, both.sshd.home()] {
        fs::set_permissions(directory(home), Permissions::from_mode(0o777)).unwrap();
    }
    assert_eq!(both.run("echo granted"), [None, None]);
    for home in [&*both.host, both.sshd.home()] {
        fs::set_permissions(directory(home), Permissions::from_mode(0o700)).unwrap();
    }
    // A link is followed, and what it leads to is judged.
    for home in [&*both.host, both.sshd.home()] {
        let (file, real) = (home.file("authorized_keys"), home.file("real"));
        fs::rename(&file, &real).unwrap();
        symlink(&real, &file).unwrap();
    }
    assert!(both.run("echo granted").iter().all(Option::is_some));
    for home in [&*both.host, both.sshd.home()] {
        fs::set_permissions(home.file("real"), Permissions::from_mode(0o666)).unwrap();
    }
    assert_eq!(both.run("echo granted"), [None, None]);
    // Nor is there a key in what is no file.
    for home in [&*both.host, both.sshd.home()] {
        fs::remove_file(home.file("authorized_keys")).unwrap();
        fs::create_dir(home.file("authorized_keys")).unwrap();
    }
    assert_eq!(both.run("echo granted"), [None, None]);
    for home in [&*both.host, both.sshd.home()] {
        fs::remove_dir(home.file("authorized_keys")).unwrap();
    }
    assert_eq!(both.run("echo granted"), [None, None]);
}

#[test]
fn fault_83_a_private_key_that_others_can_read_is_not_used() {
    let host = Host::start();
    let sshd = Sshd::start();
    for mode in [0o644, 0o640, 0o604, 0o610, 0o666] {
        let open = |key: &Path| fs::set_permissions(key, Permissions::from_mode(mode)).unwrap();
        open(&host.key());
        let output = host.script("echo used").output();
        output.expect_code(255);
        let said = output.error_text();
        assert!(said.contains(&format!("is open to others (mode 0{mode:o})")), "{said}");
        assert!(said.contains("chmod 600"), "{said}");
        open(&sshd.home().key());
        assert_eq!(sshd.run("echo used").code(), 255, "{mode:o}");
    }
    fs::set_permissions(host.key(), Permissions::from_mode(0o400)).unwrap();
    let _ = host.script("echo used").output().success();
}

#[test]
fn fault_83_a_host_key_that_others_can_read_is_not_served() {
    let home = Home::new();
    let key = home.make_key("host_key");
    let keys = home.write("authorized_keys", "");
    for mode in [0o644, 0o640, 0o660] {
        fs::set_permissions(&key, Permissions::from_mode(mode)).unwrap();
        let run = home.afar(["serve", "--listen", "127.0.0.1:0", "--host-key"]).arg(&key);
        let output = run.arg("--authorized-keys").arg(&keys).output();
        output.expect_code(255);
        let said = output.error_text();
        assert!(said.contains(&format!("is open to others (mode 0{mode:o})")), "{said}");
    }
}

#[test]
fn fault_84_an_argv_is_told_to_a_forced_command_as_a_shell_would_read_it() {
    let host = Host::builder().key_options(r#"command="sh -c \"$SSH_ORIGINAL_COMMAND\"""#).start();
    let words = ["a b", "$HOME", "it's", "", "*", "-n", "\\", "é", "a\nb"];
    let line = |words: &[&str]| words.iter().map(|word| format!("[{word}]")).collect::<String>();
    let output = host.run(["--", "printf", "[%s]"]);
    let output = words.iter().fold(output, |run, word| run.arg(word)).output();
    assert_eq!(output.success().text(), line(&words));
}

#[test]
fn fault_84_a_forced_command_is_not_steered_by_what_the_client_chooses() {
    let forced = r#"command="echo $PWD $PATH ${LD_PRELOAD-} ${BASH_ENV-} ${LANG-} ${LC_E2E-}""#;
    let host = Host::builder().key_options(forced).start();
    let plain = host.script("true").output().success().text().to_owned();
    let steered = host
        .run([
            "--cwd",
            "/tmp",
            "-e",
            "PATH=/tmp",
            "-e",
            "LD_PRELOAD=/tmp/x",
            "-e",
            "BASH_ENV=/tmp/x",
        ])
        .arg("true")
        .output();
    assert_eq!(steered.success().text(), plain);
    let locale = host.run(["-e", "LANG=C.UTF-8", "-e", "LC_E2E=x", "true"]).output();
    assert!(locale.success().text().ends_with(" C.UTF-8 x\n"), "{locale:?}");
}

#[test]
fn ssh_original_command_is_nobodys_to_set() {
    let host = Host::start();
    let script = "echo ${SSH_ORIGINAL_COMMAND-unset} ${AFAR_JOB_ID}";
    let arguments =
        ["-e", "SSH_ORIGINAL_COMMAND=fake", "-e", "AFAR_JOB_ID=fake", "--id", "true-id"];
    let output = host.run(arguments).arg("-c").arg(script).output();
    assert_eq!(output.success().text(), "unset true-id\n");
}

#[test]
fn the_jobs_of_a_forced_command_have_ids_of_their_own() {
    let home = Home::new();
    let other = home.make_key("other");
    let host = Host::start();
    let lines =
        [Home::public_line(&host.key()), format!("command=\"cat\" {}", Home::public_line(&other))];
    host.write("authorized_keys", lines.concat());
    let mut held = host.run(["--id", "same", "cat"]).stdin_from(afar_e2e::Source::Piped).spawn();
    held.write(b"x\n");
    assert_eq!(held.line().unwrap(), "x");
    // The key whose command is forced neither meets that job's id nor learns that it is taken.
    let run = host.afar(["run", "-F", "none", "-i"]).arg(&other).arg("--known-hosts");
    let run = run.arg(host.known_hosts()).arg("--id").arg("same").arg(host.target());
    assert_eq!(run.arg("true").stdin("forced").output().success().text(), "forced");
    // Another of the user's own does.
    let output = host.run(["--id", "same", "true"]).output();
    assert!(output.expect_code(255).error_text().contains("another request"), "{output:?}");
    let _ = held.wait().success();
}
