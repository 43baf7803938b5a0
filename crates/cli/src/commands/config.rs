//! `afar config`: the settings that are in effect, and where each comes from.

use std::path::Path;
use std::time::Duration;

use afar_client::{CONNECT_TIMEOUT, Client, Error, ResolvedHost, Target};
use afar_core::config::{CLIENT_KEYS, KeyInfo, Placed, SERVE_KEYS};
use afar_core::escape::escape_for_terminal;
use serde_json::{Value, json};

use crate::args::ConfigArgs;
use crate::commands::parse_target;
use crate::console::{fail, say, write_stdout};
use crate::exit::Exit;
use crate::settings::{ConnectSettings, Source, server_config};

/// Prints a setting a line.
pub(crate) fn cmd_config(args: &ConfigArgs) -> Exit {
    let rows = if args.serve {
        match server_rows(args.file.as_deref()) {
            Ok(rows) => rows,
            Err(problem) => {
                say(&format!("config: {problem}"));
                return Exit::Failed;
            }
        }
    } else {
        match client_rows(args) {
            Ok(rows) => rows,
            Err(error) => return fail(&error),
        }
    };
    let lines: String = if args.json {
        rows.iter().map(|row| format!("{}\n", row.to_json())).collect()
    } else {
        text(&rows)
    };
    write_stdout(lines.as_bytes())
}

/// A setting.
#[derive(Debug)]
struct Row {
    key: String,
    /// `None` for a default that is more than a value.
    value: Option<Value>,
    /// That default in words.
    words: &'static str,
    source: Source,
}

impl Row {
    fn to_json(&self) -> Value {
        let (kind, name, place) = match &self.source {
            Source::Target => ("target", None, None),
            Source::Option(name) => ("option", Some(*name), None),
            Source::Variable(name) => ("variable", Some(*name), None),
            Source::Config(place) => ("config", None, Some(place)),
            Source::SshConfig(keyword, place) => ("ssh_config", Some(*keyword), Some(place)),
            Source::Default => ("default", None, None),
        };
        json!({
            "key": self.key,
            "value": self.value.clone().unwrap_or_else(|| self.words.into()),
            "source": kind,
            "name": name,
            "file": place.map(|place| &place.file),
            "line": place.map(|place| place.line),
        })
    }

    /// As it would stand in `config.toml`.
    fn setting(&self) -> String {
        match &self.value {
            Some(value) => format!("{} = {value}", self.key),
            None => format!("{}: {}", self.key, self.words),
        }
    }
}

/// Lines of one width, the source of each behind it as a comment.
fn text(rows: &[Row]) -> String {
    let settings: Vec<String> = rows.iter().map(Row::setting).collect();
    let width = settings.iter().map(|setting| setting.chars().count()).max().unwrap_or(0).min(60);
    let lines = rows.iter().zip(&settings).map(|(row, setting)| {
        // The file's name is what the user has typed, and escaped already where it was read.
        format!("{setting:width$}  # {}\n", row.source)
    });
    lines.collect()
}

/// The rows of `[defaults]` and `[host."…"]`, and of what only the ssh configuration knows.
fn client_rows(args: &ConfigArgs) -> Result<Vec<Row>, Error> {
    let target = args.target.as_deref().map(parse_target).transpose()?;
    let settings = ConnectSettings::settle(&args.connect, target.as_ref())?;
    let resolved = match &target {
        Some(target @ Target::Host(_)) => Some(settings.client().build().resolve(target)?),
        Some(Target::Set(_)) => {
            // The error of a command that takes one host.
            return Err(unresolvable(&settings.client().build(), target.as_ref()));
        }
        _ => None,
    };
    let named = match &target {
        Some(Target::Host(named) | Target::Ssh(named)) => Some(named),
        _ => None,
    };
    let mut rows = Rows {
        rows: Vec::new(),
        keys: CLIENT_KEYS,
        resolved: resolved.as_ref(),
        by_ssh: matches!(target, Some(Target::Ssh(_))),
    };
    let in_target = |value: Option<Value>| value.map(|value| (value, Source::Target));
    if let Some(host) = &resolved {
        let source = rows.ssh_config("HostName").unwrap_or(Source::Target);
        rows.push("host_name", Some(host.host_name.clone().into()), source);
    }
    let port_in_target = in_target(named.and_then(|named| named.port).map(Into::into));
    let user_in_target = in_target(named.and_then(|named| named.user.clone()).map(Into::into));
    let ConnectSettings { port, user, identities, known_hosts, .. } = &settings;
    rows.settle("port", port.as_ref(), port_in_target, None, |port| (*port).into());
    rows.settle("user", user.as_ref(), user_in_target, Some("User"), |user| user.clone().into());
    rows.settle("identities", identities.as_ref(), None, Some("IdentityFile"), |paths| {
        paths.iter().map(shown).collect::<Vec<_>>().into()
    });
    if let Some(host) = &resolved {
        if let Some(source) = rows.ssh_config("IdentitiesOnly") {
            rows.push("identities_only", Some(host.identities_only.into()), source);
        }
        let variable = host.agent.as_ref().map(|_| Source::Variable("SSH_AUTH_SOCK"));
        let source = rows.ssh_config("IdentityAgent").or(variable).unwrap_or(Source::Default);
        let agent = host.agent.as_deref().map_or(Value::from("none"), |path| shown(path).into());
        rows.push("identity_agent", Some(agent), source);
    }
    rows.settle("known_hosts", known_hosts.as_ref(), None, Some("UserKnownHostsFile"), |path| {
        shown(path).into()
    });
    if let (Some(host), Some(source)) = (&resolved, rows.ssh_config("HostKeyAlias")) {
        rows.push("host_key_alias", host.host_key_alias.clone().map(Into::into), source);
    }
    rows.settle("accept_new", settings.accept_new.as_ref(), None, None, |accept| (*accept).into());
    rows.settle("connect_timeout", settings.connect_timeout.as_ref(), None, None, |time| {
        duration(*time).into()
    });
    rows.settle("ssh_config", settings.ssh_config.as_ref(), None, None, |path| shown(path).into());
    rows.settle("ssh", settings.ssh.as_ref(), None, None, |program| shown(program).into());
    rows.settle("remote_afar", settings.remote_afar.as_ref(), None, None, |path| {
        path.clone().into()
    });
    for (name, value, source) in settings.env {
        rows.push(&format!("env.{name}"), Some(value.into()), source);
    }
    Ok(rows.rows)
}

fn unresolvable(client: &Client, target: Option<&Target>) -> Error {
    let failed = target.map(|target| client.resolve(target).err());
    failed.flatten().unwrap_or(Error::SessionEnded)
}

fn server_rows(file: Option<&Path>) -> Result<Vec<Row>, String> {
    let config = server_config(file)?;
    let mut rows = Rows { rows: Vec::new(), keys: SERVE_KEYS, resolved: None, by_ssh: false };
    rows.only("listen", config.listen);
    rows.only("host_keys", config.host_keys);
    rows.only("authorized_keys", config.authorized_keys);
    rows.only("trusted_user_ca_keys", config.trusted_user_ca_keys);
    rows.only("revoked_keys", config.revoked_keys);
    rows.only("penalty_exempt", config.penalty_exempt);
    rows.only("max_unauthenticated", config.max_unauthenticated);
    rows.only("max_unauthenticated_per_address", config.max_unauthenticated_per_address);
    rows.only("classic", config.classic);
    rows.only("classic_user", config.classic_user);
    rows.only("dangerously_classic_anywhere", config.dangerously_classic_anywhere);
    rows.only("allow_users", config.allow_users);
    rows.only("deny_users", config.deny_users);
    rows.only("allow_groups", config.allow_groups);
    rows.only("deny_groups", config.deny_groups);
    let root = config.permit_root_login;
    let root = root.map(|Placed { value, place }| Placed { value: value.word(), place });
    rows.only("permit_root_login", root);
    Ok(rows.rows)
}

struct Rows<'a> {
    rows: Vec<Row>,
    keys: &'static [KeyInfo],
    resolved: Option<&'a ResolvedHost>,
    /// Whether ssh reaches the target, by its own settings.
    by_ssh: bool,
}

/// What ssh has settings of its own for.
const SSHS_OWN: [&str; 6] =
    ["port", "user", "identities", "known_hosts", "accept_new", "ssh_config"];

impl Rows<'_> {
    fn push(&mut self, key: &str, value: Option<Value>, source: Source) {
        let info = self.keys.iter().find(|info| info.name == key);
        let words = info.map_or("none", |info| info.default);
        self.rows.push(Row { key: key.to_owned(), value, words, source });
    }

    /// What the ssh configuration says by this name, if it does.
    fn ssh_config(&self, keyword: &'static str) -> Option<Source> {
        let place = self.resolved?.places.get(keyword)?;
        Some(Source::SshConfig(keyword, place.clone()))
    }

    /// A key that nothing but the configuration is asked for here.
    fn only<T: Into<Value>>(&mut self, key: &'static str, config: Option<Placed<T>>) {
        let (value, source) = match config {
            Some(Placed { value, place }) => (Some(value.into()), Source::Config(place)),
            None => (None, Source::Default),
        };
        self.push(key, value, source);
    }

    /// A key of `config.toml`: what was settled, else what came of it for this host.
    fn settle<T>(
        &mut self,
        key: &'static str,
        settled: Option<&(T, Source)>,
        by_target: Option<(Value, Source)>,
        keyword: Option<&'static str>,
        value: impl Fn(&T) -> Value,
    ) {
        let in_effect = self.resolved.and_then(|host| match key {
            "port" => Some(host.port.into()),
            "user" => Some(host.user.clone().into()),
            "identities" => {
                let paths = host.identities.as_ref()?;
                Some(paths.iter().map(shown).collect::<Vec<_>>().into())
            }
            "known_hosts" => Some(host.known_hosts.iter().map(shown).collect::<Vec<_>>().into()),
            _ => None,
        });
        if let Some((in_target, source)) = by_target {
            return self.push(key, Some(in_target), source);
        }
        if let Some((settled, source)) = settled {
            return self.push(key, Some(value(settled)), source.clone());
        }
        if self.by_ssh && SSHS_OWN.contains(&key) {
            let row =
                Row { key: key.to_owned(), value: None, words: "ssh's", source: Source::Default };
            return self.rows.push(row);
        }
        let source = keyword.and_then(|keyword| self.ssh_config(keyword));
        let default = match key {
            "accept_new" => Some(false.into()),
            "connect_timeout" => Some(duration(CONNECT_TIMEOUT).into()),
            "port" => Some(afar_client::DEFAULT_PORT.into()),
            "ssh" | "remote_afar" | "ssh_config" => {
                let info = self.keys.iter().find(|info| info.name == key);
                info.map(|info| info.default.into())
            }
            _ => None,
        };
        self.push(key, in_effect.or(default), source.unwrap_or(Source::Default));
    }
}

/// A span of time as `config.toml` has it.
fn duration(time: Duration) -> String {
    if time.subsec_millis() == 0 {
        format!("{}s", time.as_secs())
    } else {
        format!("{}ms", time.as_millis())
    }
}

fn shown(path: impl AsRef<std::ffi::OsStr>) -> String {
    escape_for_terminal(path.as_ref().as_encoded_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_the_server_has_its_row() {
        let rows = server_rows(Some(Path::new("none"))).unwrap();
        let shown: Vec<&str> = rows.iter().map(|row| row.key.as_str()).collect();
        let keys: Vec<&str> = SERVE_KEYS.iter().map(|key| key.name).collect();
        assert_eq!(shown, keys);
    }

    #[test]
    fn a_line_could_stand_in_the_file_and_says_where_it_comes_from() {
        let row = |value: Option<Value>, source| Row {
            key: "user".to_owned(),
            value,
            words: "the local user",
            source,
        };
        let rows = [row(Some("a\"b".into()), Source::Option("-l")), row(None, Source::Default)];
        assert_eq!(
            text(&rows),
            "user = \"a\\\"b\"         # -l\nuser: the local user  # default\n"
        );
        assert_eq!(duration(Duration::from_millis(1500)), "1500ms");
        assert_eq!(duration(Duration::from_secs(90)), "90s");
    }
}
