//! `config.toml`, what goes before it, and what a server does when it changes.
#![cfg(test)]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use afar_e2e::{Home, Host, Output, Run};
use serde_json::Value;

/// Writes the user's own file.
fn configure(home: &Home, text: &str) -> PathBuf {
    fs::create_dir_all(home.file("home/config/afar")).unwrap();
    home.write("home/config/afar/config.toml", text)
}

/// The rows of `afar config … --json`, by their key.
fn rows(home: &Home, words: &[&str]) -> Vec<Value> {
    let output = home.afar(["config", "--json"].iter().chain(words)).output();
    let lines = output.success().text().lines();
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[track_caller]
fn row<'a>(rows: &'a [Value], key: &str) -> &'a Value {
    let found = rows.iter().find(|row| row["key"] == key);
    found.unwrap_or_else(|| panic!("{key} is not in {rows:#?}"))
}

/// One line, and nothing was started.
#[track_caller]
fn assert_refused(output: &Output, words: &[&str]) {
    output.expect_code(255);
    let said = output.error_text();
    assert_eq!(said.lines().count(), 1, "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said:?}");
    }
}

#[test]
fn a_host_is_reached_as_its_section_says() {
    let host = Host::start();
    configure(
        &host,
        &format!(
            "[host.\"far*\"]\nport = {}\nuser = \"{}\"\nidentities = [\"{}\"]\n\
             known_hosts = \"{}\"\nenv = {{ ONE = \"1\", TWO = \"two words\" }}\n\
             [defaults]\nport = 1\nenv.THREE = \"3\"\n",
            host.address().port(),
            host.user(),
            host.key().display(),
            host.known_hosts().display(),
        ),
    );
    let config = host.write("ssh_config", "Host far1\n HostName 127.0.0.1\n User nobody-else\n");
    let run = |words: &[&str]| {
        let run = host.afar(["run", "-F"]).arg(&config).arg("far1");
        words.iter().fold(run, Run::arg).arg("-c").arg("echo $ONE,$TWO,$THREE").output()
    };
    assert_eq!(run(&[]).success().text(), "1,two words,3\n");
    // What the command line says goes before it.
    assert_eq!(run(&["-e", "TWO=2"]).success().text(), "1,2,3\n");
    run(&["-p", "1"]).expect_code(255);
}

#[test]
fn it_is_shown_what_is_in_effect_and_why() {
    let home = Home::new();
    let path = configure(
        &home,
        "[defaults]\nconnect_timeout = \"1500ms\"\nport = 1\n\n[host.\"web\"]\nport = 2400\n\
         env.A = \"x\"\n",
    );
    let ssh = home.write(
        "home/.ssh/config",
        "Host web\n HostName web.example\n User deploy\n IdentityFile ~/.ssh/deploy\n",
    );
    let all = rows(&home, &["web"]);
    let of = |key: &str| {
        let row = row(&all, key);
        let place = format!("{}:{}", row["file"].as_str().unwrap_or_default(), row["line"]);
        (row["value"].clone(), row["source"].clone(), place)
    };
    let in_config = |line: u32| format!("{}:{line}", path.display());
    let in_ssh = |line: u32| format!("{}:{line}", ssh.display());
    assert_eq!(of("host_name"), ("web.example".into(), "ssh_config".into(), in_ssh(2)));
    assert_eq!(of("user"), ("deploy".into(), "ssh_config".into(), in_ssh(3)));
    assert_eq!(of("port"), (2400.into(), "config".into(), in_config(6)));
    assert_eq!(of("connect_timeout"), ("1500ms".into(), "config".into(), in_config(2)));
    assert_eq!(of("env.A"), ("x".into(), "config".into(), in_config(7)));
    assert_eq!(of("accept_new"), (false.into(), "default".into(), ":null".into()));
    let identity = home.file("home/.ssh/deploy").to_str().unwrap().to_owned();
    assert_eq!(of("identities").0, Value::from(vec![identity]));
    assert_eq!(row(&all, "user")["name"], "User");

    // Options, variables and the target itself go before all that.
    let output = home
        .afar(["config", "--json", "-l", "ann", "--accept-new", "web:7"])
        .env("AFAR_SSH", "/opt/ssh")
        .output();
    let lines = output.success().text().lines();
    let all: Vec<Value> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
    for (key, value, source, name) in [
        ("port", Value::from(7), "target", Value::Null),
        ("user", "ann".into(), "option", "-l".into()),
        ("accept_new", true.into(), "option", "--accept-new".into()),
        ("ssh", "/opt/ssh".into(), "variable", "AFAR_SSH".into()),
    ] {
        let row = row(&all, key);
        assert_eq!((&row["value"], &row["source"], &row["name"]), (&value, &source.into(), &name));
    }

    // For a person, a line each that could stand in the file.
    let output = home.afar(["config", "web"]).output();
    let text = output.success().text();
    let line = text.lines().find(|line| line.starts_with("port")).unwrap();
    assert!(line.starts_with("port = 2400 ") && line.ends_with(&in_config(6)), "{line}");
    // Without a target what counts for every host; ssh keeps its own counsel.
    assert_eq!(row(&rows(&home, &[]), "port")["value"], 1);
    let by_ssh = rows(&home, &["ssh://me@web"]);
    assert_eq!(row(&by_ssh, "port")["value"], "ssh's");
    assert_eq!(
        (&row(&by_ssh, "user")["value"], &row(&by_ssh, "user")["source"]),
        (&"me".into(), &"target".into())
    );
    assert_eq!(row(&by_ssh, "connect_timeout")["source"], "config");
}

#[test]
fn a_mistake_is_an_error_that_says_where_and_what_was_meant() {
    let home = Home::new();
    configure(&home, "[defaults]\nprot = 2400\n");
    let words = ["config.toml:2", "\"prot\"", "is \"port\" meant?"];
    assert_refused(&home.afar(["config"]).output(), &words);
    assert_refused(&home.afar(["run", "web", "true"]).output(), &words);
    assert_refused(&home.afar(["keys"]).output(), &words);
    assert_refused(&home.afar(["serve", "--listen", "127.0.0.1:0"]).output(), &words);
    configure(&home, "[defaults]\nport = \n");
    assert_refused(&home.afar(["run", "web", "true"]).output(), &["config.toml:2"]);
}

#[test]
fn fault_83_a_file_that_others_can_write_is_refused() {
    let home = Home::new();
    let path = configure(&home, "[defaults]\nport = 1\n");
    fs::set_permissions(&path, Permissions::from_mode(0o646)).unwrap();
    let words = ["can be written by others (mode 0646)", "not believed"];
    assert_refused(&home.afar(["run", "web", "true"]).output(), &words);
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    let directory = path.parent().unwrap();
    fs::set_permissions(directory, Permissions::from_mode(0o777)).unwrap();
    assert_refused(&home.afar(["serve", "--check"]).output(), &["can be written by others"]);
    fs::set_permissions(directory, Permissions::from_mode(0o755)).unwrap();
    home.afar(["serve", "--check"]).output().success();
}

#[test]
fn a_check_says_what_is_wrong_and_touches_nothing() {
    let home = Home::new();
    let key = home.make_key("host_key");
    let check = |text: &str| {
        let file = home.write("serve.toml", text);
        home.afar(["serve", "--check", "--config"]).arg(file).output()
    };
    let good = format!("[serve]\nlisten = [\"127.0.0.1\"]\nhost_keys = [\"{}\"]\n", key.display());
    let output = check(&good);
    assert_eq!((output.success().text(), output.error_text()), ("", ""));
    for (text, words) in [
        ("[serve]\nlistn = []\n", ["serve.toml:2", "is \"listen\" meant?"]),
        ("[serve]\nhost_keys = [\"/no/key\"]\n", ["/no/key", "No such file"]),
        ("[serve]\nlisten = [\"256.0.0.1:1\"]\n", ["cannot listen on", "256.0.0.1"]),
        ("[serve]\nauthorized_keys = [\"%x\"]\n", ["%x", "stands for nothing"]),
    ] {
        assert_refused(&check(text), &words);
    }
    let missing = home.afar(["serve", "--check", "--config", "/no/such.toml"]).output();
    assert_refused(&missing, &["/no/such.toml"]);
    assert!(!home.file("home/state").exists());
}

/// A host whose keys are where a configuration says.
struct Configured {
    host: Host,
    file: PathBuf,
}

impl Configured {
    fn start() -> Self {
        let home = Home::new();
        let file = home.write("serve.toml", "");
        let builder = Host::builder_in(home).configured(&file);
        Self { host: builder.start(), file }
    }

    fn write(&self, text: &str) {
        fs::write(&self.file, text).unwrap();
    }

    /// A configuration with this file of users' keys, and these lines.
    fn with(&self, name: &str, host_key: &Path, lines: &str) -> String {
        let (keys, host_key) = (self.host.file(name), host_key.display());
        let keys = keys.display();
        format!("[serve]\nauthorized_keys = [\"{keys}\"]\nhost_keys = [\"{host_key}\"]\n{lines}\n")
    }

    fn keys(&self, name: &str) -> String {
        self.with(name, &self.host.host_key(), "")
    }
}

#[test]
fn fault_80_a_malformed_configuration_leaves_the_old_one_in_effect() {
    let configured = Configured::start();
    let host = &configured.host;
    host.script("echo in").output().success();
    let mut running = host
        .script("echo ready; read line; echo $line")
        .stdin_from(afar_e2e::Source::Piped)
        .spawn();
    assert_eq!(running.line().as_deref(), Some("ready"));

    let broken = [
        "[serve]\nauthorised_keys = [\"/nowhere\"]\n".to_owned(),
        "[serve".to_owned(),
        configured.with("nobody", Path::new("/no/such/key"), ""),
        configured.with("nobody", &host.host_key(), "revoked_keys = \"/no/such/list\""),
    ];
    for text in &broken {
        configured.write(text);
        host.reload();
        host.script("echo in").output().success();
    }
    let log = host.log();
    assert_eq!(log.matches("the configuration stays as it was").count(), broken.len(), "{log}");
    assert!(log.contains("serve.toml:2"), "{log}");
    fs::remove_file(&configured.file).unwrap();
    host.reload();
    host.script("echo in").output().success();

    // One without a mistake is taken; whoever is in stays.
    configured.write(&configured.keys("nobody"));
    host.reload();
    host.script("echo in").output().expect_code(255);
    running.write(b"still here\n");
    assert_eq!(running.line().as_deref(), Some("still here"));
    running.close_stdin();
    running.wait().success();
    configured.write(&configured.keys("authorized_keys"));
    host.reload();
    host.script("echo in").output().success();
}

#[test]
fn another_host_key_is_proved_after_a_reload() {
    let configured = Configured::start();
    let host = &configured.host;
    host.script("true").output().success();
    let other = host.make_key("other_key");
    configured.write(&configured.with("authorized_keys", &other, ""));
    host.reload();
    // What can't be exchanged is said; this server was told its address on its command line.
    assert!(!host.log().contains("until a restart"), "{}", host.log());
    let classic = configured.with("authorized_keys", &other, "classic = [\"127.0.0.1:0\"]");
    configured.write(&classic);
    host.reload();
    assert!(host.log().contains("stay as they were until a restart"), "{}", host.log());
    let output = host.script("true").output();
    assert_refused(&output, &["host key"]);
    fs::remove_file(host.known_hosts()).unwrap();
    host.trust(host.address(), &other);
    host.script("true").output().success();
}
