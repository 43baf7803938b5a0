//! Lines as sshd reads them, and lines that must grant nothing.
//!
//! The lines that grant, and those of `malformed`, were given to the sshd of OpenSSH 9.2 by hand; it
//! agrees but for the ones that this reader's documentation names as stricter.

use proptest::prelude::*;

use super::*;
use crate::certificate::rig::{Draft, string};
use crate::limits::DIAGNOSTICS_MAX;

const NOW_S: i64 = 1_795_341_600; // 2026-11-22 10:00:00 UTC
const ALICE: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDvBLbc4Y8gAXpk7WApR7U1vzJYap3fKZnIw1b6Qwef9";
const BOB: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIP66NdamCPYY30VgE2+3/ikwTwtjlOtn5BfoLm6YT0ln";

fn key(fields: &str) -> PublicKeyBlob {
    PublicKeyBlob::from_public_line(fields.as_bytes()).unwrap().0
}

fn context() -> Context<'static> {
    Context { now_s: NOW_S, source: Some([192, 0, 2, 7].into()), local_time: None }
}

/// An answer, with the remarks on the file.
#[derive(Debug)]
struct Lookup {
    decision: Decision,
    diagnostics: Diagnostics,
}

fn find(file: &[u8], key: &PublicKeyBlob, context: Context<'_>) -> Lookup {
    let parsed = AuthorizedKeys::parse(file, UserEnvironment::Ignored);
    Lookup { decision: parsed.find(key, context), diagnostics: parsed.diagnostics().clone() }
}

fn look(file: &str) -> Lookup {
    find(file.as_bytes(), &key(ALICE), context())
}

/// The restrictions of a line that must let the key in.
fn granted(options: &str) -> Restrictions {
    match look(&format!("{options} {ALICE}")).decision {
        Decision::Granted { line: 1, restrictions } => restrictions,
        other => panic!("{options}: {other:?}"),
    }
}

fn granted_line(file: &str) -> Option<usize> {
    match look(file).decision {
        Decision::Granted { line, .. } => Some(line),
        Decision::Refused(_) => None,
    }
}

fn refusal(file: &str) -> Refusal {
    match look(file).decision {
        Decision::Refused(refusal) => refusal,
        granted @ Decision::Granted { .. } => panic!("{file}: {granted:?}"),
    }
}

#[test]
fn a_plain_line_grants_without_restrictions() {
    for file in [
        format!("{ALICE}\n"),
        ALICE.to_owned(),
        format!("{ALICE} alice@example and more\n"),
        format!(" \t{ALICE}\r\n"),
        format!("# comment\n\n   \n{BOB}\n{ALICE}"),
        ALICE.replacen(' ', "  \t ", 1),
    ] {
        let lookup = look(&file);
        let Decision::Granted { restrictions, .. } = lookup.decision else {
            panic!("{file}: {lookup:?}")
        };
        assert_eq!(restrictions, Restrictions::default());
        assert!(lookup.diagnostics.is_empty());
    }
    assert_eq!(granted_line(&format!("#\n{BOB}\n\n{ALICE}\n{ALICE}\n")), Some(4));
    assert_eq!(refusal(BOB), Refusal::NotListed);
    assert_eq!(refusal(""), Refusal::NotListed);
}

#[test]
fn comments_are_at_the_start_of_a_line_only() {
    let granted = granted("command=\"echo #1\"");
    assert_eq!(granted.forced_command, Some("echo #1".into()));
    assert_eq!(refusal(&format!("#{ALICE}")), Refusal::NotListed);
    assert_eq!(refusal(&format!("  # {ALICE}")), Refusal::NotListed);
}

#[test]
fn fault_84_quotes_are_those_of_sshd() {
    let command = |text: &str| granted(&format!("command={text}")).forced_command.unwrap();
    assert_eq!(command(r#""a b""#), "a b".into());
    assert_eq!(command(r#""say \"hi, all\" ssh-rsa""#), r#"say "hi, all" ssh-rsa"#.into());
    // A backslash is itself everywhere but before a quote.
    assert_eq!(command(r#""a\nb\\c""#), r"a\nb\\c".into());
    assert_eq!(command(r#""""#), "".into());
    assert_eq!(command("\"tab\tand = and , and #\""), "tab\tand = and , and #".into());
}

#[test]
fn fault_84_flags_apply_in_order_and_in_any_case() {
    let all = Restrictions {
        no_pty: true,
        no_port_forwarding: true,
        no_agent_forwarding: true,
        no_x11_forwarding: true,
        no_user_rc: true,
        ..Restrictions::default()
    };
    assert_eq!(granted("restrict"), all);
    assert_eq!(granted("ReStRiCt"), all);
    assert_eq!(granted("pty,port-forwarding,restrict"), all);
    assert_eq!(granted("restrict,pty"), Restrictions { no_pty: false, ..all.clone() });
    assert_eq!(
        granted("restrict,port-forwarding,agent-forwarding,X11-forwarding,user-rc,pty"),
        Restrictions::default()
    );
    assert_eq!(
        granted("no-pty,no-port-forwarding,no-agent-forwarding,no-X11-forwarding,no-user-rc"),
        all
    );
    assert!(granted("NO-PTY").no_pty);
    assert!(!granted("no-pty,pty").no_pty);
    assert!(!granted("no-touch-required").touch_required);
    assert!(granted("verify-required").verify_required);
    // sshd passes over empty options.
    assert!(granted(",,no-pty,").no_pty);
}

#[test]
fn fault_84_command_and_from_and_principals_stand_once() {
    for options in [
        r#"command="a",command="b""#,
        r#"from="*",from="192.0.2.7""#,
        r#"cert-authority,principals="a",principals="b""#,
    ] {
        let lookup = look(&format!("{options} {ALICE}"));
        assert_eq!(lookup.decision, Decision::Refused(Refusal::NotListed), "{options}");
        assert!(lookup.diagnostics.kept()[0].message.contains("twice"), "{lookup:?}");
    }
}

#[test]
fn fault_84_from_decides_by_address() {
    let held = Refusal::Held { line: 1, why: Held::Source };
    assert_eq!(granted(r#"from="192.0.2.0/24""#), Restrictions::default());
    assert_eq!(refusal(&format!("from=\"198.51.100.*\" {ALICE}")), held);
    assert_eq!(refusal(&format!("from=\"*,!192.0.2.7\" {ALICE}")), held);
    // Without an address nothing matches, not even everything.
    let file = format!("from=\"*\" {ALICE}");
    let nowhere = Context { source: None, ..context() };
    let lookup = find(file.as_bytes(), &key(ALICE), nowhere);
    assert_eq!(lookup.decision, Decision::Refused(held));
}

#[test]
fn fault_84_a_later_line_may_let_in_what_an_earlier_one_does_not() {
    let file = format!("from=\"10.0.0.1\" {ALICE}\nno-pty {ALICE}\n{ALICE}\n");
    let Decision::Granted { line, restrictions, .. } = look(&file).decision else { panic!() };
    assert_eq!((line, restrictions.no_pty), (2, true));
    // Of several lines that do not, the first is told.
    let file = format!("expiry-time=\"20200101\" {ALICE}\nfrom=\"10.0.0.1\" {ALICE}\n");
    assert_eq!(refusal(&file), Refusal::Held { line: 1, why: Held::Expired });
}

#[test]
fn fault_84_expiry_time_holds_to_the_second() {
    assert_eq!(granted(r#"expiry-time="20261122100000Z""#).expires_at_s, Some(NOW_S));
    let held = Refusal::Held { line: 1, why: Held::Expired };
    assert_eq!(refusal(&format!("expiry-time=\"20261122095959Z\" {ALICE}")), held);
    // Of several the earliest counts.
    let two = r#"expiry-time="20300101Z",expiry-time="20290101Z""#;
    assert_eq!(granted(two).expires_at_s, Some(1_861_920_000));
    assert_eq!(refusal(&format!("{two},expiry-time=\"20200101Z\" {ALICE}")), held);
}

#[test]
fn fault_84_expiry_without_a_zone_is_local_time() {
    let file = format!("expiry-time=\"202611221030\" {ALICE}");
    let decide = |offset_s: Option<i64>| {
        let zone = |time: CivilTime| offset_s.map(|offset_s| time.to_unix_s_as_utc() - offset_s);
        let context = Context { local_time: Some(&zone), ..context() };
        matches!(find(file.as_bytes(), &key(ALICE), context).decision, Decision::Granted { .. })
    };
    assert!(decide(Some(0)) && decide(Some(-8 * 3600)));
    assert!(!decide(Some(3600)), "half past ten in Berlin is half past nine UTC");
    assert!(!decide(None), "a zone that is not known is the earliest");
}

#[test]
fn fault_84_environment_is_off_unless_enabled() {
    let file =
        format!("environment=\"A=1\",environment=\"B=x=\\\"y\\\"\",environment=\"A=2\" {ALICE}");
    let lookup = look(&file);
    let Decision::Granted { restrictions, .. } = lookup.decision else { panic!("{file}") };
    assert_eq!(restrictions.environment, []);
    assert_eq!(lookup.diagnostics.kept().len(), 1);

    let enabled = AuthorizedKeys::parse(file.as_bytes(), UserEnvironment::Honoured);
    let decision = enabled.find(&key(ALICE), context());
    let Decision::Granted { restrictions, .. } = decision else { panic!("{file}") };
    let pairs: Vec<_> = restrictions
        .environment
        .iter()
        .map(|variable| (variable.name.as_str(), variable.value.as_bytes()))
        .collect();
    assert_eq!(pairs, [("A", &b"1"[..]), ("B", b"x=\"y\"")]);
    assert!(enabled.diagnostics().is_empty());
}

#[test]
fn fault_84_forwarding_limits_are_kept() {
    let options = r#"permitopen="db:5432",permitopen="[::1]:*",permitlisten="8080",permitlisten="localhost:1""#;
    let restrictions = granted(options);
    assert_eq!(restrictions.permit_open, ["db:5432", "[::1]:*"]);
    assert_eq!(restrictions.permit_listen, ["8080", "localhost:1"]);
    granted(r#"tunnel="0""#);
    granted(r#"tunnel="any""#);
}

#[test]
fn fault_84_an_authority_is_no_key_and_a_key_no_authority() {
    let file = format!("cert-authority,no-pty {ALICE}\n{BOB}\n");
    assert_eq!(refusal(&file), Refusal::NotListed);
    assert!(certificate_of(ALICE, &file, |_| {}).is_ok());
    assert_eq!(certificate_of(BOB, &file, |_| {}), Err(Refusal::AuthorityNotListed));
    // As sshd: principals on a plain key let nobody in.
    let held = Refusal::Held { line: 1, why: Held::PrincipalsOfPlainKey };
    assert_eq!(refusal(&format!("principals=\"alice\" {ALICE}")), held);
    // The key of a certificate is no way in for the certificate, nor the other way round.
    let plain = certificate_of(ALICE, BOB, |draft| draft.key = 3);
    assert_eq!(plain, Err(Refusal::AuthorityNotListed));
}

/// What a certificate of alice's by this authority gets from the file.
fn certificate_of(
    authority: &str,
    file: &str,
    change: impl FnOnce(&mut Draft),
) -> Result<Restrictions, Refusal> {
    let mut draft =
        Draft { authority: key(authority).into_bytes(), valid: (0, u64::MAX), ..Draft::default() };
    change(&mut draft);
    let parsed = AuthorizedKeys::parse(file.as_bytes(), UserEnvironment::Ignored);
    match parsed.find_certificate(&draft.certificate(), "alice", context()) {
        Decision::Granted { restrictions, .. } => Ok(restrictions),
        Decision::Refused(refusal) => Err(refusal),
    }
}

#[test]
fn fault_77_a_certificate_needs_the_user_or_one_of_the_lines_principals() {
    let by_user = format!("cert-authority {ALICE}");
    assert!(certificate_of(ALICE, &by_user, |_| {}).is_ok());
    let names = |names: &'static [&'static str]| {
        move |draft: &mut Draft| {
            draft.principals = names.iter().map(|name| name.as_bytes().to_vec()).collect();
        }
    };
    let wrong = certificate_of(ALICE, &by_user, names(&["bob"]));
    assert!(matches!(
        wrong,
        Err(Refusal::Held { line: 1, why: Held::Certificate(CertificateRefusal::Principal(_)) })
    ));
    let listed = format!("cert-authority,principals=\"ops,dev\" {ALICE}");
    assert!(certificate_of(ALICE, &listed, names(&["dev"])).is_ok());
    // Then the user's own name is no principal any more.
    assert!(certificate_of(ALICE, &listed, |_| {}).is_err());
    // A comma in a certificate's principal is no list.
    assert!(certificate_of(ALICE, &listed, names(&["ops,dev"])).is_err());
    for file in [&by_user, &listed] {
        let why = Held::Certificate(CertificateRefusal::NoPrincipals);
        let nobody = certificate_of(ALICE, file, names(&[]));
        assert_eq!(nobody, Err(Refusal::Held { line: 1, why }));
    }
    // Nobody is in an empty list.
    let empty = format!("cert-authority,principals=\"\" {ALICE}");
    assert!(certificate_of(ALICE, &empty, |_| {}).is_err());
    // A later line may let in what an earlier one does not.
    assert!(certificate_of(ALICE, &format!("{empty}\n{by_user}"), |_| {}).is_ok());
}

#[test]
fn fault_77_the_line_and_the_certificate_restrict_together() {
    let with = |options: &str, change: fn(&mut Draft)| {
        certificate_of(ALICE, &format!("cert-authority{options} {ALICE}"), change)
    };
    // The draft permits a terminal and nothing else.
    let restrictions = with("", |_| {}).unwrap();
    assert!(!restrictions.no_pty && restrictions.no_port_forwarding);
    assert!(with(",no-pty", |_| {}).unwrap().no_pty);
    let forced = |draft: &mut Draft| {
        draft.critical.push(("force-command", string(b"date")));
    };
    assert_eq!(with("", forced).unwrap().forced_command, Some("date".into()));
    assert_eq!(with(",command=\"date\"", forced).unwrap().forced_command, Some("date".into()));
    assert_eq!(with(",command=\"id\"", |_| {}).unwrap().forced_command, Some("id".into()));
    let why = Held::ForcedCommands(ForcedCommandsDiffer);
    assert_eq!(with(",command=\"id\"", forced), Err(Refusal::Held { line: 1, why }));
    // A touch is dispensed with by both or not at all.
    let no_touch = |draft: &mut Draft| draft.extensions.push(("no-touch-required", Vec::new()));
    assert!(with("", no_touch).unwrap().touch_required);
    assert!(with(",no-touch-required", |_| {}).unwrap().touch_required);
    assert!(!with(",no-touch-required", no_touch).unwrap().touch_required);
    let verify = |draft: &mut Draft| draft.critical.push(("verify-required", Vec::new()));
    assert!(with("", verify).unwrap().verify_required);
    assert!(with(",verify-required", |_| {}).unwrap().verify_required);
    // The earlier end counts, and from= of the line holds as well.
    let until = |draft: &mut Draft| draft.valid.1 = 1_861_920_000;
    let expires = |options: &str| with(options, until).unwrap().expires_at_s;
    assert_eq!(expires(""), Some(1_861_919_999));
    assert_eq!(expires(",expiry-time=\"20280101Z\""), Some(1_830_297_600));
    assert_eq!(expires(",expiry-time=\"20300101Z\""), Some(1_861_919_999));
    let why = Held::Source;
    assert_eq!(with(",from=\"10.0.0.1\"", |_| {}), Err(Refusal::Held { line: 1, why }));
}

/// Lines with the key on them that must nevertheless grant nothing.
fn malformed() -> Vec<String> {
    let base64 = ALICE.split(' ').nth(1).unwrap();
    let mut lines: Vec<String> = [
        "sandbox",
        "no-ptyx",
        "pty=\"yes\"",
        "no-pty=\"\"",
        "no-restrict",
        "no-cert-authority",
        "no-",
        "restrict;pty",
        "restrict no-pty",
        "restrict,,x",
        "=\"x\"",
        "\"no-pty\"",
        "command",
        "command=ls",
        "command=\"ls",
        "command=\"ls\"x",
        "command=\"ls\"\"x\"",
        "command='ls'",
        "command =\"ls\"",
        "Command=\"a\",COMMAND=\"b\"",
        "from",
        "from=\"\"",
        "from=\"10.0.0.1/8\"",
        "from=\"*,!bad.example\"",
        "from=\"*,\"",
        "environment=\"A\"",
        "environment=\"=x\"",
        "environment=\"A-B=x\"",
        "environment=\"A B=x\"",
        "expiry-time=\"soon\"",
        "expiry-time=\"\"",
        "expiry-time=\"20260231\"",
        "expiry-time=20300101",
        "permitopen=\"host\"",
        "permitopen=\"80\"",
        "permitopen=\"host:0\"",
        "permitopen=\"host:65536\"",
        "permitopen=\":80\"",
        "permitopen=\"[::1\"",
        "permitopen=\"::1:80\"",
        "permitopen=\"none\"",
        "permitlisten=\"host:\"",
        "permitlisten=\"x\"",
        "tunnel=\"x\"",
        "tunnel=\"\"",
        "tunnel=0",
        "restrict,\\\"",
        "no-pty\u{a0}",
        "ssh-ed25519",
        "ssh-new@example.com",
        "1024",
    ]
    .into_iter()
    .map(|options| format!("{options} {ALICE}"))
    .collect();
    lines.extend([
        format!("ssh-rsa {base64}"),
        format!("ssh-ed25519-cert-v01@openssh.com {base64}"),
        format!("ssh-ed25519 {}", &base64[..base64.len() - 4]),
        format!("ssh-ed25519 {base64}AAAA"),
        format!("ssh-ed25519 {base64}="),
        format!("ssh-ed25519\u{a0}{base64}"),
        format!("SSH-ED25519 {base64}"),
        format!("ssh-ed25519,{base64}"),
        format!("no-pty,{ALICE}"),
        format!("\0{ALICE}"),
        format!("{ALICE} comment\0"),
        format!("command=\"ls\0\" {ALICE}"),
        format!("\u{feff}{ALICE}"),
        base64.to_owned(),
        "ssh-ed25519".to_owned(),
        "restrict".to_owned(),
        "restrict ssh-ed25519".to_owned(),
        "\"".to_owned(),
    ]);
    lines
}

#[test]
fn fault_79_a_malformed_line_grants_nothing_and_the_others_do() {
    for line in malformed() {
        let lookup = look(&line);
        assert_eq!(lookup.decision, Decision::Refused(Refusal::NotListed), "{line:?}");
        assert_eq!(lookup.diagnostics.kept().len(), 1, "{line:?}");
        assert_eq!(lookup.diagnostics.kept()[0].line, 1);
        // The lines around it are read as if it were not there.
        let lookup = look(&format!("{line}\n{ALICE}\n"));
        assert!(matches!(lookup.decision, Decision::Granted { line: 2, .. }), "{line:?}");
        let lookup = find(format!("{line}\n{BOB}\n").as_bytes(), &key(BOB), context());
        assert!(matches!(lookup.decision, Decision::Granted { line: 2, .. }), "{line:?}");
    }
}

#[test]
fn fault_79_diagnostics_are_bounded_and_hold_no_control_characters() {
    let file = "\x1b[2J \u{202e} x\n".repeat(DIAGNOSTICS_MAX + 5);
    let diagnostics = look(&file).diagnostics;
    assert_eq!((diagnostics.kept().len(), diagnostics.left_out()), (DIAGNOSTICS_MAX, 5));
    for diagnostic in diagnostics.kept() {
        let text = diagnostic.to_string();
        assert!(text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()), "{text}");
        assert!(text.len() < 200);
    }
}

#[test]
fn the_length_of_a_line_is_bounded() {
    let line = |total: usize| format!("{ALICE} {}", "x".repeat(total - ALICE.len() - 1));
    assert_eq!(granted_line(&line(AUTHORIZED_KEYS_LINE_BYTES_MAX)), Some(1));
    let over = line(AUTHORIZED_KEYS_LINE_BYTES_MAX + 1);
    assert_eq!(refusal(&over), Refusal::NotListed);
    assert_eq!(granted_line(&format!("{over}\n{ALICE}")), Some(2));
}

#[test]
fn the_size_of_a_file_is_bounded() {
    let file = |total: usize| {
        let mut file = format!("{ALICE}\n");
        file.push_str(&"#".repeat(total - file.len()));
        file
    };
    assert_eq!(granted_line(&file(AUTHORIZED_KEYS_BYTES_MAX)), Some(1));
    assert_eq!(refusal(&file(AUTHORIZED_KEYS_BYTES_MAX + 1)), Refusal::FileTooLarge);
}

#[test]
fn entries_tell_every_line_that_is_not_a_comment() {
    let file = format!("# x\n\n{ALICE}\nbad\nno-pty {BOB}\n");
    let all: Vec<_> = entries(file.as_bytes()).collect();
    let lines: Vec<_> = all
        .iter()
        .map(|entry| match entry {
            Ok(entry) => (entry.line, entry.options.no_pty),
            Err(diagnostic) => (diagnostic.line, true),
        })
        .collect();
    assert_eq!(lines, [(3, false), (4, true), (5, true)]);
    assert!(all[1].is_err());
}

/// Pieces that such files are made of, so that random files are near to valid ones.
fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(ALICE.to_owned()),
        Just(BOB.to_owned()),
        Just("no-pty".to_owned()),
        Just("restrict".to_owned()),
        Just("command=\"".to_owned()),
        Just("from=\"".to_owned()),
        Just("expiry-time=\"2030".to_owned()),
        Just("cert-authority".to_owned()),
        Just("\"".to_owned()),
        Just("\\\"".to_owned()),
        Just(",".to_owned()),
        Just(" ".to_owned()),
        Just("\n".to_owned()),
        Just("#".to_owned()),
        Just("\0".to_owned()),
        ".{0,3}",
    ]
}

proptest! {
    #[test]
    fn fault_79_no_bytes_panic_or_grant(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let lookup = find(&bytes, &key(ALICE), context());
        prop_assert!(matches!(lookup.decision, Decision::Refused(_)));
    }

    #[test]
    fn fault_79_only_a_well_formed_line_with_the_key_grants(
        pieces in proptest::collection::vec(piece(), 0..20)
    ) {
        let file = pieces.concat();
        if let Decision::Granted { line, .. } = look(&file).decision {
            let text = file.split('\n').nth(line - 1).unwrap();
            prop_assert!(text.contains(ALICE) && !text.trim_start().starts_with('#'));
            // That line alone grants the same.
            let alone = look(text).decision;
            let granted = matches!(alone, Decision::Granted { line: 1, .. });
            prop_assert!(granted);
        }
    }

    #[test]
    fn fault_84_any_command_survives_its_quoting(command in "[^\0\n\\\\]{0,40}") {
        // A backslash before a quote would be read as part of it, so there is none here.
        let line = format!("command=\"{}\"", command.replace('"', "\\\""));
        prop_assert_eq!(granted(&line).forced_command, Some(command.as_str().into()));
    }
}
