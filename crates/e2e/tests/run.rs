//! `afar run`: what arrives at the command, and what its surroundings are.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use afar_e2e::{Host, Source};

/// A pipe that holds `bytes`, whose writing end stays open: its reader never meets the end.
fn pipe_with(bytes: &[u8]) -> (File, std::io::PipeReader, std::io::PipeWriter) {
    let (reader, mut writer) = std::io::pipe().expect("a pipe can be had");
    writer.write_all(bytes).expect("a pipe has room");
    let copy = reader.try_clone().expect("a descriptor can be had");
    let copy = File::from(OwnedFd::from(copy));
    (copy, reader, writer)
}

#[test]
fn arguments_arrive_exactly() {
    let host = Host::start();
    let output = host.run(["--", "printf", "%s|", "a b", "$HOME", "*", "\"q\"", ""]).output();
    assert_eq!(output.success().text(), "a b|$HOME|*|\"q\"||");
    assert_eq!(output.error_text(), "");
    let odd = OsStr::from_bytes(b"\xff\xfe\n\t\x01 'x'\\");
    let words = ["--", "printf", "%s"].map(OsStr::new).into_iter().chain([odd]);
    assert_eq!(host.run(words).output().success().stdout, odd.as_bytes());
}

#[test]
fn from_the_program_on_everything_is_the_programs() {
    let host = Host::start();
    let output = host.run(["echo", "-e", "--json", "-n", "--", "-c", "x"]).output();
    assert_eq!(output.success().text(), "--json -n -- -c x\n");
}

#[test]
fn a_script_runs_in_the_users_shell() {
    let host = Host::start();
    let user = afar_sys::users::current_user().unwrap().unwrap();
    let shell = user.shell.file_name().unwrap().to_str().unwrap().to_owned();
    let output = host.script("echo \"$0 $# $SHELL\"; echo one; echo 'two  words' | wc -w").output();
    let expected = format!("{shell} 0 {}\none\n2\n", user.shell.display());
    assert_eq!(output.success().text(), expected);
}

#[test]
fn a_word_that_only_a_shell_would_understand_is_not_found_with_a_hint() {
    let host = Host::start();
    let output = host.run(["ls | wc"]).output();
    assert_eq!(output.expect_code(127).text(), "");
    assert!(output.error_text().contains("-c 'ls | wc'"), "{output:?}");
    assert!(output.error_text().contains("not found"), "{output:?}");
    // A program that is merely missing needs no such hint.
    let output = host.run(["afar-no-such-program"]).output();
    assert!(!output.expect_code(127).error_text().contains("-c"), "{output:?}");
}

#[test]
fn the_working_directory_is_the_home_unless_another_is_asked_for() {
    let host = Host::start();
    let home = afar_sys::users::current_user().unwrap().unwrap().home;
    // Logical paths may pass through symbolic links; the program's own view has none.
    let real = std::fs::canonicalize(&home).unwrap();
    let pwd = |arguments: &[&str]| {
        let output = host.run(arguments.iter().chain(&["--", "pwd", "-P"])).output();
        output.success().text().trim_end().to_owned()
    };
    assert_eq!(pwd(&[]), real.to_str().unwrap());
    assert_eq!(pwd(&["--cwd", "/"]), "/");
    assert_eq!(pwd(&["--cwd", "."]), real.to_str().unwrap());
    let spaced = host.file("a b\n$c");
    std::fs::create_dir(&spaced).unwrap();
    let output = host.run(["--cwd", spaced.to_str().unwrap(), "--", "pwd", "-P"]).output();
    assert_eq!(output.success().text(), format!("{}\n", spaced.to_str().unwrap()));
}

#[test]
fn variables_are_set_as_they_are_given() {
    let host = Host::start();
    let odd = OsStr::from_bytes(b"-eODD=\xff\n'x'");
    let words = ["-e", "A=1", "--env", "B=x=y z", "-eC=", "-e", "HOME=/elsewhere"].map(OsStr::new);
    let command = ["--", "env", "-0"].map(OsStr::new);
    let output = host.run(words.into_iter().chain([odd]).chain(command)).output();
    let variables = variables(&output.success().stdout);
    let value = |name: &str| variables.get(name.as_bytes()).map(Vec::as_slice);
    assert_eq!(value("A"), Some(b"1".as_slice()));
    assert_eq!(value("B"), Some(b"x=y z".as_slice()));
    assert_eq!(value("C"), Some(b"".as_slice()));
    assert_eq!(value("HOME"), Some(b"/elsewhere".as_slice()));
    assert_eq!(value("ODD"), Some(b"\xff\n'x'".as_slice()));
}

fn variables(listed: &[u8]) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let entries = listed.split(|byte| *byte == 0).filter(|entry| !entry.is_empty());
    let split = |entry: &[u8]| {
        let equals = entry.iter().position(|byte| *byte == b'=').expect("an entry has =");
        (entry[..equals].to_vec(), entry[equals + 1..].to_vec())
    };
    entries.map(split).collect()
}

#[test]
fn fault_64_the_environment_is_that_of_a_login_and_nothing_of_the_servers() {
    let host = Host::builder().serve_env("E2E_SECRET", "x").serve_env("LD_BIND_NOW", "1").start();
    let output = host.run(["--", "env", "-0"]).output();
    let found = variables(&output.success().stdout);
    let user = afar_sys::users::current_user().unwrap().unwrap();
    let text = |name: &str| String::from_utf8(found[name.as_bytes()].clone()).unwrap();
    assert_eq!(text("HOME"), user.home.to_str().unwrap());
    assert_eq!(text("USER"), user.name.to_str().unwrap());
    assert_eq!(text("LOGNAME"), user.name.to_str().unwrap());
    assert_eq!(text("SHELL"), user.shell.to_str().unwrap());
    // What a login gives, what the system's own files add to it, and what afar tells of the job.
    let mut allowed: BTreeSet<String> =
        ["HOME", "USER", "LOGNAME", "SHELL", "PATH", "MAIL", "XDG_RUNTIME_DIR"]
            .into_iter()
            .chain(["AFAR_JOB_ID", "AFAR_JOB_MARK"])
            .map(str::to_owned)
            .collect();
    for file in ["/etc/environment", "/etc/default/locale"] {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let names = text.lines().filter_map(|line| Some(line.split_once('=')?.0.trim().to_owned()));
        allowed.extend(names.map(|name| name.trim_start_matches("export ").to_owned()));
    }
    let names: BTreeSet<String> =
        found.keys().map(|name| String::from_utf8(name.clone()).unwrap()).collect();
    let unexpected: Vec<_> = names.difference(&allowed).collect();
    assert!(unexpected.is_empty(), "{unexpected:?}");
    assert!(names.contains("AFAR_JOB_ID"));
}

#[test]
fn fault_64_a_job_has_three_descriptors_default_signals_and_its_own_session() {
    let host = Host::start();
    // The glob is read through a descriptor of the shell's own, which is closed again by then.
    let script = "for f in /proc/$$/fd/*; do [ -e \"$f\" ] && echo \"${f##*/}\"; done; true";
    let output = host.run(["--", "sh", "-c", script]).output();
    assert_eq!(output.success().text(), "0\n1\n2\n");
    // With stdin, and while other jobs and connections have descriptors of their own.
    let mut other = host.run(["--", "cat"]).stdin_from(Source::Piped).spawn();
    other.write(b"up\n");
    assert_eq!(other.line().unwrap(), "up");
    let output = host.run(["--", "sh", "-c", script]).stdin("x").output();
    assert_eq!(output.success().text(), "0\n1\n2\n");
    assert_eq!(other.wait().code(), 0);

    let output = host.run(["--", "grep", "-E", "^Sig(Blk|Ign):", "/proc/self/status"]).output();
    for line in output.success().text().lines() {
        assert_eq!(line.split_whitespace().nth(1), Some("0000000000000000"), "{line}");
    }
    let output = host.run(["--", "cat", "/proc/self/stat"]).output();
    let (pid, fields) = output.success().text().split_once(" (cat) ").unwrap();
    let fields: Vec<&str> = fields.split(' ').collect();
    // proc_pid_stat(5): state, ppid, pgrp, session, tty_nr.
    assert_eq!(fields[2..5], [pid, pid, "0"]);
}

#[test]
fn the_limit_of_descriptors_is_the_one_that_the_server_was_started_with() {
    let host = Host::start();
    let ours = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let output = host.run(["--", "sh", "-c", "ulimit -Sn"]).output();
    let expected = ours.current.map_or("unlimited".to_owned(), |limit| limit.to_string());
    assert_eq!(output.success().text().trim_end(), expected);
}

#[test]
fn without_stdin_the_command_reads_nothing_and_ours_stays_unread() {
    let host = Host::start();
    let (stdin, mut ours, writer) = pipe_with(b"precious");
    let output = host.run(["-n", "--", "cat"]).stdin_from(Source::File(stdin)).output();
    assert_eq!(output.success().text(), "");
    drop(writer);
    let mut rest = String::new();
    ours.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "precious");
}

#[test]
fn stdin_is_not_read_for_a_command_that_does_not_start() {
    let host = Host::start();
    let (stdin, mut ours, writer) = pipe_with(b"precious");
    let run = host.run(["--", "afar-no-such-program"]).stdin_from(Source::File(stdin));
    assert_eq!(run.output().code(), 127);
    drop(writer);
    let mut rest = String::new();
    ours.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "precious");
}

#[test]
fn quiet_is_silent_but_for_the_command_itself() {
    let host = Host::start();
    let output = host.run(["-q", "-c", "echo err >&2; kill -TERM $$"]).output();
    assert_eq!(output.expect_code(143).error_text(), "err\n");
    let output = host.run(["-q", "--", "afar-no-such-program"]).output();
    assert_eq!(output.expect_code(127).error_text().lines().count(), 1, "{output:?}");
}

#[test]
fn a_usage_error_is_255_and_asks_nobody() {
    let host = Host::start();
    for words in [&["run"][..], &["run", "host"], &["run", "--no-such-option", "host", "true"]] {
        let output = host.afar(words).output();
        assert_eq!(output.expect_code(255).text(), "");
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn many_commands_at_once_all_come_back() {
    let host = Host::start();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let host = &host;
            scope.spawn(move || {
                for round in 0..5 {
                    let text = format!("{thread}-{round}");
                    let output = host.run(["--", "echo", &text]).output();
                    assert_eq!(output.success().text().trim_end(), text);
                }
            });
        }
    });
}

#[test]
fn a_command_is_as_quick_as_it_should_be() {
    let host = Host::start();
    // Generous: it is to catch a forgotten timer, not a slow machine.
    let output = host.run(["--", "true"]).output();
    assert!(output.success().elapsed < Duration::from_secs(2), "{output:?}");
    let output = host.run(["--", "true"]).output();
    assert!(output.success().elapsed < Duration::from_secs(1), "{output:?}");
}
