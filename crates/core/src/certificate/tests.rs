//! Every rule about certificates, each with one that breaks it.

use super::rig::{Draft, ed25519, string};
use super::*;

fn check(draft: &Draft) -> Result<Restrictions, CertificateRefusal> {
    check_with(draft, |_| {})
}

fn check_with(
    draft: &Draft,
    change: impl FnOnce(&mut UserCheck<'_>),
) -> Result<Restrictions, CertificateRefusal> {
    let mut check =
        UserCheck { names: &["alice"], now_s: 1500, source: Some([192, 0, 2, 7].into()) };
    change(&mut check);
    draft.certificate().check_user(check)
}

#[test]
fn what_a_certificate_says_is_read() {
    let certificate = Draft::default().certificate();
    assert_eq!(certificate.key().as_bytes(), ed25519(1));
    assert_eq!(certificate.authority().as_bytes(), ed25519(0xca));
    assert_eq!((certificate.serial(), certificate.kind()), (7, CertificateKind::User));
    assert_eq!(
        (certificate.key_id(), certificate.principals()),
        ("alice's laptop", &["alice".into()][..])
    );
    assert_eq!((certificate.valid_after_s(), certificate.valid_before_s()), (1000, 2000));
    assert_eq!(certificate.signature(), b"a signature");
    let whole = [certificate.signed(), &string(b"a signature")].concat();
    assert_eq!(whole, certificate.blob().as_bytes());
}

#[test]
fn fault_77_a_certificate_cut_or_padded_anywhere_is_none() {
    let bytes = Draft::default().bytes();
    for cut in 0..bytes.len() {
        let blob = PublicKeyBlob::from_wire(bytes[..cut].to_vec());
        assert!(blob.map_or(true, |blob| Certificate::parse(&blob).is_err()), "cut at {cut}");
    }
    let padded = PublicKeyBlob::from_wire([&bytes[..], &[0]].concat()).unwrap();
    assert_eq!(Certificate::parse(&padded), Err(KeyError::Length.into()));
    let plain = PublicKeyBlob::from_wire(ed25519(1)).unwrap();
    assert_eq!(Certificate::parse(&plain), Err(CertificateError::NotACertificate));
}

#[test]
fn fault_77_type_and_time() {
    assert!(check(&Draft::default()).is_ok());
    let host = Draft { kind: 2, ..Draft::default() };
    assert_eq!(check(&host), Err(CertificateRefusal::Kind(CertificateKind::Host)));
    assert_eq!(Draft { kind: 3, ..Draft::default() }.parse(), Err(CertificateError::Kind(3)));
    let draft = Draft::default();
    let at = |now_s: i64| check_with(&draft, |check| check.now_s = now_s).map(|_| ());
    for (now_s, expected) in [
        (i64::MIN, Err(CertificateRefusal::NotYetValid)),
        (999, Err(CertificateRefusal::NotYetValid)),
        (1000, Ok(())),
        (1999, Ok(())),
        (2000, Err(CertificateRefusal::Expired)),
        (i64::MAX, Err(CertificateRefusal::Expired)),
    ] {
        assert_eq!(at(now_s), expected, "{now_s}");
    }
    let for_ever = Draft { valid: (0, u64::MAX), ..Draft::default() };
    let restrictions = check_with(&for_ever, |check| check.now_s = i64::MAX).unwrap();
    assert_eq!(restrictions.expires_at_s, None);
    let never = Draft { valid: (u64::MAX, u64::MAX), ..Draft::default() };
    assert_eq!(check(&never), Err(CertificateRefusal::NotYetValid));
    let backwards = Draft { valid: (2000, 1000), ..Draft::default() };
    assert!(check(&backwards).is_err());
}

#[test]
fn fault_77_what_runs_on_ends_with_the_certificate() {
    let restrictions = check(&Draft::default()).unwrap();
    assert_eq!(restrictions.expires_at_s, Some(1999));
    assert!(!restrictions.expired(1999) && restrictions.expired(2000));
}

#[test]
fn fault_77_principals_are_exact_and_none_is_nobody() {
    let draft = |names: &[&str]| Draft {
        principals: names.iter().map(|name| name.as_bytes().to_vec()).collect(),
        ..Draft::default()
    };
    assert!(check(&draft(&["bob", "alice"])).is_ok());
    assert_eq!(check(&draft(&[])), Err(CertificateRefusal::NoPrincipals));
    // A user's certificate has no patterns, and a comma is a letter like others.
    for names in [&["bob"][..], &["*"], &["Alice"], &["alice,bob"], &["alic?"], &["alice "], &[""]]
    {
        let refusal = check(&draft(names)).unwrap_err();
        assert!(matches!(refusal, CertificateRefusal::Principal(_)), "{names:?}: {refusal}");
    }
    let many = |count: usize| draft(&vec!["alice"; count]).parse().map(|_| ());
    assert_eq!(many(CERTIFICATE_PRINCIPALS_MAX), Ok(()));
    let too_many = Err(CertificateError::TooManyPrincipals);
    assert_eq!(many(CERTIFICATE_PRINCIPALS_MAX + 1), too_many);
    let not_text = Draft { principals: vec![b"\xff".to_vec()], ..Draft::default() };
    assert_eq!(not_text.parse(), Err(CertificateError::NotText("principal")));
    let nul = Draft { key_id: b"a\0b".to_vec(), ..Draft::default() };
    assert_eq!(nul.parse(), Err(CertificateError::NotText("key id")));
    // Any one of several names will do.
    let draft = draft(&["ops"]);
    assert!(check_with(&draft, |check| check.names = &["dev", "ops"]).is_ok());
    assert!(check_with(&draft, |check| check.names = &[]).is_err());
}

#[test]
fn fault_77_critical_options() {
    let with = |name: &'static str, value: Vec<u8>| Draft {
        critical: vec![(name, value)],
        ..Draft::default()
    };
    let unknown = check(&with("only-on-sundays@example", Vec::new())).unwrap_err();
    assert_eq!(unknown, CertificateRefusal::UnknownCritical("only-on-sundays@example".into()));
    let forced = check(&with("force-command", string(b"/bin/backup"))).unwrap();
    assert_eq!(forced.forced_command, Some("/bin/backup".into()));
    assert!(check(&with("verify-required", Vec::new())).unwrap().verify_required);

    let from = |list: &str| check(&with("source-address", string(list.as_bytes())));
    assert!(from("192.0.2.0/24").is_ok() && from("10.0.0.0/8,192.0.2.7").is_ok());
    assert_eq!(from("10.0.0.0/8"), Err(CertificateRefusal::Source));
    let draft = with("source-address", string(b"0.0.0.0/0"));
    let nowhere = check_with(&draft, |check| check.source = None);
    assert_eq!(nowhere, Err(CertificateRefusal::Source));

    // Malformed values, and what stands twice, make it no certificate at all.
    for (name, value) in [
        ("force-command", Vec::new()),
        ("force-command", b"no string".to_vec()),
        ("force-command", string(b"a\0b")),
        ("force-command", [string(b"a"), string(b"b")].concat()),
        ("source-address", string(b"")),
        ("source-address", string(b"*")),
        ("source-address", string(b"!10.0.0.0/8")),
        ("source-address", string(b"10.0.0.1/8")),
        ("verify-required", string(b"yes")),
    ] {
        assert!(with(name, value.clone()).parse().is_err(), "{name} {value:?}");
    }
    for name in ["force-command", "source-address", "verify-required"] {
        let value = match name {
            "force-command" => string(b"a"),
            "source-address" => string(b"0.0.0.0/0"),
            _ => Vec::new(),
        };
        let twice =
            Draft { critical: vec![(name, value.clone()), (name, value)], ..Draft::default() };
        assert_eq!(twice.parse(), Err(CertificateError::Option(name.into())));
    }
}

#[test]
fn fault_77_extensions_permit_and_what_is_missing_is_forbidden() {
    let with = |names: &[&'static str]| {
        let extensions = names.iter().map(|name| (*name, Vec::new())).collect();
        check(&Draft { extensions, ..Draft::default() }).unwrap()
    };
    let none = with(&[]);
    let flags = |r: &Restrictions| {
        [
            r.no_pty,
            r.no_port_forwarding,
            r.no_agent_forwarding,
            r.no_x11_forwarding,
            r.no_user_rc,
            r.touch_required,
        ]
    };
    assert_eq!(flags(&none), [true; 6]);
    let all = [
        "permit-pty",
        "permit-port-forwarding",
        "permit-agent-forwarding",
        "permit-X11-forwarding",
        "permit-user-rc",
        "no-touch-required",
    ];
    assert_eq!(flags(&with(&all)), [false; 6]);
    for (index, name) in all.into_iter().enumerate() {
        let mut expected = [true; 6];
        expected[index] = false;
        assert_eq!(flags(&with(&[name])), expected, "{name}");
    }
    // Of an unknown extension nothing follows; a known one has no value and stands once.
    assert_eq!(flags(&with(&["groups@example", "permit-everything"])), [true; 6]);
    let valued = vec![("permit-pty", string(b"x"))];
    assert!(Draft { extensions: valued, ..Draft::default() }.parse().is_err());
    let twice = vec![("permit-pty", Vec::new()), ("permit-pty", Vec::new())];
    assert!(Draft { extensions: twice, ..Draft::default() }.parse().is_err());
    // A critical name among the extensions restricts nothing, and an extension's name among the
    // critical ones is unknown.
    let swapped = Draft { critical: vec![("permit-pty", Vec::new())], ..Draft::default() };
    assert!(matches!(check(&swapped), Err(CertificateRefusal::UnknownCritical(_))));
}

#[test]
fn fault_77_an_authority_is_no_certificate() {
    let chained = Draft { authority: Draft::default().bytes(), ..Draft::default() };
    assert_eq!(chained.parse(), Err(CertificateError::ChainedAuthority));
    let rubbish = Draft { authority: b"rubbish".to_vec(), ..Draft::default() };
    assert!(matches!(rubbish.parse(), Err(CertificateError::Malformed(_))));
}

#[test]
fn a_certificate_has_a_largest_size() {
    let of_size = |bytes: usize| {
        let base = Draft { key_id: Vec::new(), ..Draft::default() }.bytes().len();
        let draft = Draft { key_id: vec![b'x'; bytes - base], ..Draft::default() };
        assert_eq!(draft.bytes().len(), bytes);
        draft.parse().map(|_| ())
    };
    assert_eq!(of_size(CERTIFICATE_BYTES_MAX), Ok(()));
    assert_eq!(of_size(CERTIFICATE_BYTES_MAX + 1), Err(CertificateError::TooLarge));
}

#[test]
fn hosts_are_named_by_patterns_and_have_no_critical_options() {
    let host = |names: &[&str]| Draft {
        kind: 2,
        principals: names.iter().map(|name| name.as_bytes().to_vec()).collect(),
        extensions: Vec::new(),
        ..Draft::default()
    };
    let check = |draft: &Draft| draft.certificate().check_host("web1.example", 1500);
    assert_eq!(check(&host(&["web1.example"])), Ok(()));
    assert_eq!(check(&host(&["db.example", "WEB?.example"])), Ok(()));
    assert_eq!(check(&host(&["*.example"])), Ok(()));
    assert_eq!(check(&host(&[])), Err(CertificateRefusal::NoPrincipals));
    assert!(matches!(check(&host(&["web1"])), Err(CertificateRefusal::Principal(_))));
    let user = Draft { kind: 1, ..host(&["web1.example"]) };
    assert_eq!(check(&user), Err(CertificateRefusal::Kind(CertificateKind::User)));
    let late = host(&["*"]).certificate().check_host("x", 2000);
    assert_eq!(late, Err(CertificateRefusal::Expired));
    let critical = vec![("force-command", string(b"x"))];
    let refusal = check(&Draft { critical, ..host(&["*"]) }).unwrap_err();
    assert!(matches!(refusal, CertificateRefusal::UnknownCritical(_)));
}
