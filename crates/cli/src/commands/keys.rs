//! `afar keys`: the keys that would be offered.

use afar_client::{KeySource, OfferedKey};
use afar_core::escape::escape_for_terminal;

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
    format!("{} {} {comment} ({place} {path})\n", key.algorithm, key.fingerprint)
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
        };
        let expected = "ssh-ed25519 SHA256:x me\\x1b[2J (locked file /home/me/.ssh/id)\n";
        assert_eq!(line(&key), expected);
    }
}
