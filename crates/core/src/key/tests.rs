//! Keys that `ssh-keygen` made, with the fingerprints that `ssh-keygen -lf` shows for them.

use proptest::prelude::*;

use super::*;

/// Line of a `.pub` file, fingerprint.
const VECTORS: [(&str, &str); 6] = [
    (
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDvBLbc4Y8gAXpk7WApR7U1vzJYap3fKZnIw1b6Qwef9 alice@example",
        "SHA256:NASIfqZY/cmiF6486IrIkiAE4CYvmKaxabdxceYWmsU",
    ),
    (
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIP66NdamCPYY30VgE2+3/ikwTwtjlOtn5BfoLm6YT0ln bob@example",
        "SHA256:ycfhLCNBVRc3UVjQFEOiD4CPcEz43C6nZQGB2PwR060",
    ),
    (
        "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQCHnh0DQ0R9kSaKXBU17IcqP+fx5/lwCmO1jg9IA9cf0ijse3CahtMpqcr+yLDvH/lMvlDog2CYDUsbROqG6v+6Ho/kf8xfTGVfnnUDN1jMHGmA89Oa+L57u26zcJqJ/p7oYgyHQOYu/LSlvn9sfL8twOeD/noqP5NXzJOFrw9tHuG5lN6oDuKJk3M14PjK5IVXNXBlYTyPhkJQYTLxmzXryp4EsIudF5RBb8SviMF+t5ixrgPcLzkqxp1UphU1IYJxiihBRuv9AsmZtLhSD1eHtJN7SHcEdnHXhQVtPBk5dqGH9nMKFAeNSRdbEoBr3GVZr97/Zd6pnIDvltOZvreN r",
        "SHA256:5ynGzvJdpjky1nES4jkdnbxacosUVlg4tCnAqibRa+E",
    ),
    (
        "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBOUGHpvQGrVHcLYkIbsOkDza0Kom5C7CcN8+y63ksomJaynw1xTjcwZ2Sfw4SE1bsgNgWPUXWnkW6pt/jAJePR4= e256",
        "SHA256:RpDHvkQkUSnACz3FC8GV3vcAoWO/9ddMwMJfWtWrUNY",
    ),
    (
        "ecdsa-sha2-nistp384 AAAAE2VjZHNhLXNoYTItbmlzdHAzODQAAAAIbmlzdHAzODQAAABhBC8Lisnx+HW8LmEhfgm8KgOasH0bu17XfWllsMzGeRiuJfJydiD7RmYrIsS9d4YYjR73RmrlNLG/bEvGppQSZY8Hgxt0hALDD0uYx+DPxQw4USct4iSJVL+J0qvL/XKpbQ== e384",
        "SHA256:YZ0sL51C01j3KvRP6uIdKYAAympyCIUQ6tEuywdYxkc",
    ),
    (
        "ssh-ed25519-cert-v01@openssh.com AAAAIHNzaC1lZDI1NTE5LWNlcnQtdjAxQG9wZW5zc2guY29tAAAAIMPcyA7arBfTdEuEMovQzbntp8av6IEvXQCofkmRSxTlAAAAIP66NdamCPYY30VgE2+3/ikwTwtjlOtn5BfoLm6YT0lnAAAAAAAAAAAAAAABAAAAA2lkMQAAAAkAAAAFYWxpY2UAAAAAawMAoAAAAABs4uL+AAAAAAAAAIIAAAAVcGVybWl0LVgxMS1mb3J3YXJkaW5nAAAAAAAAABdwZXJtaXQtYWdlbnQtZm9yd2FyZGluZwAAAAAAAAAWcGVybWl0LXBvcnQtZm9yd2FyZGluZwAAAAAAAAAKcGVybWl0LXB0eQAAAAAAAAAOcGVybWl0LXVzZXItcmMAAAAAAAAAAAAAADMAAAALc3NoLWVkMjU1MTkAAAAgO8EttzhjyABemTtYClHtTW/Mlhqnd8pmcjDVvpDB5/0AAABTAAAAC3NzaC1lZDI1NTE5AAAAQKAsI6Gt49u+6jDuvNjZgAiWJkmcG0sfC3S+qTX/0ttX8C0XlSEHw9xsL+f2jDqNTeKfHGP4aryaJ1EYSCXzhQM= bob@example",
        "SHA256:ycfhLCNBVRc3UVjQFEOiD4CPcEz43C6nZQGB2PwR060",
    ),
];

fn vector(index: usize) -> PublicKeyBlob {
    PublicKeyBlob::from_public_line(VECTORS[index].0.as_bytes()).unwrap().0
}

#[test]
fn fingerprints_are_those_of_ssh_keygen() {
    for (line, fingerprint) in VECTORS {
        let (key, comment) = PublicKeyBlob::from_public_line(line.as_bytes()).unwrap();
        assert_eq!(key.fingerprint(), fingerprint);
        assert_eq!(key.algorithm(), line.split(' ').next().unwrap());
        assert_eq!(format!("{} {}", key.to_fields(), String::from_utf8(comment).unwrap()), line);
        assert_eq!(format!("{key:?}"), format!("{} {fingerprint}", key.algorithm()));
        assert_eq!(PublicKeyBlob::from_wire(key.clone().into_bytes()).unwrap(), key);
    }
}

#[test]
fn a_certificate_yields_the_key_it_certifies() {
    let (key, certificate) = (vector(1), vector(5));
    assert!(certificate.is_certificate() && !key.is_certificate());
    assert_eq!(certificate.plain(), key);
    assert_eq!(key.plain(), key);
}

#[test]
fn every_cut_and_every_extra_byte_of_a_plain_key_is_refused() {
    for index in 0..5 {
        let bytes = vector(index).into_bytes();
        for length in 0..bytes.len() {
            assert!(PublicKeyBlob::from_wire(bytes[..length].to_vec()).is_err());
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(PublicKeyBlob::from_wire(longer), Err(KeyError::Length));
    }
}

fn wire(parts: &[&[u8]]) -> Vec<u8> {
    parts
        .iter()
        .flat_map(|part| {
            let mut bytes = u32::try_from(part.len()).unwrap().to_be_bytes().to_vec();
            bytes.extend_from_slice(part);
            bytes
        })
        .collect()
}

#[test]
fn parts_must_be_those_of_the_algorithm() {
    let point = [[4].as_slice(), &[1; 64]].concat();
    let good: [&[&[u8]]; 5] = [
        &[b"ssh-ed25519", &[1; 32]],
        &[b"ecdsa-sha2-nistp256", b"nistp256", &point],
        &[b"ssh-rsa", &[1, 0, 1], &[0, 0x80, 1]],
        &[b"sk-ssh-ed25519@openssh.com", &[1; 32], b"ssh:"],
        // An algorithm that nobody here knows is taken as it is: it matches or it does not.
        &[b"ssh-new@example.com", b"whatever"],
    ];
    for parts in good {
        assert!(PublicKeyBlob::from_wire(wire(parts)).is_ok(), "{parts:?}");
    }
    let bad: [&[&[u8]]; 8] = [
        &[b"ssh-ed25519", &[1; 31]],
        &[b"ecdsa-sha2-nistp256", b"nistp384", &point],
        &[b"ecdsa-sha2-nistp256", b"nistp256", &[2; 65]],
        &[b"ssh-rsa", &[1, 0, 1], &[0, 1]],
        &[b"ssh-rsa", &[1, 0, 1], &[0x80]],
        &[b"ssh-rsa", &[1, 0, 1], b""],
        &[b"ssh-rsa", &[1, 0, 1], &[0]],
        &[b"sk-ssh-ed25519@openssh.com", &[1; 32], b""],
    ];
    for parts in bad {
        assert_eq!(PublicKeyBlob::from_wire(wire(parts)), Err(KeyError::Parts), "{parts:?}");
    }
}

#[test]
fn names_of_algorithms_are_short_printable_words() {
    for name in [&b""[..], b"a b", b"a,b", b"a\nb", b"\xff", &[b'x'; ALGORITHM_BYTES_MAX + 1]] {
        assert_eq!(PublicKeyBlob::from_wire(wire(&[name])), Err(KeyError::Algorithm));
    }
    let longest = [b'x'; ALGORITHM_BYTES_MAX];
    assert!(PublicKeyBlob::from_wire(wire(&[&longest])).is_ok());
}

#[test]
fn size_is_bounded_on_both_sides_of_the_limit() {
    let filled = |total: usize| wire(&[b"x", &vec![7; total - 4 - 1 - 4]]);
    let largest = PublicKeyBlob::from_wire(filled(KEY_BYTES_MAX)).unwrap();
    assert_eq!(PublicKeyBlob::from_base64(largest.to_base64().as_bytes()).unwrap(), largest);
    let over = filled(KEY_BYTES_MAX + 1);
    assert_eq!(PublicKeyBlob::from_wire(over.clone()), Err(KeyError::TooLarge));
    let text = Base64::encode_string(&over);
    assert_eq!(PublicKeyBlob::from_base64(text.as_bytes()), Err(KeyError::TooLarge));
    let endless = vec![b'A'; 1 << 20];
    assert_eq!(PublicKeyBlob::from_base64(&endless), Err(KeyError::TooLarge));
}

#[test]
fn lines_must_agree_with_the_key_they_hold() {
    let fields = vector(0).to_fields();
    let base64 = fields.split(' ').nth(1).unwrap();
    let read = |line: &str| PublicKeyBlob::from_public_line(line.as_bytes()).map(|(key, _)| key);
    assert_eq!(read(&fields), Ok(vector(0)));
    assert_eq!(read(&format!("  {fields}  a comment\r\nnext")), Ok(vector(0)));
    assert_eq!(read(""), Err(KeyError::Missing));
    assert_eq!(read("ssh-ed25519"), Err(KeyError::Missing));
    assert_eq!(read("ssh-ed25519 !!!!"), Err(KeyError::Base64));
    assert_eq!(read(&format!("ssh-rsa {base64}")), Err(KeyError::NameDiffers));
    assert_eq!(read(&format!("ssh-ed25519 {}", &base64[..40])), Err(KeyError::Length));
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(key) = PublicKeyBlob::from_wire(bytes.clone()) {
            prop_assert_eq!(key.as_bytes(), &bytes[..]);
            prop_assert!(key.fingerprint().starts_with("SHA256:"));
        }
        let _ = PublicKeyBlob::from_base64(&bytes);
        let _ = PublicKeyBlob::from_public_line(&bytes);
    }

    #[test]
    fn a_certificate_cut_anywhere_does_not_panic(length in 0_usize..600) {
        let bytes = vector(5).into_bytes();
        if let Ok(key) = PublicKeyBlob::from_wire(bytes[..length.min(bytes.len())].to_vec()) {
            let _ = key.fingerprint();
        }
    }
}
