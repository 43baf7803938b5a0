//! Tests of the preparation of requests: what is refused, and what a forced command changes.

use afar_core::policy::{Grant, GrantKind, Restrictions};
use afar_proto::json::ByteString;
use afar_proto::message::JobId;

use super::*;

fn user() -> User {
    User {
        name: "ann".into(),
        uid: 1000,
        gid: 1000,
        home: "/".into(),
        shell: "/bin/sh".into(),
        gecos: "".into(),
    }
}

fn grant(forced: Option<&str>) -> Grant {
    let restrictions =
        Restrictions { forced_command: forced.map(ByteString::from), ..Restrictions::default() };
    Grant {
        kind: GrantKind::Key,
        key_fingerprint: Some("SHA256:x".to_owned()),
        restrictions,
        ..Grant::local("ann", 1000)
    }
}

fn spec(command: Command) -> OpenSpec {
    OpenSpec::new(JobId::new("j1").unwrap(), command)
}

fn argv(words: &[&str]) -> Command {
    Command::Argv(words.iter().map(|word| ByteString::from(*word)).collect())
}

fn reason(result: Result<Prepared, Refused>) -> RefusalReason {
    let refused = result.map(|prepared| prepared.argv).unwrap_err();
    assert_eq!(refused.started, Started::No);
    refused.reason
}

fn entry<'a>(prepared: &'a Prepared, name: &str) -> Option<&'a [u8]> {
    let prefix = format!("{name}=");
    prepared.env.iter().find_map(|entry| entry.as_bytes().strip_prefix(prefix.as_bytes()))
}

#[test]
fn argv_stays_exactly_what_it_was() {
    let words = ["printf", "%s|", "a b", "$HOME", "*", "\"q\"", ""];
    let prepared = prepare(&spec(argv(&words)), &grant(None), &user(), 0).unwrap();
    let seen: Vec<&[u8]> = prepared.argv.iter().map(|word| word.as_bytes()).collect();
    assert_eq!(seen, words.map(str::as_bytes));
    assert!(prepared.program.as_bytes().ends_with(b"/printf"));
}

#[test]
fn a_script_goes_to_the_users_shell_under_its_base_name() {
    let script = Command::Script("ls | wc".into());
    let prepared = prepare(&spec(script), &grant(None), &user(), 0).unwrap();
    assert_eq!(prepared.program.as_c_str(), c"/bin/sh");
    assert_eq!(prepared.argv, [c"sh".to_owned(), c"-c".to_owned(), c"ls | wc".to_owned()]);
}

#[test]
fn fault_46_a_nul_anywhere_is_refused() {
    let nul = || ByteString(b"a\0b".to_vec());
    let in_argv = spec(Command::Argv(vec!["true".into(), nul()]));
    let in_name = spec(Command::Argv(vec![ByteString(b"true\0x".to_vec())]));
    let in_script = spec(Command::Script(nul()));
    let in_env = OpenSpec { env: vec![("A".into(), nul())], ..spec(argv(&["true"])) };
    let in_cwd = OpenSpec { cwd: Some(nul()), ..spec(argv(&["true"])) };
    for spec in [in_argv, in_name, in_script, in_env, in_cwd] {
        assert_eq!(reason(prepare(&spec, &grant(None), &user(), 0)), RefusalReason::Invalid);
    }
}

#[test]
fn fault_47_a_name_of_a_variable_that_is_empty_or_has_an_equals_sign_is_refused() {
    for name in ["", "A=B"] {
        let spec = OpenSpec { env: vec![(name.into(), "x".into())], ..spec(argv(&["true"])) };
        assert_eq!(reason(prepare(&spec, &grant(None), &user(), 0)), RefusalReason::Invalid);
    }
}

#[test]
fn an_empty_argv_is_refused() {
    assert_eq!(reason(prepare(&spec(argv(&[])), &grant(None), &user(), 0)), RefusalReason::Invalid);
}

#[test]
fn the_program_is_searched_in_the_childs_path() {
    let path =
        OpenSpec { env: vec![("PATH".into(), "/nonexistent".into())], ..spec(argv(&["true"])) };
    assert_eq!(reason(prepare(&path, &grant(None), &user(), 0)), RefusalReason::NotFound);
}

#[test]
fn fault_84_a_forced_command_replaces_the_request_and_is_told_what_it_was() {
    let request = OpenSpec {
        cwd: Some("/tmp".into()),
        env: vec![("LD_PRELOAD".into(), "x".into()), ("LANG".into(), "C".into())],
        ..spec(argv(&["rm", "-rf", "a b"]))
    };
    let prepared = prepare(&request, &grant(Some("echo fixed")), &user(), 0).unwrap();
    assert_eq!(prepared.argv.last().unwrap().as_c_str(), c"echo fixed");
    assert_eq!(prepared.program.as_c_str(), c"/bin/sh");
    assert_eq!(entry(&prepared, "SSH_ORIGINAL_COMMAND"), Some(b"rm -rf 'a b'".as_slice()));
    assert_eq!(entry(&prepared, "LD_PRELOAD"), None);
    assert_eq!(entry(&prepared, "LANG"), Some(b"C".as_slice()));
    assert_eq!(prepared.cwd.as_c_str(), c"/");
}

#[test]
fn fault_84_an_expired_key_is_denied_even_on_a_connection_that_is_open() {
    let mut grant = grant(None);
    grant.restrictions.expires_at_s = Some(100);
    assert!(prepare(&spec(argv(&["true"])), &grant, &user(), 100).is_ok());
    let late = prepare(&spec(argv(&["true"])), &grant, &user(), 101);
    assert_eq!(reason(late), RefusalReason::Denied);
}

#[test]
fn a_job_is_marked_once_whatever_the_client_sets() {
    let request = OpenSpec {
        env: vec![("AFAR_JOB_MARK".into(), "mine".into()), ("AFAR_JOB_ID".into(), "no".into())],
        ..spec(argv(&["true"]))
    };
    let first = prepare(&request, &grant(None), &user(), 0).unwrap();
    let second = prepare(&request, &grant(None), &user(), 0).unwrap();
    assert_ne!(first.mark, second.mark);
    assert_eq!(entry(&first, "AFAR_JOB_ID"), Some(b"j1".as_slice()));
    let mark = entry(&first, "AFAR_JOB_MARK").unwrap();
    assert_eq!([b"AFAR_JOB_MARK=", mark].concat(), first.mark);
}

#[test]
fn limits_under_which_nothing_could_run_are_refused() {
    let limited = |memory_bytes, cpu_milli, pids_max| {
        let spec = OpenSpec { memory_bytes, cpu_milli, pids_max, ..spec(argv(&["true"])) };
        prepare(&spec, &grant(None), &user(), 0)
    };
    for (memory, cpu, pids) in
        [(Some(0), None, None), (None, Some(0), None), (Some(1), Some(1), Some(0))]
    {
        assert_eq!(reason(limited(memory, cpu, pids)), RefusalReason::Invalid);
    }
    let limits = limited(Some(1), None, Some(u64::MAX)).unwrap().limits;
    let expected = Limits { memory_bytes: Some(1), cpu_milli: None, pids_max: Some(u64::MAX) };
    assert_eq!(limits, expected);
}

fn on_terminal(command: Command) -> OpenSpec {
    let size = afar_proto::message::Resize::default();
    let terminal = afar_proto::message::Terminal {
        name: "vt100".into(),
        size,
        modes: std::collections::BTreeMap::new(),
    };
    OpenSpec { terminal: Some(Box::new(terminal)), ..spec(command) }
}

/// W-5.13
#[test]
fn a_login_shell_has_a_dash_and_a_terminal_its_name() {
    let shell = on_terminal(Command::Shell {});
    let prepared = prepare(&shell, &grant(None), &user(), 0).unwrap();
    let seen: Vec<&[u8]> = prepared.argv.iter().map(|word| word.as_bytes()).collect();
    assert_eq!(seen, [b"-sh"]);
    assert_eq!(prepared.program.as_bytes(), b"/bin/sh");
    assert_eq!(entry(&prepared, "TERM"), Some(&b"vt100"[..]));
    // Who names another one means it.
    let named = OpenSpec { env: vec![("TERM".into(), "xterm".into())], ..shell };
    let prepared = prepare(&named, &grant(None), &user(), 0).unwrap();
    assert_eq!(entry(&prepared, "TERM"), Some(&b"xterm"[..]));
}

/// W-4.10
#[test]
fn a_terminal_is_held_against_the_grant() {
    let mut no_pty = grant(None);
    no_pty.restrictions.no_pty = true;
    for command in [Command::Shell {}, argv(&["true"])] {
        let refused = prepare(&on_terminal(command.clone()), &no_pty, &user(), 0);
        assert_eq!(reason(refused), RefusalReason::Denied);
        assert!(prepare(&spec(command), &no_pty, &user(), 0).is_ok());
    }
    // A key's own command is run in the place of a shell, and is told of none.
    let prepared = prepare(&on_terminal(Command::Shell {}), &grant(Some("date")), &user(), 0);
    let prepared = prepared.unwrap();
    let seen: Vec<&[u8]> = prepared.argv.iter().map(|word| word.as_bytes()).collect();
    assert_eq!(seen, [&b"sh"[..], b"-c", b"date"]);
    assert_eq!(entry(&prepared, "SSH_ORIGINAL_COMMAND"), None);
    assert_eq!(entry(&prepared, "TERM"), Some(&b"vt100"[..]));
}
