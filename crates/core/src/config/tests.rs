//! Reading `config.toml`, and that its documentation is true.

use super::*;

fn parse(text: &str) -> Result<ConfigFile, ConfigError> {
    ConfigFile::parse("config.toml", text.as_bytes())
}

fn problem(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

fn settings(text: &str, host: &str) -> ClientSettings {
    client_settings(&[parse(text).unwrap()], Some(host))
}

const ALL: &str = r#"
[defaults]
port = 2400
user = "ann"
identities = ["~/.ssh/a", "/keys/b"]
known_hosts = "~/known"
accept_new = true
connect_timeout = "1m"
ssh_config = "none"
ssh = "/opt/ssh"
remote_afar = "~/bin/afar"
env = { LANG = "C", EMPTY = "" }

[serve]
listen = ["0.0.0.0:2327", "[::]:2327"]
host_keys = ["/etc/ssh/ssh_host_ed25519_key"]
authorized_keys = ["%h/.ssh/authorized_keys", "/etc/afar/keys/%u"]
trusted_user_ca_keys = "/etc/afar/ca"
revoked_keys = "/etc/afar/revoked"
penalty_exempt = ["10.0.0.0/8", "192.0.2.*"]
max_unauthenticated = 100
max_unauthenticated_per_address = 10
classic = ["127.0.0.1"]
classic_user = "nobody"
dangerously_classic_anywhere = false
allow_users = ["ann@10.0.0.0/8", "dev*"]
deny_users = ["test"]
allow_groups = ["staff"]
deny_groups = ["guests"]
permit_root_login = "no"
"#;

#[test]
fn every_key_is_read_with_its_place() {
    let file = parse(ALL).unwrap();
    let settings = client_settings(std::slice::from_ref(&file), None);
    let place = |line| Place { file: "config.toml".into(), line };
    assert_eq!(settings.port, Some(Placed { value: 2400, place: place(3) }));
    assert_eq!(settings.user.unwrap().value, "ann");
    assert_eq!(settings.identities.unwrap().value, ["~/.ssh/a", "/keys/b"]);
    assert_eq!(settings.known_hosts.unwrap().value, "~/known");
    assert_eq!(settings.accept_new, Some(Placed { value: true, place: place(7) }));
    assert_eq!(settings.connect_timeout.unwrap().value, Duration::from_secs(60));
    assert_eq!(settings.ssh_config.unwrap().value, "none");
    assert_eq!(settings.ssh.unwrap().value, "/opt/ssh");
    assert_eq!(settings.remote_afar.unwrap().value, "~/bin/afar");
    let env: Vec<(&str, &str)> =
        settings.env.iter().map(|(name, value)| (name.as_str(), value.value.as_str())).collect();
    assert_eq!(env, [("EMPTY", ""), ("LANG", "C")]);
    let serve = serve_settings([&file]);
    assert_eq!(serve.listen.unwrap().value.len(), 2);
    assert_eq!(serve.host_keys.unwrap().place, place(16));
    assert_eq!(serve.authorized_keys.unwrap().value[1], "/etc/afar/keys/%u");
    assert_eq!(serve.trusted_user_ca_keys.unwrap().value, "/etc/afar/ca");
    assert_eq!(serve.revoked_keys.unwrap().value, "/etc/afar/revoked");
    assert_eq!(serve.max_unauthenticated.unwrap().value, 100);
    assert_eq!(serve.max_unauthenticated_per_address.unwrap().value, 10);
    assert_eq!(serve.classic.unwrap().value, ["127.0.0.1"]);
    assert_eq!(serve.classic_user.unwrap().value, "nobody");
    assert!(!serve.dangerously_classic_anywhere.unwrap().value);
    assert_eq!(serve.penalty_exempt.unwrap().value, ["10.0.0.0/8", "192.0.2.*"]);
    assert_eq!(serve.allow_users.unwrap().value, ["ann@10.0.0.0/8", "dev*"]);
    assert_eq!(serve.deny_users.unwrap().value, ["test"]);
    assert_eq!(serve.allow_groups.unwrap().value, ["staff"]);
    assert_eq!(serve.deny_groups.unwrap().value, ["guests"]);
    assert_eq!(serve.permit_root_login.unwrap().value, PermitRoot::No);
}

#[test]
fn every_key_that_is_listed_is_in_the_sample_and_no_other() {
    // The sample above is accepted, so a key that it has is one that the reader knows; and one that
    // the reader knows and the list does not have would be missing from the documentation.
    let document = toml::de::DeTable::parse(ALL).unwrap();
    for (section, keys) in [("defaults", CLIENT_KEYS), ("serve", SERVE_KEYS)] {
        let table = document.get_ref()[section].get_ref().as_table().unwrap();
        let mut in_sample: Vec<&str> = table.keys().map(|key| key.get_ref().as_ref()).collect();
        let mut listed: Vec<&str> = keys.iter().map(|key| key.name).collect();
        in_sample.sort_unstable();
        listed.sort_unstable();
        assert_eq!(in_sample, listed);
    }
}

#[test]
fn the_defaults_that_are_shown_are_the_limits() {
    let shown = |name: &str| SERVE_KEYS.iter().find(|key| key.name == name).unwrap().default;
    let rules = crate::doorkeeper::DoorRules::default();
    assert_eq!(shown("max_unauthenticated"), rules.unauthenticated_max.to_string());
    assert_eq!(shown("max_unauthenticated_per_address"), rules.share_max.to_string());
}

#[test]
fn the_documentation_has_every_key_with_its_option_and_default_and_no_other() {
    let text = include_str!("../../../../docs/config.md");
    let (_, keys) = text.split_once("\n## [defaults]").unwrap();
    let mut rows: Vec<&str> = keys.lines().filter(|line| line.starts_with("| `")).collect();
    for key in CLIENT_KEYS.iter().chain(SERVE_KEYS) {
        let at = rows.iter().position(|row| row.starts_with(&format!("| `{}` |", key.name)));
        let row = rows.remove(at.unwrap_or_else(|| panic!("{} has no row", key.name)));
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let default = cells[3].replace('`', "");
        assert_eq!(default, key.default, "{row}");
        let before = cells[4];
        for word in key.option.iter().chain(key.variable.iter()) {
            assert!(before.contains(&format!("`{word}`")), "{word} is not in {row}");
        }
    }
    assert_eq!(rows, [""; 0], "these keys do not exist");
}

#[test]
fn the_first_section_that_names_the_host_counts_then_the_defaults_then_the_next_file() {
    let text = r#"
[host."web*,!web9"]
port = 1
env.A = "web"
[host."web1"]
port = 2
user = "one"
[host."a*"]
port = 3
[defaults]
port = 4
env = { A = "any", B = "any" }
"#;
    assert_eq!(settings(text, "web1").port.unwrap().value, 1);
    assert_eq!(settings(text, "web1").user.unwrap().value, "one");
    assert_eq!(settings(text, "web9").port.unwrap().value, 4);
    assert_eq!(settings(text, "alpha").port.unwrap().value, 3);
    let env = settings(text, "web1").env;
    let values: Vec<(&str, &str)> =
        env.iter().map(|(name, value)| (name.as_str(), value.value.as_str())).collect();
    assert_eq!(values, [("A", "web"), ("B", "any")]);

    let files = [parse("[defaults]\nport = 5").unwrap(), parse(text).unwrap()];
    let settings = client_settings(&files, Some("web1"));
    assert_eq!((settings.port.unwrap().value, settings.user.unwrap().value), (5, "one".into()));
    assert_eq!(client_settings(&files[1..], None).port.unwrap().value, 4);
}

#[test]
fn a_key_that_is_not_known_is_an_error_with_a_suggestion() {
    for (text, expected) in [
        ("[defaults]\nprot = 1", "config.toml:2: [defaults] has no \"prot\"; is \"port\" meant?"),
        (
            "[host.\"web\"]\n\nconnect-timeout = \"1s\"",
            "config.toml:3: [host.\"web\"] has no \"connect-timeout\"; is \"connect_timeout\" meant?",
        ),
        ("[server]", "config.toml:1: the file has no \"server\"; is \"serve\" meant?"),
        ("port = 1", "config.toml:1: the file has no \"port\"; it has defaults, host, serve"),
    ] {
        assert_eq!(problem(text), expected);
    }
    assert!(problem("[serve]\nport = 1").contains("it has listen, host_keys"));
}

#[test]
fn a_value_that_is_none_is_told_with_what_is_wanted() {
    for (text, expected) in [
        ("[defaults]\nport = \"22\"", "2: port is a number from 1 to 65535"),
        ("[defaults]\nport = 0", "2: port is a number"),
        ("[defaults]\nport = 65536", "2: port is a number"),
        ("[defaults]\nport = -1", "2: port is a number"),
        ("[defaults]\nuser = \"\"", "2: user is a string"),
        ("[defaults]\nuser = \"a\\u001bb\"", "2: user is a string"),
        ("[defaults]\nidentities = \"~/.ssh/x\"", "2: identities is a list of paths"),
        ("[defaults]\nidentities = [\n\"/a\",\n\"b\"]", "4: identities is a list of paths"),
        ("[defaults]\nidentities = []", "2: identities is a list"),
        ("[defaults]\nknown_hosts = \"known\"", "2: known_hosts is an absolute path"),
        ("[defaults]\naccept_new = \"yes\"", "2: accept_new is true or false"),
        ("[defaults]\nconnect_timeout = 10", "2: connect_timeout is a string with a number"),
        ("[defaults]\nconnect_timeout = \"10\"", "2: connect_timeout is a string with a number"),
        ("[defaults]\nconnect_timeout = \"soon\"", "2: connect_timeout is"),
        ("[defaults]\nenv = { A = 1 }", "2: A is a string"),
        ("[defaults]\nenv = { \"A=B\" = \"x\" }", "2: A=B is no name"),
        ("[host]\nweb = 1", "2: web is a table"),
        ("[host.\"a,,b\"]\nport = 1", "1: a,,b is [host.\"PATTERN\"]"),
        ("[serve]\nlisten = \"x\"", "2: listen is a list"),
        ("[serve]\npenalty_exempt = [\"10.0.0.0/99\"]", "2: penalty_exempt is a list of addresses"),
        ("[serve]\nmax_unauthenticated = 513", "2: max_unauthenticated is a number from 1 to 512"),
        ("[serve]\nmax_unauthenticated = 0", "2: max_unauthenticated is a number from 1"),
        ("[serve]\nallow_users = [\"ann@bad.example\"]", "2: allow_users is a list of users"),
        ("[serve]\ndeny_groups = \"x\"", "2: deny_groups is a list"),
        ("[serve]\npermit_root_login = true", "2: permit_root_login is \"yes\""),
        ("defaults = 1", "1: defaults is a table"),
        ("[defaults]\n[defaults]", "2: "),
        ("[defaults]\nport = ", "2: "),
        ("[defaults]\nport = 1\nport = 2", "3: "),
    ] {
        let problem = problem(text);
        assert!(problem.starts_with(&format!("config.toml:{expected}")), "{text:?}: {problem}");
        assert!(!problem.chars().any(char::is_control), "{problem:?}");
    }
    assert_eq!(ConfigFile::parse("c", b"\xff").unwrap_err().problem, Problem::NotUtf8);
}

#[test]
fn the_size_is_bounded() {
    let mut bytes = vec![b'#'; CONFIG_BYTES_MAX];
    assert!(ConfigFile::parse("c", &bytes).is_ok());
    bytes.push(b'\n');
    assert_eq!(ConfigFile::parse("c", &bytes).unwrap_err().problem, Problem::TooLarge);
}
