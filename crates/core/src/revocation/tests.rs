//! Lists and KRLs, made part by part; those of ssh-keygen are tested where processes may be run.

use super::*;
use crate::certificate::rig::{Draft, ed25519, string};

fn key(byte: u8) -> PublicKeyBlob {
    PublicKeyBlob::from_wire(ed25519(byte)).unwrap()
}

fn krl(sections: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut out = krl::MAGIC.to_vec();
    out.extend(1_u32.to_be_bytes());
    out.extend([0; 24]);
    out.extend(string(b""));
    out.extend(string(b"a comment"));
    for (kind, body) in sections {
        out.push(*kind);
        out.extend(string(body));
    }
    out
}

fn certificates(authority: &[u8], sections: &[(u8, Vec<u8>)]) -> (u8, Vec<u8>) {
    let mut body = [string(authority), string(b"")].concat();
    for (kind, section) in sections {
        body.push(*kind);
        body.extend(string(section));
    }
    (1, body)
}

fn find(file: &[u8], draft: &Draft) -> Option<Revocation> {
    let certificate = draft.certificate();
    RevokedKeys::parse(file).unwrap().find(certificate.blob(), Some(&certificate))
}

fn with_serial(serial: u64) -> Draft {
    Draft { serial, ..Draft::default() }
}

#[test]
fn fault_76_a_list_revokes_its_keys_their_certificates_and_what_they_signed() {
    let list = format!("# gone\n\n  {} me\r\n{}\n", key(1).to_fields(), key(2).to_fields());
    let revoked = RevokedKeys::parse(list.as_bytes()).unwrap();
    assert_eq!(revoked.find(&key(1), None), Some(Revocation::Key));
    assert_eq!(revoked.find(&key(2), None), Some(Revocation::Key));
    assert_eq!(revoked.find(&key(3), None), None);
    assert_eq!(find(list.as_bytes(), &Draft::default()), Some(Revocation::Key));
    let other = Draft { key: 3, ..Draft::default() };
    assert_eq!(find(list.as_bytes(), &other), None);
    let by_two = Draft { authority: ed25519(2), ..other };
    assert_eq!(find(list.as_bytes(), &by_two), Some(Revocation::Authority));
    assert_eq!(RevokedKeys::parse(b"").unwrap().find(&key(1), None), None);
    // A certificate on the list stands for its key.
    let certificate = Draft::default().certificate();
    let list = certificate.blob().to_fields();
    assert_eq!(
        RevokedKeys::parse(list.as_bytes()).unwrap().find(&key(1), None),
        Some(Revocation::Key)
    );
}

#[test]
fn fault_76_a_file_that_is_not_understood_is_refused_as_a_whole() {
    let good = key(1).to_fields();
    for bad in ["rubbish", "ssh-ed25519 AAAA", "restrict ssh-ed25519 AAAA", "\u{0}"] {
        let list = format!("{good}\n{bad}\n");
        let error = RevokedKeys::parse(list.as_bytes()).unwrap_err();
        assert!(matches!(error, RevocationError::Line { line: 2, .. }), "{bad}: {error}");
    }
    let whole = krl(&[(2, string(&ed25519(1)))]);
    for cut in krl::MAGIC.len()..whole.len() {
        // Cut behind the header it is a KRL without sections.
        let is_header = cut == krl(&[]).len();
        assert_eq!(RevokedKeys::parse(&whole[..cut]).is_ok(), is_header, "cut at {cut}");
    }
    for (what, sections) in [
        ("an unknown section", vec![(6, Vec::new())]),
        ("a signature", vec![(4, string(&ed25519(1)))]),
        ("a short hash", vec![(3, string(&[0; 19]))]),
        ("a long hash", vec![(5, string(&[0; 33]))]),
        ("a critical extension", vec![(255, [string(b"x"), vec![1], string(b"")].concat())]),
        ("a broken extension", vec![(255, [string(b"x"), vec![0], string(b""), vec![7]].concat())]),
        ("a broken key", vec![(2, string(b"key"))]),
        ("a broken authority", vec![certificates(b"ca", &[])]),
        ("an unknown section of certificates", vec![certificates(b"", &[(0x24, Vec::new())])]),
        ("half a serial", vec![certificates(b"", &[(0x20, vec![0; 9])])]),
        ("a reversed range", vec![certificates(b"", &[(0x21, range(2, 1))])]),
        ("a long range", vec![certificates(b"", &[(0x21, [range(1, 2), vec![0]].concat())])]),
        ("a negative bitmap", vec![certificates(b"", &[(0x22, bitmap(1, &[0x80]))])]),
        ("a bitmap too far", vec![certificates(b"", &[(0x22, bitmap(u64::MAX, &[2]))])]),
    ] {
        assert!(RevokedKeys::parse(&krl(&sections)).is_err(), "{what}");
    }
    let other_version = [krl::MAGIC, &2_u32.to_be_bytes(), &[0; 32]].concat();
    let error = RevokedKeys::parse(&other_version).unwrap_err();
    assert!(matches!(error, RevocationError::Unknown { number: 2, .. }), "{error}");
    // An extension that is not critical is passed over.
    let harmless = krl(&[(255, [string(b"x"), vec![0], string(b"")].concat())]);
    assert!(RevokedKeys::parse(&harmless).is_ok());
}

#[test]
fn fault_76_a_file_has_a_largest_size() {
    let comment = |bytes: usize| vec![b'#'; bytes];
    assert!(RevokedKeys::parse(&comment(REVOKED_KEYS_BYTES_MAX)).is_ok());
    let error = RevokedKeys::parse(&comment(REVOKED_KEYS_BYTES_MAX + 1)).unwrap_err();
    assert_eq!(error, RevocationError::TooLarge);
}

#[test]
fn fault_76_a_krl_revokes_keys_and_hashes_of_keys() {
    let blob = ed25519(1);
    let sha1 = digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &blob);
    let sha256 = digest(&digest::SHA256, &blob);
    for section in [(2, string(&blob)), (3, string(sha1.as_ref())), (5, string(sha256.as_ref()))] {
        let file = krl(&[section]);
        let revoked = RevokedKeys::parse(&file).unwrap();
        assert_eq!(revoked.find(&key(1), None), Some(Revocation::Key));
        assert_eq!(revoked.find(&key(2), None), None);
        assert_eq!(find(&file, &Draft::default()), Some(Revocation::Key));
        let by_it = Draft { key: 2, authority: blob.clone(), ..Draft::default() };
        assert_eq!(find(&file, &by_it), Some(Revocation::Authority));
    }
}

fn range(from: u64, to: u64) -> Vec<u8> {
    [from.to_be_bytes(), to.to_be_bytes()].concat()
}

fn bitmap(offset: u64, bytes: &[u8]) -> Vec<u8> {
    [offset.to_be_bytes().to_vec(), string(bytes)].concat()
}

#[test]
fn fault_76_a_krl_revokes_certificates_by_number_and_name() {
    let list: Vec<u8> = [5_u64, 3, 9].into_iter().flat_map(u64::to_be_bytes).collect();
    // Bits 0, 1 and 9 from 100 on: 100, 101, 109.
    let sections =
        [(0x20, list), (0x21, range(20, 30)), (0x21, range(25, 40)), (0x22, bitmap(100, &[2, 3]))];
    let file = krl(&[certificates(b"", &sections)]);
    let revoked: Vec<u64> =
        (0..200).filter(|serial| find(&file, &with_serial(*serial)).is_some()).collect();
    let expected: Vec<u64> = [3, 5, 9].into_iter().chain(20..=40).chain([100, 101, 109]).collect();
    assert_eq!(revoked, expected);
    assert_eq!(find(&file, &with_serial(5)), Some(Revocation::Serial(5)));

    let file = krl(&[certificates(b"", &[(0x23, string(b"alice's laptop"))])]);
    assert_eq!(find(&file, &Draft::default()), Some(Revocation::KeyId("alice's laptop".into())));
    let other = Draft { key_id: b"alice".to_vec(), ..Draft::default() };
    assert_eq!(find(&file, &other), None);
}

#[test]
fn fault_76_numbers_are_those_of_one_authority_and_zero_is_none() {
    let all = [(0x21, range(0, u64::MAX))];
    let file = krl(&[certificates(&ed25519(0xca), &all)]);
    assert_eq!(find(&file, &with_serial(1)), Some(Revocation::Serial(1)));
    assert_eq!(find(&file, &with_serial(u64::MAX)), Some(Revocation::Serial(u64::MAX)));
    assert_eq!(find(&file, &with_serial(0)), None);
    let of_another = Draft { authority: ed25519(0xcb), ..Draft::default() };
    assert_eq!(find(&file, &of_another), None);
}
