//! Lines as ssh reads them; the hashed ones were made by `ssh-keygen -H`.

use proptest::prelude::*;

use super::*;
use crate::certificate::rig::Draft;
use crate::limits::HOST_BYTES_MAX;

const ALICE: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDvBLbc4Y8gAXpk7WApR7U1vzJYap3fKZnIw1b6Qwef9";
const BOB: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIP66NdamCPYY30VgE2+3/ikwTwtjlOtn5BfoLm6YT0ln";
const P256: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBOUGHpvQGrVHcLYkIbsOkDza0Kom5C7CcN8+y63ksomJaynw1xTjcwZ2Sfw4SE1bsgNgWPUXWnkW6pt/jAJePR4=";
const RSA: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQCHnh0DQ0R9kSaKXBU17IcqP+fx5/lwCmO1jg9IA9cf0ijse3CahtMpqcr+yLDvH/lMvlDog2CYDUsbROqG6v+6Ho/kf8xfTGVfnnUDN1jMHGmA89Oa+L57u26zcJqJ/p7oYgyHQOYu/LSlvn9sfL8twOeD/noqP5NXzJOFrw9tHuG5lN6oDuKJk3M14PjK5IVXNXBlYTyPhkJQYTLxmzXryp4EsIudF5RBb8SviMF+t5ixrgPcLzkqxp1UphU1IYJxiihBRuv9AsmZtLhSD1eHtJN7SHcEdnHXhQVtPBk5dqGH9nMKFAeNSRdbEoBr3GVZr97/Zd6pnIDvltOZvreN";

/// The names before `ssh-keygen -H`: `[h.example]:2327` and `h.example`.
const HASHED_AFAR: &str = "|1|oc6KKVh9c39eXxT3SQALxWnj+04=|ieEf8ofqLx1shTajUtUhyn0U0D8=";
const HASHED_BARE: &str = "|1|jZI4RhQIykuz8xw0Aej2wHXjB08=|GPKvWR8XztpPaps2x7sJk3pbtgc=";

fn key(fields: &str) -> PublicKeyBlob {
    PublicKeyBlob::from_public_line(fields.as_bytes()).unwrap().0
}

fn collect(file: &str) -> HostKeys {
    let files = [KnownHostsFile { name: "known_hosts", bytes: file.as_bytes() }];
    HostKeys::collect(&files, &names("h.example", 2327, Some(2222))).unwrap()
}

fn judge(file: &str, presented: &str) -> Verdict {
    collect(file).judge(&key(presented))
}

/// The line and the kind of name by which the key is known.
fn known(file: &str, presented: &str) -> Option<(usize, NameKind)> {
    match judge(file, presented) {
        Verdict::Known(entry) => Some((entry.place.line, entry.name.kind)),
        _ => None,
    }
}

fn at(line: usize) -> Place {
    Place { file: "known_hosts".into(), line }
}

#[test]
fn names_are_asked_from_the_most_specific_on() {
    let texts = |names: Vec<Name>| names.into_iter().map(|name| name.text).collect::<Vec<_>>();
    assert_eq!(
        texts(names("H.Example", 2327, Some(2222))),
        ["[h.example]:2327", "h.example", "[h.example]:2222"]
    );
    assert_eq!(texts(names("h", 2327, None)), ["[h]:2327", "h"]);
    assert_eq!(texts(names("h", 2327, Some(22))), ["[h]:2327", "h"]);
    assert_eq!(texts(names("h", 22, Some(2327))), ["h", "[h]:2327"]);
    assert_eq!(texts(names("::1", 2327, None)), ["[::1]:2327", "::1"]);
}

#[test]
fn a_key_is_known_by_each_form_of_a_name() {
    for hosts in [
        "[h.example]:2327",
        "[H.EXAMPLE]:2327",
        "other,[h.example]:2327",
        "[*.example]:2327",
        "[h.exampl?]:*",
        "*",
        HASHED_AFAR,
        "!x.example,[h.example]:2327",
    ] {
        assert_eq!(known(&format!("{hosts} {ALICE}"), ALICE), Some((1, NameKind::Afar)), "{hosts}");
    }
    for hosts in ["h.example", "a,b,h.example,c", "*.example", HASHED_BARE, "!*:2327,!*:2222,*"] {
        assert_eq!(known(&format!("{hosts} {ALICE}"), ALICE), Some((1, NameKind::Bare)), "{hosts}");
    }
    let sshd = format!("[h.example]:2222 {ALICE} a comment");
    assert_eq!(known(&sshd, ALICE), Some((1, NameKind::Sshd)));
    let spaced = format!("# x\n\n \t h.example \t {}\r\n", ALICE.replace(' ', "\t "));
    assert_eq!(known(&spaced, ALICE), Some((3, NameKind::Bare)));
}

#[test]
fn a_host_is_unknown_if_no_line_names_it() {
    for hosts in [
        "g.example",
        "[h.example]:2328",
        "h.example.org",
        "h",
        "!h.example,*.example,!*:*",
        "*,!*h.example*",
        "h?example.",
        "|1|oc6KKVh9c39eXxT3SQALxWnj+04=|ieEf8ofqLx1shTajUtUhyn0U0D9=",
    ] {
        assert_eq!(judge(&format!("{hosts} {ALICE}"), ALICE), Verdict::Unknown, "{hosts}");
    }
    assert_eq!(judge("", ALICE), Verdict::Unknown);
}

#[test]
fn fault_81_another_key_of_the_type_is_a_change() {
    let file = format!("[h.example]:2327 {BOB}\n[h.example]:2327 {RSA}\n");
    let Verdict::Changed { known } = judge(&file, ALICE) else { panic!() };
    assert_eq!(known.len(), 1);
    assert_eq!((known[0].key.clone(), known[0].place.clone()), (key(BOB), at(1)));
    assert_eq!(known[0].name.kind, NameKind::Afar);
    // Where only sshd's entry differs, the verdict says so.
    let Verdict::Changed { known } = judge(&format!("h.example {BOB}"), ALICE) else { panic!() };
    assert_eq!(known[0].name.kind, NameKind::Bare);
    // Several keys of a type may be known, during a rotation say.
    let both = format!("h.example {BOB}\nh.example {ALICE}\n");
    assert_eq!(known_both(&both), [Some((2, NameKind::Bare)), Some((1, NameKind::Bare))]);
}

fn known_both(file: &str) -> [Option<(usize, NameKind)>; 2] {
    [known(file, ALICE), known(file, BOB)]
}

#[test]
fn the_most_specific_name_decides() {
    let file = format!("h.example {ALICE}\n[h.example]:2327 {BOB}\n");
    assert!(matches!(judge(&file, ALICE), Verdict::Changed { .. }));
    assert_eq!(known(&file, BOB), Some((2, NameKind::Afar)));
    // A name that knows only other types leaves the answer to the next.
    let file = format!("h.example {ALICE}\n[h.example]:2327 {RSA}\n");
    assert_eq!(known(&file, ALICE), Some((1, NameKind::Bare)));
    assert_eq!(known(&file, RSA), Some((2, NameKind::Afar)));
}

#[test]
fn a_new_type_of_key_is_no_first_meeting() {
    let file = format!("[h.example]:2222 {RSA}\nh.example {P256}\n");
    let Verdict::NewType { known } = judge(&file, ALICE) else { panic!() };
    let lines: Vec<_> = known.iter().map(|entry| entry.place.line).collect();
    assert_eq!(lines, [2, 1]);
}

#[test]
fn a_revoked_key_is_refused_by_whatever_name() {
    for revoked in ["@revoked *", "@revoked h.example", "@revoked\t[h.example]:2222"] {
        let file = format!("[h.example]:2327 {ALICE}\n{revoked} {ALICE}\n");
        assert_eq!(judge(&file, ALICE), Verdict::Revoked(at(2)), "{revoked}");
        assert_eq!(collect(&file).algorithms(), Vec::<&str>::new());
    }
    // Another host's revocation, and that of another key, are none.
    let file = format!("h.example {ALICE}\n@revoked g.example {ALICE}\n@revoked * {BOB}\n");
    assert_eq!(known(&file, ALICE), Some((1, NameKind::Bare)));
    // A revoked key makes nothing known: a good one is still a first meeting.
    assert_eq!(judge(&format!("@revoked * {BOB}"), ALICE), Verdict::Unknown);
}

#[test]
fn a_certificate_of_a_known_authority_is_for_the_names_that_it_says() {
    let of = |names: &[&str], authority: &str| Draft {
        kind: 2,
        principals: names.iter().map(|name| name.as_bytes().to_vec()).collect(),
        authority: key(authority).into_bytes(),
        ..Draft::default()
    };
    let judge = |file: &str, draft: &Draft| {
        collect(file).judge_certificate(&draft.certificate(), "H.example", 1500)
    };
    let good = of(&["h.example"], BOB);
    for hosts in ["*", "*.example", "h.example", "[h.example]:2327", "[h.example]:*"] {
        let file = format!("@cert-authority {hosts} {BOB}\n");
        assert!(collect(&file).has_authority());
        assert_eq!(judge(&file, &good), Ok(()), "{hosts}");
        let other = judge(&file, &of(&["h.example"], ALICE));
        assert_eq!(other, Err(CertificateProblem::OtherAuthority));
        for draft in [of(&["g.example"], BOB), of(&[], BOB), Draft { kind: 1, ..good.clone() }] {
            let refused = judge(&file, &draft);
            assert!(matches!(refused, Err(CertificateProblem::Refused(_))), "{refused:?}");
        }
    }
    let elsewhere = format!("@cert-authority *.test {BOB}\n[h.example]:2327 {BOB}\n");
    assert!(!collect(&elsewhere).has_authority());
    assert_eq!(judge(&elsewhere, &good), Err(CertificateProblem::OtherAuthority));
    // A revoked authority, and a revoked key with a good certificate.
    let trusted = format!("@cert-authority * {BOB}\n");
    let revoked = judge(&format!("{trusted}@revoked * {BOB}\n"), &good);
    assert_eq!(revoked, Err(CertificateProblem::Revoked(at(2))));
    let certified = good.certificate().key().to_fields();
    let revoked = judge(&format!("{trusted}@revoked * {certified}\n"), &good);
    assert_eq!(revoked, Err(CertificateProblem::Revoked(at(2))));
}

#[test]
fn where_only_an_authority_is_known_a_certificate_is_needed() {
    let file = format!("@cert-authority *.example {BOB}\n");
    assert_eq!(judge(&file, ALICE), Verdict::NeedsCertificate(at(1)));
    // Nor is the authority's key a host's.
    assert_eq!(judge(&file, BOB), Verdict::NeedsCertificate(at(1)));
    assert_eq!(known(&format!("{file}h.example {ALICE}"), ALICE), Some((2, NameKind::Bare)));
    let file = format!("{file}h.example {RSA}");
    assert!(matches!(judge(&file, ALICE), Verdict::NewType { .. }));
}

#[test]
fn algorithms_of_the_most_specific_name_come_first() {
    let file =
        format!("h.example {RSA}\nh.example {ALICE}\n[h.example]:2327 {P256}\nh.example {P256}\n");
    assert_eq!(collect(&file).algorithms(), ["ecdsa-sha2-nistp256", "ssh-ed25519", "ssh-rsa"]);
}

#[test]
fn malformed_lines_make_nothing_known_and_are_remarked_on() {
    let base64 = ALICE.split(' ').nth(1).unwrap();
    for line in [
        "h.example".to_owned(),
        "h.example ssh-ed25519".to_owned(),
        format!("h.example ssh-rsa {base64}"),
        format!("h.example ssh-ed25519 {}", &base64[..20]),
        format!("h.example ssh-ed25519 {base64}!"),
        format!("@unknown h.example {ALICE}"),
        format!("@cert-authority @revoked h.example {ALICE}"),
        format!("@revoked @revoked h.example {ALICE}"),
        format!("|1|short|short {ALICE}"),
        format!("|2|{} {ALICE}", &HASHED_BARE[3..]),
        format!("{HASHED_BARE}|x {ALICE}"),
        format!("| {ALICE}"),
        format!("h.example\0 {ALICE}"),
        format!("h.example 2048 65537 123456789 {ALICE}"),
    ] {
        let keys = collect(&line);
        assert_eq!(keys.judge(&key(ALICE)), Verdict::Unknown, "{line:?}");
        assert_eq!(keys.diagnostics().kept().len(), 1, "{line:?}");
        let after = collect(&format!("{line}\nh.example {ALICE}\n"));
        assert!(matches!(after.judge(&key(ALICE)), Verdict::Known(_)), "{line:?}");
    }
}

#[test]
fn the_length_of_a_line_is_bounded() {
    let line = |total: usize| {
        let tail = format!(",h.example {ALICE}");
        format!("{}{tail}", "x".repeat(total - tail.len()))
    };
    assert!(known(&line(KNOWN_HOSTS_LINE_BYTES_MAX), ALICE).is_some());
    assert!(known(&line(KNOWN_HOSTS_LINE_BYTES_MAX + 1), ALICE).is_none());
}

#[test]
fn the_size_of_a_file_is_bounded() {
    let mut bytes = vec![b'#'; KNOWN_HOSTS_BYTES_MAX + 1];
    let tried =
        |bytes: &[u8]| HostKeys::collect(&[KnownHostsFile { name: "f", bytes }], &[]).map(|_| ());
    assert_eq!(tried(&bytes), Err(TooLarge { file: "f".into() }));
    bytes.pop();
    assert_eq!(tried(&bytes), Ok(()));
}

#[test]
fn several_files_are_one() {
    let (first, second) = (format!("h.example {BOB}\n"), format!("\nh.example {ALICE}\n"));
    let files = [
        KnownHostsFile { name: "one", bytes: first.as_bytes() },
        KnownHostsFile { name: "two", bytes: second.as_bytes() },
    ];
    let keys = HostKeys::collect(&files, &names("h.example", 2327, None)).unwrap();
    let Verdict::Known(entry) = keys.judge(&key(ALICE)) else { panic!() };
    assert_eq!(entry.place, Place { file: "two".into(), line: 2 });
}

fn replaced(file: &str, presented: &str) -> Result<(String, Vec<usize>), ReplaceError> {
    let replaced = replace(file.as_bytes(), "[h.example]:2327", &key(presented))?;
    Ok((String::from_utf8(replaced.bytes).unwrap(), replaced.changed_lines))
}

#[test]
fn replacing_touches_this_name_and_this_type_only() {
    let file = format!(
        "# mine\n[h.example]:2327 {BOB} old\ng,[H.example]:2327,i {BOB} shared\n\
         {HASHED_AFAR} {BOB}\n[h.example]:2327 {RSA}\nh.example {BOB}\n\
         @revoked [h.example]:2327 {BOB}\n[h.example]:2327 broken\nlast {BOB}"
    );
    let expected = format!(
        "# mine\ng,i {BOB} shared\n[h.example]:2327 {RSA}\nh.example {BOB}\n\
         @revoked [h.example]:2327 {BOB}\n[h.example]:2327 broken\nlast {BOB}\n\
         [h.example]:2327 {ALICE}\n"
    );
    let (bytes, changed) = replaced(&file, ALICE).unwrap();
    assert_eq!(bytes, expected);
    assert_eq!(changed, [2, 3, 4]);
    assert_eq!(known(&bytes, ALICE).map(|(_, kind)| kind), Some(NameKind::Afar));
    // Twice is as good as once.
    assert_eq!(replaced(&bytes, ALICE).unwrap(), (bytes.clone(), vec![]));
}

#[test]
fn replacing_keeps_a_line_that_holds_the_key_already() {
    let file = format!("*,x {ALICE}\n[h.example]:2327 {BOB}\r\n");
    assert_eq!(replaced(&file, ALICE).unwrap(), (format!("*,x {ALICE}\n"), vec![2]));
    assert_eq!(replaced("", ALICE).unwrap().0, format!("[h.example]:2327 {ALICE}\n"));
}

#[test]
fn replacing_leaves_patterns_to_their_owner() {
    for hosts in ["*", "[*.example]:2327", "[h.example]:2327,[h.*]:2327"] {
        let file = format!("\n{hosts} {BOB}\n");
        assert_eq!(replaced(&file, ALICE), Err(ReplaceError::Pattern { line: 2 }), "{hosts}");
    }
}

#[test]
fn only_names_that_read_back_as_themselves_are_written() {
    for name in ["h.example", "[h.example]:2327", "[::1]:2327", "[H]:1"] {
        let line = format_line(name, &key(ALICE)).unwrap();
        let name = Name { text: name.to_ascii_lowercase(), kind: NameKind::Afar };
        let files = [KnownHostsFile { name: "f", bytes: line.as_bytes() }];
        let keys = HostKeys::collect(&files, &[name]).unwrap();
        assert!(matches!(keys.judge(&key(ALICE)), Verdict::Known(_)), "{line}");
    }
    let longest = format!("[{}]:65535", "h".repeat(HOST_BYTES_MAX));
    assert!(format_line(&longest, &key(ALICE)).is_ok());
    for name in [
        "",
        "a b",
        "a\nb",
        "a,b",
        "*",
        "h?",
        "!h",
        "@revoked",
        "|1|x",
        "#h",
        "h\u{e9}",
        "h\x1b",
        &format!("{longest}x"),
    ] {
        assert!(matches!(format_line(name, &key(ALICE)), Err(ReplaceError::Name(_))), "{name:?}");
        assert!(replace(b"", name, &key(ALICE)).is_err());
    }
}

fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(ALICE.to_owned()),
        Just(BOB.to_owned()),
        Just(RSA.to_owned()),
        Just("h.example".to_owned()),
        Just("[h.example]:2327".to_owned()),
        Just(HASHED_AFAR.to_owned()),
        Just("@revoked".to_owned()),
        Just("@cert-authority".to_owned()),
        Just("*".to_owned()),
        Just("!".to_owned()),
        Just(",".to_owned()),
        Just(" ".to_owned()),
        Just("\n".to_owned()),
        Just("\r\n".to_owned()),
        Just("#".to_owned()),
        ".{0,3}",
    ]
}

proptest! {
    #[test]
    fn no_bytes_panic_or_are_known(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let files = [KnownHostsFile { name: "f", bytes: &bytes }];
        let keys = HostKeys::collect(&files, &names("h.example", 2327, None)).unwrap();
        prop_assert_eq!(keys.judge(&key(ALICE)), Verdict::Unknown);
    }

    #[test]
    fn after_replacing_the_key_is_known_or_revoked(
        pieces in proptest::collection::vec(piece(), 0..24)
    ) {
        let file = pieces.concat();
        if let Ok((bytes, _)) = replaced(&file, ALICE) {
            let verdict = judge(&bytes, ALICE);
            let known = matches!(&verdict, Verdict::Known(entry) if entry.name.kind == NameKind::Afar);
            prop_assert!(known || matches!(verdict, Verdict::Revoked(_)), "{:?}", verdict);
            prop_assert!(!matches!(judge(&bytes, BOB), Verdict::Known(entry)
                if entry.name.kind == NameKind::Afar));
        }
    }
}
