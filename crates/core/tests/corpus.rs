//! Every file of the readers' fuzz corpora, as plain tests: nothing panics, and what a reader
//! promises holds for each of them.

#[cfg(test)]
#[path = "../../../fuzz/corpus.rs"]
mod files;

use afar_core::authorized_keys::{AuthorizedKeys, Context, Decision, UserEnvironment};
use afar_core::certificate::{Certificate, UserCheck};
use afar_core::host_set;
use afar_core::journal::Replay;
use afar_core::key::PublicKeyBlob;
use afar_core::known_hosts::{self, HostKeys, KnownHostsFile, NameKind, Verdict};
use afar_core::limits::{DIAGNOSTICS_MAX, HOST_SET_NAMES_MAX};
use afar_core::policy::Grant;
use afar_core::record::{Salt, Scanned, Scanner};
use afar_core::revocation::{Revocation, RevokedKeys};
use afar_core::spool::SEGMENT_MAGIC;
use afar_core::ssh_config::{self, ConfigFile};
use afar_core::target::{JobTarget, Target};
use files::for_each_file;

/// The keys that the corpora are about.
const KEYS: [&str; 3] = [
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDvBLbc4Y8gAXpk7WApR7U1vzJYap3fKZnIw1b6Qwef9",
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIP66NdamCPYY30VgE2+3/ikwTwtjlOtn5BfoLm6YT0ln",
    "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQCHnh0DQ0R9kSaKXBU17IcqP+fx5/lwCmO1jg9IA9cf0ijse3CahtMpqcr+yLDvH/lMvlDog2CYDUsbROqG6v+6Ho/kf8xfTGVfnnUDN1jMHGmA89Oa+L57u26zcJqJ/p7oYgyHQOYu/LSlvn9sfL8twOeD/noqP5NXzJOFrw9tHuG5lN6oDuKJk3M14PjK5IVXNXBlYTyPhkJQYTLxmzXryp4EsIudF5RBb8SviMF+t5ixrgPcLzkqxp1UphU1IYJxiihBRuv9AsmZtLhSD1eHtJN7SHcEdnHXhQVtPBk5dqGH9nMKFAeNSRdbEoBr3GVZr97/Zd6pnIDvltOZvreN",
];

fn keys() -> impl Iterator<Item = PublicKeyBlob> {
    KEYS.into_iter()
        .map(|line| PublicKeyBlob::from_public_line(line.as_bytes()).expect("a valid line").0)
}

/// The text of a line, by its number from 1.
fn line(bytes: &[u8], number: usize) -> String {
    let line = bytes.split(|&byte| byte == b'\n').nth(number - 1).expect("a line that is there");
    String::from_utf8_lossy(line).into_owned()
}

#[test]
fn fault_79_fault_84_authorized_keys() {
    let context =
        Context { now_s: 1_795_341_600, source: Some([192, 0, 2, 7].into()), local_time: None };
    let mut granted = 0;
    for_each_file("authorized_keys", |name, bytes| {
        for key in keys() {
            let parsed = AuthorizedKeys::parse(bytes, UserEnvironment::Honoured);
            let diagnostics = parsed.diagnostics().kept();
            assert!(diagnostics.len() <= DIAGNOSTICS_MAX);
            assert!(diagnostics.is_sorted_by_key(|diagnostic| diagnostic.line), "{name}");
            assert!(!diagnostics.iter().any(|d| d.message.chars().any(char::is_control)), "{name}");

            // A line of garbage before it changes nothing but the numbers.
            let mut shifted = b"garbage \xff\n".to_vec();
            shifted.extend_from_slice(bytes);
            let after_garbage = AuthorizedKeys::parse(&shifted, UserEnvironment::Honoured);
            match (parsed.find(&key, context), after_garbage.find(&key, context)) {
                (
                    Decision::Granted { line: number, restrictions, .. },
                    Decision::Granted { line: shifted, restrictions: same, .. },
                ) => {
                    granted += 1;
                    assert_eq!((number + 1, &restrictions), (shifted, &same), "{name}");
                    let text = line(bytes, number);
                    assert!(text.contains(&key.to_base64()), "{name}");
                    assert!(!text.trim_start().starts_with('#'), "{name}");
                    assert_eq!(restrictions.forced_command.is_some(), text.contains("command="));
                }
                (Decision::Refused(_), Decision::Refused(_)) => {}
                (before, after) => panic!("{name}: {before:?} became {after:?}"),
            }
        }
    });
    assert!(granted >= 10, "{granted}");
}

#[test]
fn known_hosts() {
    let names = known_hosts::names("h.example", 2327, Some(2222));
    let afar_name = names[0].text.clone();
    let mut known = 0;
    for_each_file("known_hosts", |name, bytes| {
        let collect = |bytes: &[u8]| {
            HostKeys::collect(&[KnownHostsFile { name: "known_hosts", bytes }], &names).unwrap()
        };
        let hosts = collect(bytes);
        for key in keys() {
            match hosts.judge(&key) {
                Verdict::Known(entry) => {
                    known += 1;
                    assert!(line(bytes, entry.place.line).contains(&key.to_base64()), "{name}");
                    assert!(hosts.algorithms().contains(&key.algorithm()), "{name}");
                }
                Verdict::Changed { known } => {
                    assert!(known.iter().all(|k| k.key.algorithm() == key.algorithm()), "{name}");
                    assert!(known.iter().all(|k| k.key != key), "{name}");
                }
                Verdict::NewType { known } => {
                    assert!(!known.is_empty(), "{name}");
                    assert!(known.iter().all(|k| k.key.algorithm() != key.algorithm()), "{name}");
                }
                Verdict::Unknown => assert_eq!(hosts.known().count(), 0, "{name}"),
                Verdict::Revoked(place) | Verdict::NeedsCertificate(place) => {
                    assert!(line(bytes, place.line).trim_start().starts_with('@'), "{name}");
                }
            }
            if let Ok(replaced) = known_hosts::replace(bytes, &afar_name, &key) {
                let verdict = collect(&replaced.bytes).judge(&key);
                let trusted = matches!(&verdict, Verdict::Known(entry)
                    if entry.name.kind == NameKind::Afar);
                assert!(trusted || matches!(verdict, Verdict::Revoked(_)), "{name}: {verdict:?}");
                let again = known_hosts::replace(&replaced.bytes, &afar_name, &key).unwrap();
                assert_eq!(again.bytes, replaced.bytes, "{name}");
                assert!(again.was_there && again.changed_lines.is_empty(), "{name}");
            }
        }
    });
    assert!(known >= 8, "{known}");
}

#[test]
fn ssh_config() {
    let mut accepted = 0;
    for_each_file("ssh_config", |name, bytes| {
        let file = ConfigFile { name: "config".into(), bytes: bytes.to_vec() };
        // Every include finds the file itself, which is the worst there is.
        let mut load = |_: &str, _: &str| Ok(vec![file.clone()]);
        let lines = bytes.split(|&byte| byte == b'\n').count();
        match ssh_config::resolve("web", std::slice::from_ref(&file), &mut load) {
            Ok(settings) => {
                accepted += 1;
                assert!(settings.port != Some(0), "{name}");
                for text in [&settings.host_name, &settings.user, &settings.host_key_alias] {
                    let text = text.as_deref().unwrap_or("x");
                    assert!(!text.is_empty() && !text.chars().any(char::is_control), "{name}");
                }
            }
            Err(error) => {
                assert!((1..=lines).contains(&error.place.line), "{name}: {error}");
                assert!(!error.to_string().chars().any(char::is_control), "{name}");
            }
        }
    });
    assert!(accepted >= 10, "{accepted}");
}

#[test]
fn fault_77_certificates() {
    const NOW_S: i64 = 1_795_341_600;
    let (mut read, mut let_in) = (0, 0);
    for_each_file("certificate", |name, bytes| {
        let Ok(blob) = PublicKeyBlob::from_wire(bytes.to_vec()) else { return };
        let Ok(certificate) = Certificate::parse(&blob) else { return };
        read += 1;
        let signature = certificate.signature();
        let length = u32::try_from(signature.len()).unwrap();
        let whole = [certificate.signed(), &length.to_be_bytes(), signature].concat();
        assert_eq!(whole, bytes, "{name}");
        let names: Vec<&str> = certificate.principals().iter().map(String::as_str).collect();
        let source = Some([10, 0, 0, 1].into());
        if let Ok(restrictions) =
            certificate.check_user(UserCheck { names: &names, now_s: NOW_S, source })
        {
            let_in += 1;
            assert!(names.contains(&"ann") && !restrictions.expired(NOW_S), "{name}");
            assert!(certificate.check_host(names[0], NOW_S).is_err(), "{name}");
        }
        let nobody = UserCheck { names: &["nobody"], now_s: NOW_S, source };
        assert!(certificate.check_user(nobody).is_err(), "{name}");
    });
    assert!(read >= 12 && let_in >= 9 && let_in < read, "{read} {let_in}");
}

#[test]
fn fault_76_revoked_keys() {
    let (mut read, mut refused) = (0, 0);
    for_each_file("revoked_keys", |name, bytes| {
        for key in keys() {
            match RevokedKeys::parse(bytes) {
                Ok(revoked) => {
                    read += 1;
                    assert_eq!(revoked.find(&key, None), None, "{name}");
                }
                Err(error) => {
                    refused += 1;
                    assert!(!error.to_string().chars().any(char::is_control), "{name}: {error}");
                }
            }
            let with_key = [bytes, b"\n", key.to_fields().as_bytes()].concat();
            if let Ok(revoked) = RevokedKeys::parse(&with_key) {
                assert_eq!(revoked.find(&key, None), Some(Revocation::Key), "{name}");
            }
        }
    });
    assert!(read >= 30 && refused >= 15, "{read} {refused}");
}

#[test]
fn grants() {
    let mut taken = Vec::new();
    for_each_file("grant", |name, bytes| {
        if let Ok(grant) = Grant::decode(bytes) {
            assert_eq!(Grant::decode(&grant.encode()), Ok(grant), "{name}");
            taken.push(name.to_owned());
        }
    });
    assert_eq!(taken, ["bytes", "delegated", "forced", "key", "local", "negative", "variables"]);
}

#[test]
fn target() {
    let mut sets = 0;
    for_each_file("target", |name, bytes| {
        match Target::parse_bytes(bytes) {
            Ok(target) => {
                assert_eq!(Target::parse(&target.to_string()), Ok(target.clone()), "{name}");
                if let Target::Set(set) = target {
                    sets += 1;
                    if let Ok(names) = host_set::expand(&set, &|_| Some("member".into())) {
                        assert!(!names.is_empty() && names.len() <= HOST_SET_NAMES_MAX, "{name}");
                    }
                }
            }
            Err(error) => {
                let text = error.to_string();
                assert!(!text.chars().any(|c| c.is_control() || c == '\u{202e}'), "{name}: {text}");
            }
        }
        if let Ok(Ok(job)) = std::str::from_utf8(bytes).map(JobTarget::parse) {
            assert_eq!(JobTarget::parse(&job.to_string()), Ok(job), "{name}");
        }
    });
    assert!(sets >= 3, "{sets}");
}

#[test]
fn fault_60_records() {
    let salt = Salt(0x0123_4567_89ab_cdef);
    let told = |file: &[u8], piece: usize| {
        let mut scanner = Scanner::new(SEGMENT_MAGIC, salt);
        let mut pieces = file.chunks(piece.max(1));
        let mut told = Vec::new();
        loop {
            match scanner.next() {
                Scanned::Record(record) => told.push((record.at..record.end(), true)),
                Scanned::Damage(damage) => told.push((damage.bytes, false)),
                Scanned::More => match pieces.next() {
                    Some(bytes) => scanner.push(bytes),
                    None => scanner.end(),
                },
                Scanned::End => return told,
            }
        }
    };
    let mut good = 0;
    for_each_file("records", |name, bytes| {
        let (piece, file) = bytes.split_first().expect("the size of the pieces");
        let whole = told(file, file.len());
        assert_eq!(told(file, usize::from(*piece)), whole, "{name}");
        assert!(whole.windows(2).all(|next| next[0].0.end == next[1].0.start), "{name}");
        assert!(whole.last().is_none_or(|last| last.0.end == file.len() as u64), "{name}");
        let records = whole.iter().filter(|(_, is_record)| *is_record).count();
        good += records;
        let replay = Replay::read(file);
        let jobs = replay.ledger.jobs().len();
        let expected = match name {
            "segment" | "segment-other-format" => (3, 0, false),
            "segment-torn-payload" | "segment-flipped-payload" | "segment-flipped-length" => {
                (2, 0, false)
            }
            "segment-torn-header" => (2, 0, false),
            // The salt is right and the place is not: neither of the two passes.
            "segment-in-a-segment" => (1, 0, false),
            "journal" | "journal-torn" => (0, 1, true),
            "empty" => (0, 0, true),
            _ => (0, jobs, false),
        };
        assert_eq!((records, jobs, replay.is_good()), expected, "{name}");
    });
    assert!(good >= 10, "{good}");
}
