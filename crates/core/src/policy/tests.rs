//! The whole table, cell by cell, against an expectation that is written another way.

use super::*;

const NOW_S: i64 = 1_800_000_000;

fn grant(restrictions: Restrictions) -> Grant {
    Grant {
        kind: GrantKind::Key,
        user: "alice".into(),
        uid: 1000,
        key_fingerprint: Some("SHA256:abc".into()),
        source_address: Some([192, 0, 2, 1].into()),
        restrictions,
        basis: Some(Basis {
            key: b"key".to_vec(),
            key_files: vec!["/home/alice/.ssh/authorized_keys".into()],
            trusted_authorities: None,
            revoked_keys: Some("/etc/afar/revoked".into()),
        }),
    }
}

fn forced(command: &str) -> Restrictions {
    Restrictions { forced_command: Some(command.into()), ..Restrictions::default() }
}

fn ls() -> Command {
    Command::Argv(vec!["ls".into(), "-l".into(), "a b".into()])
}

/// The rules in words, told apart from the table: what `allowed` must answer.
fn expectation(
    verb: Verb,
    restrictions: &Restrictions,
    facts: RequestFacts<'_>,
) -> Result<Decision, Denied> {
    let is_forced = restrictions.forced_command.is_some();
    let starts = matches!(verb, Verb::Run | Verb::Shell | Verb::Session);
    let by_shell = restrictions.login_shell_only;
    let names_a_job = matches!(verb, Verb::Attach | Verb::Logs | Verb::Kill);
    if restrictions.no_pty && starts && facts.pty {
        return Err(Denied::NoPty);
    }
    if restrictions.no_port_forwarding && verb == Verb::Forward {
        return Err(Denied::NoForwarding);
    }
    if is_forced && names_a_job && !facts.own_job {
        return Err(Denied::NotItsJob);
    }
    let execution = match &restrictions.forced_command {
        Some(command) if starts => Execution::Forced {
            command: command.clone(),
            original: facts.command.map(|_| "ls -l 'a b'".into()),
        },
        None if by_shell && starts && facts.command.is_some() => {
            Execution::Forced { command: "ls -l 'a b'".into(), original: None }
        }
        _ => Execution::AsRequested,
    };
    let surroundings = if (is_forced || by_shell) && starts {
        Surroundings::Accounts
    } else {
        Surroundings::Clients
    };
    let jobs = if is_forced && verb != Verb::Forward { JobsSeen::Own } else { JobsSeen::All };
    Ok(Decision { execution, surroundings, jobs })
}

#[test]
fn fault_84_the_whole_table_of_grant_and_verb() {
    let ls = ls();
    let forward = ForwardRequest { way: ForwardWay::Open, host: "db", port: 5432 };
    let mut cells = 0;
    let mut denied = 0;
    for verb in Verb::ALL {
        for bits in 0_u8..128 {
            let on = |bit: u8| bits & (1 << bit) != 0;
            let restrictions = Restrictions {
                forced_command: on(0).then(|| "backup".into()),
                no_pty: on(1),
                no_port_forwarding: on(2),
                login_shell_only: on(6),
                ..Restrictions::default()
            };
            let facts = RequestFacts {
                now_s: NOW_S,
                pty: on(3),
                own_job: on(4),
                command: (on(5) && matches!(verb, Verb::Run | Verb::Session)).then_some(&ls),
                forward: (verb == Verb::Forward).then_some(forward),
            };
            for kind in [GrantKind::Key, GrantKind::Delegated, GrantKind::Local] {
                let grant = Grant { kind, ..grant(restrictions.clone()) };
                let answer = allowed(&grant, verb, facts);
                assert_eq!(answer, expectation(verb, &restrictions, facts), "{verb:?} {bits:07b}");
                cells += 1;
                denied += usize::from(answer.is_err());
            }
        }
    }
    assert_eq!(cells, 8 * 128 * 3);
    assert!(denied > 100 && denied < cells / 2, "{denied} of {cells}");
}

/// The table of W-4.10, cell by cell: the words of the specification are held against the answers.
#[test]
fn fault_84_the_specifications_table_is_what_is_answered() {
    let spec = include_str!("../../../../docs/spec/wire.md");
    let mut lines = spec.lines().skip_while(|line| !line.starts_with("| limit "));
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let header = cells(lines.next().unwrap());
    let names = header.iter().skip(1).map(String::as_str);
    let verbs: Vec<Verb> = names.map(|name| verb_named(name).unwrap()).collect();
    assert_eq!(verbs, Verb::ALL);
    let mut rows = 0;
    for line in lines.skip(1).take_while(|line| line.starts_with('|')) {
        let row = cells(line);
        let restrictions = limit_named(&row[0]);
        assert_eq!(row.len(), verbs.len() + 1, "{line}");
        for (verb, word) in verbs.iter().zip(&row[1..]) {
            assert_eq!(answers(*verb, &restrictions), *word, "{} × {verb:?}", row[0]);
        }
        rows += 1;
    }
    assert_eq!(rows, 10);
}

fn verb_named(name: &str) -> Option<Verb> {
    Verb::ALL.into_iter().find(|verb| format!("{verb:?}").to_lowercase() == name)
}

fn limit_named(name: &str) -> Restrictions {
    let free = Restrictions::default();
    match name {
        "none" => free,
        "`command=`" => forced("backup"),
        "`no-pty`" => Restrictions { no_pty: true, ..free },
        "`no-port-forwarding`" => Restrictions { no_port_forwarding: true, ..free },
        "`permitopen=`, `permitlisten=`" => {
            let permits = vec!["other:1".to_owned()];
            Restrictions { permit_open: permits.clone(), permit_listen: permits, ..free }
        }
        "`restrict`" => Restrictions {
            no_pty: true,
            no_port_forwarding: true,
            no_agent_forwarding: true,
            no_x11_forwarding: true,
            no_user_rc: true,
            ..free
        },
        "`expiry-time=`, over" => Restrictions { expires_at_s: Some(NOW_S - 1), ..free },
        "`environment=`" => {
            let variable = KeyVariable { name: "A".into(), value: "b".into() };
            Restrictions { environment: vec![variable], ..free }
        }
        "`no-agent-forwarding`, `no-X11-forwarding`, `no-user-rc`" => Restrictions {
            no_agent_forwarding: true,
            no_x11_forwarding: true,
            no_user_rc: true,
            ..free
        },
        "login shell only" => Restrictions { login_shell_only: true, ..free },
        other => panic!("no test knows the row {other}"),
    }
}

/// What a limit makes of a verb, in the words of the table.
fn answers(verb: Verb, restrictions: &Restrictions) -> &'static str {
    let ls = ls();
    let ask = |pty, own_job| {
        let forward = ForwardRequest { way: ForwardWay::Open, host: "db", port: 5432 };
        let facts = RequestFacts {
            now_s: NOW_S,
            pty,
            own_job,
            command: (verb != Verb::Shell).then_some(&ls),
            forward: Some(forward),
        };
        allowed(&grant(restrictions.clone()), verb, facts)
    };
    let plain = match (ask(false, true), ask(false, false)) {
        (Ok(_), Err(Denied::NotItsJob)) => return "own job",
        (Err(Denied::ForwardTarget), _) => return "named",
        (Err(_), _) => return "no",
        (Ok(decision), _) => decision,
    };
    if ask(true, true) == Err(Denied::NoPty) {
        return "no terminal";
    }
    match (plain.execution, plain.surroundings, plain.jobs) {
        (Execution::Forced { original: Some(_), .. }, Surroundings::Accounts, JobsSeen::Own)
            if verb != Verb::Shell =>
        {
            "forced"
        }
        (Execution::Forced { original: None, .. }, Surroundings::Accounts, JobsSeen::Own) => {
            "forced"
        }
        (Execution::Forced { original: None, .. }, Surroundings::Accounts, JobsSeen::All)
        | (Execution::AsRequested, Surroundings::Accounts, JobsSeen::All) => "by the shell",
        (Execution::AsRequested, Surroundings::Clients, JobsSeen::Own) => "own jobs",
        (Execution::AsRequested, Surroundings::Clients, JobsSeen::All) => "yes",
        other => panic!("no word for {other:?}"),
    }
}

#[test]
fn fault_84_a_login_shell_that_decides_gets_everything_as_text_and_nothing_of_the_clients() {
    let ls = ls();
    let grant = grant(Restrictions { login_shell_only: true, ..Restrictions::default() });
    let run = allowed(&grant, Verb::Run, RequestFacts::run(NOW_S, &ls)).unwrap();
    let text = Execution::Forced { command: "ls -l 'a b'".into(), original: None };
    assert_eq!(run.execution, text);
    let shell = allowed(&grant, Verb::Shell, RequestFacts::other(NOW_S)).unwrap();
    assert_eq!(shell.execution, Execution::AsRequested);
    for decision in [run, shell] {
        assert!(!decision.accepts_variable(b"LD_PRELOAD") && !decision.accepts_cwd());
        assert_eq!(decision.jobs, JobsSeen::All);
    }
}

#[test]
fn fault_84_a_forced_command_replaces_run_and_shell() {
    let ls = ls();
    let grant = grant(forced("backup --all"));
    let decision = allowed(&grant, Verb::Run, RequestFacts::run(NOW_S, &ls)).unwrap();
    assert_eq!(
        decision.execution,
        Execution::Forced { command: "backup --all".into(), original: Some("ls -l 'a b'".into()) }
    );
    let shell = RequestFacts { pty: true, ..RequestFacts::other(NOW_S) };
    let decision = allowed(&grant, Verb::Shell, shell).unwrap();
    assert_eq!(
        decision.execution,
        Execution::Forced { command: "backup --all".into(), original: None }
    );
}

#[test]
fn fault_84_an_empty_forced_command_still_forces() {
    let ls = ls();
    let decision = allowed(&grant(forced("")), Verb::Run, RequestFacts::run(NOW_S, &ls)).unwrap();
    assert!(
        matches!(decision.execution, Execution::Forced { command, .. } if command.0.is_empty())
    );
}

#[test]
fn fault_84_the_client_cannot_steer_a_forced_command() {
    let ls = ls();
    let facts = RequestFacts::run(NOW_S, &ls);
    let bound = allowed(&grant(forced("backup")), Verb::Run, facts).unwrap();
    let free = allowed(&grant(Restrictions::default()), Verb::Run, facts).unwrap();
    for name in ["LD_PRELOAD", "BASH_ENV", "ENV", "PATH", "IFS", "LCX", "SSH_ORIGINAL_COMMAND", ""]
    {
        assert!(!bound.accepts_variable(name.as_bytes()), "{name}");
        assert!(free.accepts_variable(name.as_bytes()), "{name}");
    }
    for name in ["LANG", "LC_ALL", "LC_MESSAGES", "TERM"] {
        assert!(bound.accepts_variable(name.as_bytes()), "{name}");
    }
    assert!(!bound.accepts_cwd() && free.accepts_cwd());
}

#[test]
fn the_original_command_must_fit_a_variable() {
    let grant = grant(forced("backup"));
    let answer = |length: usize| {
        let script = Command::Script(ByteString(vec![b'x'; length]));
        allowed(&grant, Verb::Run, RequestFacts::run(NOW_S, &script)).map(|_| ())
    };
    let fits = ENVIRONMENT_STRING_BYTES_MAX - "SSH_ORIGINAL_COMMAND=".len() - 1;
    assert_eq!(answer(fits), Ok(()));
    assert_eq!(answer(fits + 1), Err(Denied::OriginalTooLong));
    let nul = Command::Argv(vec!["a\0b".into()]);
    let facts = RequestFacts::run(NOW_S, &nul);
    assert_eq!(allowed(&grant, Verb::Run, facts), Err(Denied::OriginalHoldsNul));
}

#[test]
fn fault_84_an_expired_key_may_do_nothing_more() {
    let grant = grant(Restrictions { expires_at_s: Some(NOW_S), ..Restrictions::default() });
    for verb in Verb::ALL {
        let forward = ForwardRequest { way: ForwardWay::Open, host: "h", port: 1 };
        let at = |now_s| RequestFacts { forward: Some(forward), ..RequestFacts::other(now_s) };
        assert!(allowed(&grant, verb, at(NOW_S)).is_ok());
        assert_eq!(allowed(&grant, verb, at(NOW_S + 1)), Err(Denied::Expired));
    }
}

#[test]
fn fault_84_permitopen_and_permitlisten_name_what_may_be_forwarded() {
    let grant = grant(Restrictions {
        permit_open: vec!["db:5432".into(), "[::1]:80".into(), "any:*".into()],
        permit_listen: vec!["8080".into(), "10.0.*:9000".into()],
        ..Restrictions::default()
    });
    let may = |way, host, port| {
        let forward = Some(ForwardRequest { way, host, port });
        allowed(&grant, Verb::Forward, RequestFacts { forward, ..RequestFacts::other(NOW_S) })
            .is_ok()
    };
    use ForwardWay::{Listen, Open};
    assert!(may(Open, "db", 5432) && may(Open, "::1", 80) && may(Open, "any", 1));
    assert!(!may(Open, "db", 5433) && !may(Open, "d", 5432) && !may(Open, "::2", 80));
    // No pattern matching on hosts to connect to (sshd(8), permitopen).
    assert!(!may(Open, "db*", 5432));
    assert!(may(Listen, "localhost", 8080) && may(Listen, "10.0.0.1", 9000));
    assert!(!may(Listen, "10.1.0.1", 9000) && !may(Listen, "localhost", 8081));
    let unnamed = allowed(&grant, Verb::Forward, RequestFacts::other(NOW_S));
    assert_eq!(unnamed, Err(Denied::ForwardTarget));
}

#[test]
fn denials_have_the_word_of_the_wire() {
    assert_eq!(Denied::NotItsJob.reason(), RefusalReason::NoSuchJob);
    assert_eq!(Denied::OriginalTooLong.reason(), RefusalReason::TooLong);
    assert_eq!(Denied::OriginalHoldsNul.reason(), RefusalReason::Invalid);
    for denied in [Denied::Expired, Denied::NoPty, Denied::NoForwarding, Denied::ForwardTarget] {
        assert_eq!(denied.reason(), RefusalReason::Denied);
    }
}

#[test]
fn a_forced_command_has_a_scope_of_its_own() {
    assert_eq!(grant(forced("x")).job_scope(), JobScope::Key("SHA256:abc"));
    assert_eq!(grant(Restrictions::default()).job_scope(), JobScope::User);
    assert_eq!(Grant::local("alice", 1000).job_scope(), JobScope::User);
}

#[test]
fn a_grant_survives_its_encoding() {
    let full = grant(Restrictions {
        forced_command: Some(ByteString(b"\xff\0".to_vec())),
        no_pty: true,
        environment: vec![KeyVariable { name: "A".into(), value: "b\"c".into() }],
        permit_open: vec!["h:1".into()],
        permit_listen: vec!["1".into()],
        touch_required: false,
        verify_required: true,
        expires_at_s: Some(NOW_S),
        login_shell_only: true,
        ..Restrictions::default()
    });
    for grant in [full, Grant::local(b"\xe9ric".to_vec(), 0)] {
        assert_eq!(Grant::decode(&grant.encode()), Ok(grant));
    }
}

#[test]
fn a_grant_has_the_bytes_of_the_specification() {
    // W-4.8
    let mut grant = grant(Restrictions {
        forced_command: Some("backup".into()),
        no_pty: true,
        environment: vec![KeyVariable { name: "A".into(), value: ByteString(b"\xff".to_vec()) }],
        permit_open: vec!["h:1".into()],
        expires_at_s: Some(NOW_S),
        ..Restrictions::default()
    });
    grant.user = "alice".into();
    let payload = grant.encode();
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let frame = [&[0x0f, 0, 0, 0, 0, 0, 0, 0], length.as_slice(), &payload].concat();
    let file = include_str!("../../../../docs/spec/vectors/grant.hex");
    let lines = file.lines().filter(|line| !line.starts_with('#'));
    let words = lines.flat_map(str::split_whitespace);
    let expected: Vec<u8> = words.map(|word| u8::from_str_radix(word, 16).unwrap()).collect();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x} ")).collect::<String>();
    let lines: Vec<String> =
        [hex(&frame[..12])].into_iter().chain(payload.chunks(16).map(hex)).collect();
    assert!(expected == frame, "grant.hex holds other bytes than these:\n{}", lines.join("\n"));
    assert_eq!(Grant::decode(&expected[12..]), Ok(grant));
}

#[test]
fn a_grant_that_is_not_understood_whole_is_refused() {
    let good = String::from_utf8(Grant::local("alice", 1000).encode()).unwrap();
    let variants = [
        good.replacen('{', r#"{"sandbox":true,"#, 1),
        good.replace(r#""no_pty":false"#, r#""no_pty":false,"no_network":true"#),
        good.replace(r#""no_pty":false,"#, ""),
        good.replace(r#""forced_command":null,"#, ""),
        good.replace(r#","expires_at_s":null"#, ""),
        good.replace(r#","login_shell_only":false"#, ""),
        good.replace(r#""source_address":null,"#, ""),
        good.replace(r#","basis":null"#, ""),
        good.replace(r#""no_pty":false"#, r#""no_pty":false,"no_pty":true"#),
        good.replace(r#""uid":1000"#, r#""uid":-1"#),
        good.replace(r#""kind":"local""#, r#""kind":"key""#),
        good.replace(r#""kind":"local""#, r#""kind":"root""#),
        good.replace(r#""key_fingerprint":null"#, r#""key_fingerprint":"SHA256:x""#),
        String::new(),
    ];
    assert!(Grant::decode(good.as_bytes()).is_ok());
    for variant in variants {
        assert_ne!(variant, good);
        assert!(Grant::decode(variant.as_bytes()).is_err(), "{variant}");
    }
}
