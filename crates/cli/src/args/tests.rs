//! What the command line means: where options may stand, and what is refused.

use clap::CommandFactory as _;

use super::*;

fn parse(line: &[&str]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("afar").chain(line.iter().copied()))
}

fn run(line: &[&str]) -> RunArgs {
    let line: Vec<&str> = std::iter::once("run").chain(line.iter().copied()).collect();
    match parse(&line).unwrap().command {
        Command::Run(args) => *args,
        other => panic!("{other:?}"),
    }
}

fn words(argv: &[OsString]) -> Vec<&str> {
    argv.iter().map(|word| word.to_str().unwrap()).collect()
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn options_stand_before_and_after_the_target() {
    for line in [
        &["-q", "--cwd", "/tmp", "host", "ls", "-l"][..],
        &["host", "-q", "--cwd", "/tmp", "ls", "-l"],
        &["-q", "host", "--cwd=/tmp", "--", "ls", "-l"],
        &["host", "-q", "--cwd", "/tmp", "--", "ls", "-l"],
    ] {
        let args = run(line);
        assert_eq!(args.target, "host", "{line:?}");
        assert_eq!(args.cwd.as_deref(), Some("/tmp".as_ref()), "{line:?}");
        assert_eq!(args.connect.verbosity(), Verbosity::Quiet, "{line:?}");
        assert_eq!(words(&args.argv), ["ls", "-l"], "{line:?}");
    }
}

#[test]
fn from_the_program_on_everything_is_the_programs() {
    let args = run(&["host", "prog", "-q", "--json", "-c", "x", "--", "-h", "--help", ""]);
    assert_eq!(words(&args.argv), ["prog", "-q", "--json", "-c", "x", "--", "-h", "--help", ""]);
    assert!(!args.json);
    assert!(args.command.script.is_none());
}

#[test]
fn only_the_first_dashes_are_afars() {
    assert_eq!(words(&run(&["host", "--", "--", "x"]).argv), ["--", "x"]);
    assert_eq!(words(&run(&["host", "--", "-x", "--json"]).argv), ["-x", "--json"]);
    assert_eq!(words(&run(&["--", "host", "ls", "-l"]).argv), ["ls", "-l"]);
}

#[test]
fn a_script_stands_in_for_the_program() {
    let args = run(&["host", "-c", "ls | wc"]);
    assert_eq!(args.command.script.as_deref(), Some("ls | wc".as_ref()));
    assert!(args.argv.is_empty());
    assert_eq!(run(&["-c", "-x", "host"]).command.script.as_deref(), Some("-x".as_ref()));
    for line in [&["run", "host", "-c", "x", "ls"][..], &["run", "host"], &["run"]] {
        assert!(parse(line).is_err(), "{line:?}");
    }
}

#[test]
fn an_unknown_option_is_an_error_and_no_program() {
    for line in [&["run", "host", "-Z", "ls"][..], &["run", "--fanout", "3", "host", "ls"]] {
        assert!(parse(line).is_err(), "{line:?}");
    }
}

#[test]
fn arguments_need_not_be_utf_8() {
    use std::os::unix::ffi::OsStringExt as _;
    let bad = OsString::from_vec(b"a\xff".to_vec());
    let line = ["afar", "run", "host", "prog"].map(OsString::from).into_iter().chain([bad.clone()]);
    let Command::Run(args) = Cli::try_parse_from(line).unwrap().command else { panic!("not run") };
    assert_eq!(args.argv.last(), Some(&bad));
}

#[test]
fn variables_have_a_name_and_any_value() {
    let args = run(&["-e", "A=b=c", "--env", "E=", "host", "env"]);
    let expected = [("A", "b=c"), ("E", "")]
        .map(|(name, value)| Variable { name: name.into(), value: value.into() });
    assert_eq!(args.env, expected);
    for bad in ["A", "=b", ""] {
        assert!(parse(&["run", "-e", bad, "host", "env"]).is_err(), "{bad:?}");
    }
}

#[test]
fn times_ports_and_ids_are_checked() {
    let args = run(&["--timeout", "1.5s", "--kill-after", "1m", "--id", "a.b-1", "host", "x"]);
    assert_eq!(args.timeout, Some(Duration::from_millis(1500)));
    assert_eq!(args.kill_after, Some(Duration::from_secs(60)));
    assert_eq!(args.id.unwrap().as_str(), "a.b-1");
    for line in [["--timeout", "0"], ["--timeout", "x"], ["--id", "a/b"], ["-p", "0"], ["-p", "x"]]
    {
        let line: Vec<&str> = ["run"].into_iter().chain(line).chain(["host", "true"]).collect();
        assert!(parse(&line).is_err(), "{line:?}");
    }
}

#[test]
fn the_demo_takes_a_command_with_and_without_dashes() {
    for line in [&["demo", "--", "sh", "-c", "x"][..], &["demo", "sh", "-c", "x"]] {
        let Command::Demo(args) = parse(line).unwrap().command else { panic!("not demo") };
        assert_eq!(words(&args.argv), ["sh", "-c", "x"]);
    }
    let Command::Demo(args) = parse(&["demo", "-c", "x"]).unwrap().command else {
        panic!("not demo")
    };
    assert_eq!(args.command.script.as_deref(), Some("x".as_ref()));
}

#[test]
fn the_server_listens_on_this_machine_only_unless_told() {
    let Command::Serve(args) = parse(&["serve"]).unwrap().command else { panic!("not serve") };
    // What is not given is taken from the configuration, and else by default.
    assert!(args.listen.is_empty() && args.authorized_keys.is_empty());
    assert_eq!(crate::settings::LISTEN, "127.0.0.1:2327");
    assert_eq!(crate::settings::AUTHORIZED_KEYS, "%h/.ssh/authorized_keys");
    let line = ["serve", "--listen", "0.0.0.0:1", "--listen", "[::1]:0"];
    let Command::Serve(args) = parse(&line).unwrap().command else { panic!("not serve") };
    assert_eq!(args.listen, ["0.0.0.0:1", "[::1]:0"]);
}

#[test]
fn what_is_hidden_is_not_in_the_help() {
    let help = Cli::command().render_long_help().to_string();
    assert!(!help.contains("supervisor"), "{help}");
    for command in ["run", "demo", "serve", "keys", "trust", "completions", "man"] {
        assert!(help.contains(command), "{command}");
    }
}
