//! Configurations as ssh reads them. The forms of words, quotes, patterns and tokens were compared
//! by hand with `ssh -G -F FILE web` of OpenSSH 9.2.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn file(name: &str, text: &str) -> ConfigFile {
    ConfigFile { name: name.into(), bytes: text.into() }
}

fn try_resolve(host: &str, text: &str) -> Result<HostSettings, ConfigError> {
    resolve(host, &[file("config", text)], &mut |_, _| Ok(Vec::new()))
}

fn settings(host: &str, text: &str) -> HostSettings {
    try_resolve(host, text).unwrap()
}

/// The line and the problem of a configuration that is refused for `web`.
fn problem(text: &str) -> (usize, Problem) {
    let error = try_resolve("web", text).unwrap_err();
    assert_eq!(error.place.file, "config");
    (error.place.line, error.problem)
}

/// Resolves with files that can be included by name; several names by a comma.
fn with_includes(files: &[(&str, &str)]) -> Result<HostSettings, ConfigError> {
    let files: BTreeMap<_, _> = files.iter().copied().collect();
    resolve("web", &[file("config", files["config"])], &mut |argument, _| {
        if argument == "broken" {
            return Err("permission denied".into());
        }
        Ok(argument
            .split(',')
            .filter_map(|name| files.get(name).map(|text| file(name, text)))
            .collect())
    })
}

fn paths(list: &[&str]) -> Option<Vec<PathBuf>> {
    Some(list.iter().map(PathBuf::from).collect())
}

#[test]
fn every_setting_is_read() {
    let all = settings(
        "web",
        "HostName %h.example.com\nUser alice\nPort 2222\nIdentityFile ~/.ssh/a\n\
         IdentityFile \"~/.ssh/b c\"\nCertificateFile ~/.ssh/a-cert.pub\nIdentitiesOnly yes\nIdentityAgent /run/agent\n\
         HostKeyAlias webkey\nUserKnownHostsFile ~/.ssh/k1 ~/.ssh/k2\nProxyJump bastion\n",
    );
    assert_eq!(
        all,
        HostSettings {
            host_name: Some("web.example.com".into()),
            user: Some("alice".into()),
            port: Some(2222),
            identity_files: paths(&["~/.ssh/a", "~/.ssh/b c"]),
            certificate_files: vec!["~/.ssh/a-cert.pub".into()],
            identities_only: Some(true),
            identity_agent: Some(IdentityAgent::Socket("/run/agent".into())),
            host_key_alias: Some("webkey".into()),
            user_known_hosts_files: paths(&["~/.ssh/k1", "~/.ssh/k2"]),
            proxy: Some(Proxy::Jump("bastion".into())),
            skipped_matches: vec![],
            places: all.places.clone(),
        }
    );
    let places: Vec<String> =
        all.places.iter().map(|(name, place)| format!("{name} {}", place.line)).collect();
    assert_eq!(
        places.join(", "),
        "CertificateFile 6, HostKeyAlias 9, HostName 1, IdentitiesOnly 7, IdentityAgent 8, \
         IdentityFile 4, Port 3, ProxyJump 11, User 2, UserKnownHostsFile 10"
    );
    assert_eq!(settings("web", ""), HostSettings::default());
}

#[test]
fn the_first_value_counts() {
    let text = "Host web\n User first\n Port 1\nHost *\n User second\n Port 2\n HostName h\n";
    let web = settings("web", text);
    assert_eq!((web.user.as_deref(), web.port), (Some("first"), Some(1)));
    assert_eq!(web.host_name.as_deref(), Some("h"));
    let other = settings("other", text);
    assert_eq!((other.user.as_deref(), other.port), (Some("second"), Some(2)));
    // But identity files add up.
    let web = settings("web", "Host web\nIdentityFile a\nHost *\nIdentityFile b\nIdentityFile a\n");
    assert_eq!(web.identity_files, paths(&["a", "b"]));
}

#[test]
fn host_blocks_are_chosen_by_patterns() {
    for (patterns, host, applies) in [
        ("web", "web", true),
        ("web", "web1", false),
        ("web?", "web1", true),
        ("*.example.com", "a.example.com", true),
        ("*.example.com", "example.com", false),
        ("db web", "web", true),
        ("* !web", "web", false),
        ("!web *", "web", false),
        ("!web *", "db", true),
        ("!web", "db", false),
        ("Web", "web", false),
        ("\"web\" db", "web", true),
        ("192.0.2.*", "192.0.2.1", true),
        ("web # db", "db", false),
    ] {
        let user = settings(host, &format!("Host {patterns}\n  User x\n")).user;
        assert_eq!(user.is_some(), applies, "Host {patterns}: {host}");
    }
    // What stands before the first block is for every host.
    assert_eq!(settings("any", "User x\nHost web\nUser y\n").user.as_deref(), Some("x"));
}

#[test]
fn syntax_is_that_of_ssh() {
    for text in [
        "USER alice",
        "user=alice",
        "user = alice",
        "\tUser\talice  ",
        "User \"alice\"",
        "User alice # not bob",
        "User alice\r\n",
        "# User bob\n\n   \nUser alice",
        "Unknown x \"unclosed\nUser alice",
        "  #x\nUser 'alice'",
    ] {
        assert_eq!(settings("web", text).user.as_deref(), Some("alice"), "{text:?}");
    }
}

#[test]
fn match_blocks_are_passed_over_but_for_all() {
    let text = "Match host web\n User no\n Include x\nMatch exec \"touch /tmp/x\"\n User no\n\
                Match all\n User yes\nMatch canonical all\n Port 1\nHost web\n Port 2\n";
    let web = settings("web", text);
    assert_eq!((web.user.as_deref(), web.port), (Some("yes"), Some(2)));
    let lines: Vec<_> = web.skipped_matches.iter().map(ToString::to_string).collect();
    assert_eq!(lines, ["config:1", "config:4", "config:8"]);
}

#[test]
fn none_is_a_value() {
    let text = "IdentityFile none\nIdentityAgent none\nUserKnownHostsFile none\nProxyJump none\n\
                ProxyCommand nc %h\nIdentityAgent x\nUserKnownHostsFile x\n";
    let web = settings("web", text);
    assert_eq!(web.identity_files, Some(vec![]));
    assert_eq!(web.identity_agent, Some(IdentityAgent::None));
    assert_eq!(web.user_known_hosts_files, Some(vec![]));
    assert_eq!(web.proxy, None);
}

#[test]
fn agents_may_be_named_by_a_variable() {
    let agent = |value: &str| settings("web", &format!("IdentityAgent {value}")).identity_agent;
    assert_eq!(agent("SSH_AUTH_SOCK"), Some(IdentityAgent::Variable("SSH_AUTH_SOCK".into())));
    assert_eq!(agent("$MY_AGENT"), Some(IdentityAgent::Variable("MY_AGENT".into())));
    assert_eq!(agent("${X}/a"), Some(IdentityAgent::Socket("${X}/a".into())));
    assert_eq!(agent("\"~/a b\""), Some(IdentityAgent::Socket("~/a b".into())));
}

#[test]
fn proxies_are_told_so_that_an_error_can_name_them() {
    let proxy = |text: &str| settings("web", text).proxy;
    assert_eq!(
        proxy("ProxyCommand ssh -W '%h:%p' \"bastion # x"),
        Some(Proxy::Command("ssh -W '%h:%p' \"bastion # x".into()))
    );
    assert_eq!(proxy("ProxyJump a,b\nProxyCommand nc"), Some(Proxy::Jump("a,b".into())));
    assert_eq!(proxy("ProxyCommand nc\nProxyJump a"), Some(Proxy::Command("nc".into())));
    assert_eq!(proxy("ProxyCommand e\x1b"), Some(Proxy::Command("e\\x1b".into())));
}

#[test]
fn bad_values_are_told_with_their_line() {
    let value = |keyword, value: &str| Problem::Value { keyword, value: value.into() };
    for (text, line, expected) in [
        ("Port x", 1, value("Port", "x")),
        ("\nPort 0", 2, value("Port", "0")),
        ("#\n\nport 65536", 3, value("Port", "65536")),
        ("Port -1", 1, value("Port", "-1")),
        ("Port", 1, Problem::NoArgument("Port")),
        ("Port # 22", 1, Problem::NoArgument("Port")),
        ("Port 1 2", 1, Problem::OneArgument("Port")),
        ("User \"\"", 1, Problem::NoArgument("User")),
        ("User \"a", 1, Problem::OpenQuote),
        ("Host", 1, Problem::NoArgument("Host")),
        ("Host \"a", 1, Problem::OpenQuote),
        ("Match 'a", 1, Problem::OpenQuote),
        ("IdentitiesOnly maybe", 1, value("IdentitiesOnly", "maybe")),
        ("HostName %u", 1, value("HostName", "%u")),
        ("HostName a\u{7}", 1, value("HostName", "a\\x07")),
        ("IdentityAgent $", 1, value("IdentityAgent", "$")),
        ("IdentityAgent $a-b", 1, value("IdentityAgent", "$a-b")),
        ("ProxyJump", 1, Problem::NoArgument("ProxyJump")),
        ("Include", 1, Problem::NoArgument("Include")),
    ] {
        assert_eq!(problem(text), (line, expected), "{text:?}");
    }
    assert_eq!(
        try_resolve("web", "\nPort x").unwrap_err().to_string(),
        "config:2: Port can't be \"x\""
    );
    let bytes = ConfigFile { name: "config".into(), bytes: b"User \xff".to_vec() };
    let error = resolve("web", &[bytes], &mut |_, _| Ok(vec![])).unwrap_err();
    assert_eq!(error.problem, value("User", "\\xff"));
}

#[test]
fn mistakes_in_blocks_of_other_hosts_are_theirs() {
    assert_eq!(settings("web", "Host db\nPort x\nUser \"\nHost web\nPort 1").port, Some(1));
}

#[test]
fn the_boundaries_of_a_port() {
    assert_eq!(settings("web", "Port 1").port, Some(1));
    assert_eq!(settings("web", "Port 65535").port, Some(65535));
}

#[test]
fn includes_are_read_where_they_stand() {
    let web = with_includes(&[
        ("config", "User a\nInclude one,two\nPort 3\nHostName last\n"),
        ("one", "User b\nPort 1\nHost db\n"),
        // The block of `one` ends with it.
        ("two", "Port 2\nHostName two\n"),
    ])
    .unwrap();
    assert_eq!(web.user.as_deref(), Some("a"));
    assert_eq!((web.port, web.host_name.as_deref()), (Some(1), Some("two")));
}

#[test]
fn an_include_within_a_block_is_read_for_that_block_only() {
    let files = |block: &'static str| {
        [("config", block), ("x", "User x\nHost web\nPort 5\n"), ("y", "Host db\n")]
    };
    assert_eq!(with_includes(&files("Host db\nInclude x\n")).unwrap(), HostSettings::default());
    let web = with_includes(&files("Host web\nInclude x\nInclude y\nHostName h\n")).unwrap();
    assert_eq!((web.user.as_deref(), web.port), (Some("x"), Some(5)));
    assert_eq!(web.host_name.as_deref(), Some("h"), "the block goes on after its include");
}

#[test]
fn errors_in_an_include_name_that_file() {
    let error = with_includes(&[("config", "Include x"), ("x", "\nPort y")]).unwrap_err();
    assert_eq!(error.place, Place { file: "x".into(), line: 2 });
    let error = with_includes(&[("config", "\nInclude broken")]).unwrap_err();
    assert_eq!(error.to_string(), "config:2: permission denied");
    assert_eq!(with_includes(&[("config", "Include none")]).unwrap(), HostSettings::default());
}

#[test]
fn the_depth_of_includes_is_bounded() {
    let chain = |depth: usize| {
        let first = file("0", "Include 1\n");
        resolve("web", &[first], &mut |argument, _| {
            let level: usize = argument.parse().unwrap();
            let text =
                if level < depth { format!("Include {}", level + 1) } else { "User u".into() };
            Ok(vec![file(argument, &text)])
        })
    };
    assert_eq!(chain(SSH_CONFIG_DEPTH_MAX).unwrap().user.as_deref(), Some("u"));
    assert_eq!(chain(SSH_CONFIG_DEPTH_MAX + 1).unwrap_err().problem, Problem::TooDeep);
}

#[test]
fn the_number_of_included_files_is_bounded() {
    let wide = |count: usize| {
        resolve("web", &[file("config", "Include *")], &mut |_, _| {
            Ok((0..count).map(|index| file(&index.to_string(), "")).collect())
        })
    };
    assert!(wide(SSH_CONFIG_FILES_MAX).is_ok());
    assert_eq!(wide(SSH_CONFIG_FILES_MAX + 1).unwrap_err().problem, Problem::TooManyFiles);
    // A file that includes itself twice would be read 2¹⁶ times within the depth limit.
    let mut loads = 0;
    let error = resolve("web", &[file("config", "Include x")], &mut |_, _| {
        loads += 1;
        Ok(vec![file("x", "Include x\nInclude x\n")])
    })
    .unwrap_err();
    assert_eq!(error.problem, Problem::TooDeep);
    assert!(loads <= SSH_CONFIG_FILES_MAX);
}

#[test]
fn sizes_are_bounded() {
    let sized = |bytes: usize| {
        let config = ConfigFile { name: "config".into(), bytes: vec![b'#'; bytes] };
        resolve("web", &[config], &mut |_, _| Ok(vec![])).map_err(|error| error.problem)
    };
    assert!(sized(SSH_CONFIG_BYTES_MAX).is_ok());
    assert_eq!(sized(SSH_CONFIG_BYTES_MAX + 1), Err(Problem::TooLarge));

    let identities = |count: usize| {
        let text: String = (0..count).map(|index| format!("IdentityFile {index}\n")).collect();
        try_resolve("web", &text).map_err(|error| error.problem)
    };
    assert!(identities(IDENTITY_FILES_MAX).is_ok());
    let too_many = Err(Problem::TooManyFilesOfKeys("IdentityFile"));
    assert_eq!(identities(IDENTITY_FILES_MAX + 1), too_many);
}

#[test]
fn several_files_are_read_in_order() {
    let files = [file("user", "Host web\nPort 1\n"), file("system", "Port 2\nUser s\n")];
    let web = resolve("web", &files, &mut |_, _| Ok(vec![])).unwrap();
    assert_eq!((web.port, web.user.as_deref()), (Some(1), Some("s")));
}

fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("Host ".to_owned()),
        Just("Match ".to_owned()),
        Just("all".to_owned()),
        Just("Include x".to_owned()),
        Just("Port ".to_owned()),
        Just("HostName ".to_owned()),
        Just("%h".to_owned()),
        Just("web".to_owned()),
        Just("\"".to_owned()),
        Just("=".to_owned()),
        Just("\n".to_owned()),
        Just("!".to_owned()),
        Just("*".to_owned()),
        Just("#".to_owned()),
        Just("22".to_owned()),
        ".{0,3}",
    ]
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let config = ConfigFile { name: "config".into(), bytes: bytes.clone() };
        if let Err(error) = resolve("web", &[config], &mut |_, _| Ok(vec![])) {
            prop_assert!(error.place.line <= text::lines(&bytes).count());
        }
    }

    #[test]
    fn a_block_for_another_host_changes_nothing(
        pieces in proptest::collection::vec(piece(), 0..20)
    ) {
        let text = pieces.concat();
        let mut load = |_: &str, _: &str| Ok(vec![file("x", "User included\n")]);
        let plain = resolve("web", &[file("config", &text)], &mut load);
        let blocked = format!("Host other\nUser no\nPort 99\nHost *\n{text}");
        let shifted = resolve("web", &[file("config", &blocked)], &mut load);
        match (plain, shifted) {
            (Ok(plain), Ok(mut shifted)) => {
                let places = shifted.places.values_mut().filter(|place| place.file == "config");
                for place in shifted.skipped_matches.iter_mut().chain(places) {
                    place.line -= 4;
                }
                prop_assert_eq!(plain, shifted);
            }
            (Err(plain), Err(shifted)) => prop_assert_eq!(plain.problem, shifted.problem),
            (plain, shifted) => prop_assert!(false, "{:?} {:?}", plain, shifted),
        }
    }
}
