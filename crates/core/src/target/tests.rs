//! What is a target, what is none, and that each one reads back as itself.

use proptest::prelude::*;

use super::*;

fn destination(user: Option<&str>, host: &str, port: Option<u16>) -> Destination {
    Destination { user: user.map(Into::into), host: host.into(), port }
}

fn problem(text: &str) -> Problem {
    Target::parse(text).unwrap_err().problem
}

#[test]
fn hosts_with_users_and_ports() {
    for (text, user, host, port) in [
        ("web", None, "web", None),
        ("web:2327", None, "web", Some(2327)),
        ("alice@web", Some("alice"), "web", None),
        ("alice@web.example.com:1", Some("alice"), "web.example.com", Some(1)),
        ("CORP\\alice@web:65535", Some("CORP\\alice"), "web", Some(65535)),
        ("alice@corp.example@web", Some("alice@corp.example"), "web", None),
        ("192.0.2.1:22", None, "192.0.2.1", Some(22)),
        ("::1", None, "::1", None),
        ("2001:db8::1", None, "2001:db8::1", None),
        ("[::1]", None, "::1", None),
        ("[::1]:2327", None, "::1", Some(2327)),
        ("alice@[fe80::1%eth0]:2327", Some("alice"), "fe80::1%eth0", Some(2327)),
        ("afar://web", None, "web", None),
        ("AFAR://alice@web:1/", Some("alice"), "web", Some(1)),
        ("afar://[::1]:2327", None, "::1", Some(2327)),
        ("afar://local", None, "local", None),
        ("afar://local:1", None, "local", Some(1)),
        ("localhost", None, "localhost", None),
        ("local.example", None, "local.example", None),
    ] {
        let expected = Target::Host(destination(user, host, port));
        assert_eq!(Target::parse(text), Ok(expected.clone()), "{text}");
        assert_eq!(Target::parse_bytes(text.as_bytes()), Ok(expected), "{text}");
    }
}

#[test]
fn this_machine_and_ssh() {
    assert_eq!(Target::parse("local"), Ok(Target::Local));
    assert_eq!(
        Target::parse("ssh://alice@web:22"),
        Ok(Target::Ssh(destination(Some("alice"), "web", Some(22))))
    );
    assert_eq!(Target::parse("ssh://local"), Ok(Target::Ssh(destination(None, "local", None))));
}

#[test]
fn sets_are_told_from_hosts() {
    for text in [
        "web[01-40,50]",
        "web1,web2",
        "@group",
        "alice@web[1-2]:2327",
        "[1-3]",
        "[::1],web",
        "a,local",
        "alice@[::1]:1,b",
        "[1-2]web",
    ] {
        assert_eq!(Target::parse(text), Ok(Target::Set(text.into())), "{text}");
    }
}

#[test]
fn what_is_no_target_is_told_why() {
    let s = |text: &str| text.to_owned();
    for (text, expected) in [
        ("", Problem::Empty),
        ("afar://", Problem::Empty),
        ("http://web", Problem::Scheme(s("http"))),
        ("://web", Problem::Scheme(s(""))),
        ("alice@local", Problem::LocalWithMore),
        ("local:2327", Problem::LocalWithMore),
        ("web/abc", Problem::JobForHost),
        ("local/abc", Problem::JobForHost),
        ("afar://web/abc", Problem::JobForHost),
        ("alice@@web", Problem::User(s("alice@"))),
        ("-oProxy@web", Problem::User(s("-oProxy"))),
        ("a b@web", Problem::User(s("a b"))),
        ("$(id)@web", Problem::User(s("$(id)"))),
        ("alice\\@web", Problem::User(s("alice\\\\"))),
        ("alice@", Problem::Host(s(""))),
        ("-web", Problem::Host(s("-web"))),
        ("we b", Problem::Host(s("we b"))),
        ("web;ls", Problem::Host(s("web;ls"))),
        ("wéb", Problem::Host(s("wéb"))),
        ("\u{1b}[2Jweb", Problem::Host(s("\\x1b[2Jweb"))),
        (":22", Problem::Host(s(""))),
        ("web:", Problem::Port(s(""))),
        ("web:0", Problem::Port(s("0"))),
        ("web:65536", Problem::Port(s("65536"))),
        ("web:+22", Problem::Port(s("+22"))),
        ("web:ssh", Problem::Port(s("ssh"))),
        ("[::1]x", Problem::Port(s("x"))),
        ("[::1]:", Problem::Port(s(""))),
        ("a:b:c", Problem::Colons),
        ("::1:", Problem::Colons),
        ("[::1", Problem::Brackets(s("::1"))),
        ("[:::1]", Problem::Brackets(s(":::1"))),
        ("afar://[web]", Problem::Brackets(s("web"))),
        ("[fe80::1%]", Problem::Brackets(s("fe80::1%"))),
        ("[fe80::1%a b]", Problem::Brackets(s("fe80::1%a b"))),
        ("afar://web[1-2]", Problem::Host(s("web[1-2]"))),
    ] {
        assert_eq!(problem(text), expected, "{text:?}");
    }
    assert_eq!(
        Target::parse("web:0").unwrap_err().to_string(),
        "target \"web:0\": the port \"0\" is not a number from 1 to 65535"
    );
    assert_eq!(Target::parse_bytes(b"w\xff").unwrap_err().problem, Problem::NotUtf8);
}

#[test]
fn errors_are_one_line_without_control_characters() {
    for text in ["\u{1b}]0;x\u{7}", "a\nb", "\u{202e}", "http\n://x", &"x".repeat(300)] {
        let error = Target::parse(text).unwrap_err().to_string();
        assert!(!error.chars().any(|c| c.is_control() || c == '\u{202e}'), "{error}");
        assert!(error.len() < 400);
    }
}

#[test]
fn jobs_on_targets() {
    for (text, target, job) in [
        ("web/abc", "web", "abc"),
        ("alice@web:2327/a.b-c_1", "alice@web:2327", "a.b-c_1"),
        ("local/7", "local", "7"),
        ("[::1]:1/x", "[::1]:1", "x"),
        ("afar://web/x", "afar://web", "x"),
        ("afar://local/x", "afar://local", "x"),
        ("ssh://web/x", "ssh://web", "x"),
    ] {
        let parsed = JobTarget::parse(text).unwrap();
        assert_eq!(parsed.target, Target::parse(target).unwrap());
        assert_eq!(parsed.job, job);
        assert_eq!(JobTarget::parse(&parsed.to_string()), Ok(parsed), "{text}");
    }
    let problem = |text: &str| JobTarget::parse(text).unwrap_err().problem;
    assert_eq!(problem("web"), Problem::HostForJob);
    assert_eq!(problem("web/"), Problem::HostForJob);
    assert_eq!(problem("afar://web"), Problem::HostForJob);
    assert_eq!(problem("/x"), Problem::Empty);
    assert_eq!(problem(""), Problem::Empty);
    assert_eq!(problem("web/a b"), Problem::Job("a b".into()));
    assert_eq!(problem("web[1-2]/x"), Problem::SetForHost);
    assert_eq!(problem("a/b/c"), Problem::JobForHost);
    assert!(JobTarget::parse(&format!("web/{}", "x".repeat(64))).is_ok());
    assert_eq!(JobTarget::parse_bytes(b"web/x"), JobTarget::parse("web/x"));
    assert_eq!(JobTarget::parse_bytes(b"web/\xff").unwrap_err().problem, Problem::NotUtf8);
    assert!(matches!(problem(&format!("web/{}", "x".repeat(65))), Problem::Job(_)));
}

#[test]
fn lengths_are_bounded() {
    let host = "h".repeat(HOST_BYTES_MAX);
    assert!(Target::parse(&host).is_ok());
    assert!(matches!(problem(&format!("{host}h")), Problem::Host(_)));
    let user = "u".repeat(USER_BYTES_MAX);
    assert!(Target::parse(&format!("{user}@h")).is_ok());
    assert!(matches!(problem(&format!("{user}u@h")), Problem::User(_)));
    let set = format!("a,{}", "b".repeat(HOST_SET_BYTES_MAX - 2));
    assert_eq!(Target::parse(&set), Ok(Target::Set(set.clone())));
    assert_eq!(problem(&format!("{set}b")), Problem::TooLong);
}

proptest! {
    #[test]
    fn a_target_reads_back_as_itself(
        user in proptest::option::of("[a-z_][a-z0-9_.\\\\-]{0,8}[a-z0-9]"),
        host in prop_oneof!["[a-z0-9][a-z0-9.-]{0,10}", Just("local".to_owned()),
            any::<Ipv6Addr>().prop_map(|address| address.to_string())],
        port in proptest::option::of(1_u16..),
        ssh in any::<bool>(),
    ) {
        let destination = Destination { user, host, port };
        let target = if ssh { Target::Ssh(destination) } else { Target::Host(destination) };
        prop_assert_eq!(Target::parse(&target.to_string()), Ok(target));
    }

    #[test]
    fn whatever_is_a_target_reads_back_as_itself(text in "[a-c:@/\\[\\],.0-9%-]{0,12}|.{0,12}") {
        if let Ok(target) = Target::parse(&text) {
            prop_assert_eq!(Target::parse(&target.to_string()), Ok(target));
        }
        if let Ok(job) = JobTarget::parse(&text) {
            prop_assert_eq!(JobTarget::parse(&job.to_string()), Ok(job));
        }
    }
}
