//! `afar keys`: the keys that would be offered.

use afar_client::{KeySource, OfferedCertificate, OfferedKey};
use afar_core::escape::escape_for_terminal;
use jiff::Timestamp;

use crate::args::KeysArgs;
use crate::commands::{block_on, parse_target};
use crate::console::{fail, say, write_stdout};
use crate::exit::Exit;
use crate::settings::ConnectSettings;

/// Prints a line a key: type, fingerprint, comment, where it is.
pub(crate) fn cmd_keys(args: &KeysArgs) -> Exit {
    let target = match args.target.as_deref().map(parse_target).transpose() {
        Ok(target) => target,
        Err(error) => return fail(&error),
    };
    let client = match ConnectSettings::settle(&args.connect, target.as_ref()) {
        Ok(settings) => settings.client().build(),
        Err(error) => return fail(&error),
    };
    block_on(async {
        match client.keys(target.as_ref()).await {
            Ok(keys) if keys.is_empty() => {
                say("there is no key to offer; make one with `ssh-keygen -t ed25519`");
                Exit::Failed
            }
            Ok(keys) => {
                let lines: String = keys.iter().map(line).collect();
                write_stdout(lines.as_bytes())
            }
            Err(error) => fail(&error),
        }
    })
}

fn line(key: &OfferedKey) -> String {
    let (place, path) = match &key.source {
        KeySource::File(path) => ("file", path),
        KeySource::LockedFile(path) => ("locked file", path),
        KeySource::Agent(path) => ("agent", path),
        _ => return String::new(),
    };
    let path = escape_for_terminal(path.as_os_str().as_encoded_bytes());
    let comment = match escape_for_terminal(key.comment.as_bytes()) {
        comment if comment.is_empty() => "-".to_owned(),
        comment => comment,
    };
    let certificate = key.certificate.as_ref().map(certified).unwrap_or_default();
    format!("{} {} {comment} ({place} {path}){certificate}\n", key.algorithm, key.fingerprint)
}

/// What a certificate says, behind what is said of its key.
fn certified(certificate: &OfferedCertificate) -> String {
    let OfferedCertificate { key_id, serial, principals, authority, .. } = certificate;
    let names = match principals.as_slice() {
        [] => "nobody".to_owned(),
        names => escape_for_terminal(names.join(",").as_bytes()),
    };
    let time = |at_s: u64| {
        let time = i64::try_from(at_s).ok().and_then(|at_s| Timestamp::from_second(at_s).ok());
        time.map_or_else(|| "never".to_owned(), |time| time.to_string())
    };
    let from = match certificate.valid_after_s {
        0 => String::new(),
        after_s => format!("from {} ", time(after_s)),
    };
    let until = match certificate.valid_before_s {
        u64::MAX => "for ever".to_owned(),
        before_s => format!("until {}", time(before_s)),
    };
    let key_id = escape_for_terminal(key_id.as_bytes());
    format!(" certificate \"{key_id}\" {serial} for {names}, valid {from}{until}, by {authority}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_85_a_comment_is_shown_and_not_obeyed() {
        let key = OfferedKey {
            algorithm: "ssh-ed25519".into(),
            fingerprint: "SHA256:x".into(),
            comment: "me\x1b[2J".into(),
            source: KeySource::LockedFile("/home/me/.ssh/id".into()),
            certificate: None,
        };
        let expected = "ssh-ed25519 SHA256:x me\\x1b[2J (locked file /home/me/.ssh/id)\n";
        assert_eq!(line(&key), expected);
    }

    #[test]
    fn a_certificate_says_for_whom_and_until_when() {
        let mut certificate = OfferedCertificate {
            key_id: "me\x1b[2J".into(),
            serial: 7,
            principals: vec!["ann".into(), "ops".into()],
            valid_after_s: 0,
            valid_before_s: u64::MAX,
            authority: "SHA256:ca".into(),
        };
        let expected = " certificate \"me\\x1b[2J\" 7 for ann,ops, valid for ever, by SHA256:ca";
        assert_eq!(certified(&certificate), expected);
        certificate.principals.clear();
        certificate.valid_after_s = 1_795_341_600;
        certificate.valid_before_s = 1_795_345_200;
        assert!(certified(&certificate).contains(
            "for nobody, valid from 2026-11-22T10:00:00Z until 2026-11-22T11:00:00Z, by"
        ));
        certificate.valid_after_s = u64::MAX - 1;
        assert!(certified(&certificate).contains("from never"));
    }
}
