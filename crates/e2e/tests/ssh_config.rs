//! What afar takes from an ssh configuration, held against what ssh itself takes from it.
#![cfg(test)]

use std::path::{Path, PathBuf};

use afar_e2e::{Home, Run};
use serde_json::Value;

/// A configuration, and the hosts to ask about. `DIR` is a directory with the files of the case.
struct Case {
    config: &'static str,
    included: &'static [(&'static str, &'static str)],
    hosts: &'static [&'static str],
}

const fn plain(config: &'static str, hosts: &'static [&'static str]) -> Case {
    Case { config, included: &[], hosts }
}

const CASES: &[Case] = &[
    plain("", &["web", "ann@web", "WEB.Example.COM"]),
    plain(
        "Host web\n HostName %h.Example.com\n User ann\n Port 2222\n HostKeyAlias a-web\n",
        &["web", "bob@web", "db"],
    ),
    plain(
        "Host web\n IdentityFile ~/.ssh/a\n IdentityFile /k/%h-%n-%r-%u-%p-%i-%%-%d\nHost *\n \
         Port 22\n User ann\n HostName real-%h\n IdentityFile ~/.ssh/b\n",
        &["web", "db", "bob@web"],
    ),
    plain("IdentityFile \"~/.ssh/with blank\"\nIdentityFile none\n", &["web"]),
    plain("IdentitiesOnly yes\nIdentityAgent /run/%h/%r.sock\nUser ann\n", &["web"]),
    plain("UserKnownHostsFile ~/k1 /k/%h \"/a b\"\n", &["web"]),
    plain(
        "Host *.example.com !bad.example.com\n User in\nHost ?eb\n User three\nHost * !db\n \
         User any\nHost \"db\" x\n User quoted\n",
        &["a.example.com", "bad.example.com", "web", "db", "x"],
    ),
    plain("host=web\n\tuser = \"ann\"\nHOST db\nUSER bob # not carl\n", &["web", "db"]),
    plain("User first\nHost web\n User second\n HostName one\n HostName two\n", &["web"]),
    plain("Host web # db\n User ann\nHost db\n User bob\n", &["web", "db"]),
    plain("Match all\n User ann\nHost web\n User bob\n", &["web"]),
    Case {
        config: "Include DIR/first* DIR/missing\nHost web\n Include DIR/inner\n HostName after\n\
                 Host *\n User last\n",
        included: &[
            ("first2", "Host web\n Port 2\n User two\n IdentityFile /two\n"),
            ("first1", "Host web\n Port 1\n IdentityFile /one-%p\n"),
            ("inner", "IdentityFile /inner\nHost db\n User never\n"),
        ],
        hosts: &["web", "db"],
    },
    Case {
        config: "Include DIR/a\n",
        included: &[
            ("a", "Include DIR/b\nUser a\n"),
            ("b", "Host web\n Include DIR/c\n"),
            ("c", "User c\n"),
        ],
        hosts: &["web", "db"],
    },
];

/// A home whose `HOME` is that of the user database, as ssh takes it.
struct Asked {
    home: Home,
    real_home: PathBuf,
    config: PathBuf,
}

impl Asked {
    fn new(case: &Case) -> Self {
        let home = Home::new();
        let directory = home.file("home").to_str().unwrap().to_owned();
        let place = |text: &str| text.replace("DIR", &directory);
        for (name, text) in case.included {
            home.write(Path::new("home").join(name), place(text));
        }
        let config = home.write("ssh_config", place(case.config));
        let real_home = afar_sys::users::current_user().unwrap().unwrap().home;
        Self { home, real_home, config }
    }

    fn run(&self, program: &Path, words: &[&str]) -> Run {
        let run = self.home.program(program, words).env("HOME", &self.real_home);
        run.arg("-F").arg(&self.config)
    }

    /// `ssh -G`, as keyword and value.
    fn ssh(&self, host: &str) -> Vec<(String, String)> {
        let output = self.run(Path::new("ssh"), &["-G"]).arg(host).output();
        let lines = output.success().text().lines();
        let split = lines.filter_map(|line| line.split_once(' '));
        split.map(|(keyword, value)| (keyword.to_owned(), value.to_owned())).collect()
    }

    /// The identity files that ssh would use, expanded: it tells them only on its way.
    fn ssh_identities(&self, host: &str) -> Vec<String> {
        let words = ["-v", "-n", "-T", "-o", "ProxyCommand=true"];
        let output = self.run(Path::new("ssh"), &words).arg(host).arg("x").output();
        let lines = output.error_text().lines().map(str::to_owned).collect::<Vec<_>>();
        let files = lines.iter().filter_map(|line| {
            let (path, _) = line.strip_prefix("debug1: identity file ")?.rsplit_once(" type ")?;
            (!path.ends_with("-cert")).then(|| path.to_owned())
        });
        files.collect()
    }

    fn afar(&self, host: &str) -> Vec<Value> {
        let output = self.run(afar_e2e::afar(), &["config", "--json"]).arg(host).output();
        let lines = output.success().text().lines();
        lines.map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn words(value: &Value) -> Vec<String> {
    match value {
        Value::Array(items) => items.iter().map(|item| item.as_str().unwrap().to_owned()).collect(),
        value => vec![value.as_str().unwrap().to_owned()],
    }
}

#[test]
fn afar_takes_the_same_from_it_as_ssh() {
    for (case, host) in
        CASES.iter().flat_map(|case| case.hosts.iter().map(move |host| (case, *host)))
    {
        let asked = Asked::new(case);
        let (ssh, afar) = (asked.ssh(host), asked.afar(host));
        let of_ssh = |keyword: &str| {
            ssh.iter().find(|(name, _)| name == keyword).map(|(_, value)| value.clone())
        };
        let row = |key: &str| afar.iter().find(|row| row["key"] == key);
        let of_afar = |key: &str| row(key).map(|row| words(&row["value"]).join(" "));
        let shown = format!("{host}\n{}", case.config);
        assert_eq!(of_afar("host_name"), of_ssh("hostname"), "{shown}");
        assert_eq!(of_afar("user"), of_ssh("user"), "{shown}");
        assert_eq!(of_afar("host_key_alias"), of_ssh("hostkeyalias"), "{shown}");
        let only = row("identities_only").is_some_and(|row| row["value"] == true);
        assert_eq!(only, of_ssh("identitiesonly").as_deref() == Some("yes"), "{shown}");
        if let Some(agent) = of_ssh("identityagent") {
            assert_eq!(of_afar("identity_agent"), Some(agent), "{shown}");
        }
        let identities = row("identities").unwrap();
        if identities["source"] == "ssh_config" {
            assert_eq!(words(&identities["value"]), asked.ssh_identities(host), "{shown}");
        } else {
            let first = asked.ssh_identities(host).into_iter().next();
            assert!(first.is_some_and(|path| path.ends_with("/.ssh/id_rsa")), "{shown}");
        }
        let known = row("known_hosts").unwrap();
        if known["source"] == "ssh_config" {
            assert_eq!(of_afar("known_hosts"), of_ssh("userknownhostsfile"), "{shown}");
        }
    }
}

#[test]
fn a_match_block_is_never_evaluated_and_that_is_said() {
    // ssh would execute this, and apply the block.
    let config = "Match host web exec \"touch DIR/executed\"\n User evil\nHost web\n User ann\n";
    let asked = Asked::new(&plain(config, &[]));
    let rows = asked.afar("web");
    let user = rows.iter().find(|row| row["key"] == "user").unwrap();
    assert_eq!((&user["value"], &user["line"]), (&"ann".into(), &4.into()));
    assert!(!asked.home.file("home/executed").exists());
    let output = asked.run(afar_e2e::afar(), &["config", "-v"]).arg("web").output();
    let place = format!("{}:1", asked.config.display());
    assert!(
        output.error_text().contains(&place) && output.error_text().contains("Match"),
        "{output:?}"
    );
    let quiet = asked.run(afar_e2e::afar(), &["config"]).arg("web").output();
    assert_eq!(quiet.error_text(), "");
}
