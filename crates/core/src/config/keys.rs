//! Every key there is: for the reader's suggestions, for `afar config`, and for the test that holds
//! `docs/config.md` to it.

/// A key and what it is without being set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyInfo {
    /// Its name.
    pub name: &'static str,
    /// The option of the command line that goes before it.
    pub option: Option<&'static str>,
    /// The variable of the environment that goes before it.
    pub variable: Option<&'static str>,
    /// What counts where nothing sets it, as it is shown.
    pub default: &'static str,
}

const fn key(name: &'static str, option: &'static str, default: &'static str) -> KeyInfo {
    KeyInfo { name, option: Some(option), variable: None, default }
}

/// Those of `[defaults]` and of `[host."…"]`.
pub const CLIENT_KEYS: &[KeyInfo] = &[
    key("port", "-p", "2327"),
    key("user", "-l", "the local user"),
    key("identities", "-i", "ssh's"),
    key("known_hosts", "--known-hosts", "~/.ssh/known_hosts and the system's"),
    key("accept_new", "--accept-new", "false"),
    key("connect_timeout", "--connect-timeout", "10s"),
    key("ssh_config", "-F", "~/.ssh/config"),
    KeyInfo { name: "ssh", option: Some("--ssh"), variable: Some("AFAR_SSH"), default: "ssh" },
    key("remote_afar", "--remote-afar", "afar"),
    key("env", "-e", "none"),
];

/// Those of `[serve]`.
pub const SERVE_KEYS: &[KeyInfo] = &[
    key("listen", "--listen", "127.0.0.1:2327"),
    key("host_keys", "--host-key", "sshd's where they can be read, else one of afar's own"),
    key("authorized_keys", "--authorized-keys", "%h/.ssh/authorized_keys"),
    key("trusted_user_ca_keys", "--trusted-user-ca-keys", "none"),
    key("revoked_keys", "--revoked-keys", "none"),
    key("penalty_exempt", "--penalty-exempt", "none"),
    KeyInfo { name: "max_unauthenticated", option: None, variable: None, default: "512" },
    KeyInfo {
        name: "max_unauthenticated_per_address",
        option: None,
        variable: None,
        default: "256",
    },
    key("classic", "--classic", "none"),
    key("classic_user", "--classic-user", "the user who runs the server"),
    key("dangerously_classic_anywhere", "--dangerously-classic-anywhere", "false"),
    key("allow_users", "--allow-users", "all"),
    key("deny_users", "--deny-users", "none"),
    key("allow_groups", "--allow-groups", "all"),
    key("deny_groups", "--deny-groups", "none"),
    key("permit_root_login", "--permit-root-login", "prohibit-password"),
];

/// The sections.
pub(super) const SECTIONS: [&str; 3] = ["defaults", "host", "serve"];

/// The known word that was probably meant by another one.
pub(super) fn meant(word: &str, known: &[&'static str]) -> Option<&'static str> {
    // A dash is what a person who knows the option writes.
    let word = word.to_ascii_lowercase().replace('-', "_");
    let near = |known: &&'static str| {
        let distance = strsim::damerau_levenshtein(&word, known);
        let prefix = !word.is_empty() && (known.starts_with(&word) || word.starts_with(*known));
        // One mistake in three letters.
        (distance.saturating_mul(3) <= known.len().max(3) || prefix).then_some((distance, *known))
    };
    known.iter().filter_map(near).min().map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_meant_is_found_and_nothing_far_fetched() {
        let known: Vec<&str> = CLIENT_KEYS.iter().map(|key| key.name).collect();
        for (word, expected) in [
            ("prot", Some("port")),
            ("Port", Some("port")),
            ("connect-timeout", Some("connect_timeout")),
            ("connect_timout", Some("connect_timeout")),
            ("identity", Some("identities")),
            ("identites", Some("identities")),
            ("known_host", Some("known_hosts")),
            ("usr", Some("user")),
            ("compression", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(meant(word, &known), expected, "{word}");
        }
    }
}
