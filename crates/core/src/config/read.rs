//! From TOML to settings.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{CLIENT_KEYS, KeyInfo, SECTIONS, SERVE_KEYS, meant};
use super::{ClientSettings, ConfigError, ConfigFile, HostSection, Placed, Problem, ServeSettings};
use crate::account::{PermitRoot, parse_users};
use crate::authorized_keys::SourceList;
use crate::duration;
use crate::escape::escape_bounded;
use crate::limits::{CONFIG_BYTES_MAX, UNAUTHENTICATED_MAX};
use crate::ssh_config::Place;

type Value<'i> = Spanned<DeValue<'i>>;

const PATH: &str = "an absolute path, or one with ~/ at its front";
const TEXT: &str = "a string without control characters, and not empty";

/// Reads a file.
pub(super) fn read(name: &str, bytes: &[u8]) -> Result<ConfigFile, ConfigError> {
    let at_start = |problem| {
        let place = Place { file: name.to_owned(), line: 1 };
        ConfigError { place, problem }
    };
    if bytes.len() > CONFIG_BYTES_MAX {
        return Err(at_start(Problem::TooLarge));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| at_start(Problem::NotUtf8))?;
    let reader = Reader::new(name, text);
    let document = DeTable::parse(text).map_err(|error| {
        // The parser's paragraphs become one line.
        let message: Vec<&str> = error.message().split_whitespace().collect();
        let problem = Problem::Syntax(escape_bounded(message.join(" ").as_bytes(), 200));
        reader.error(error.span().unwrap_or_default(), problem)
    })?;
    let mut file = ConfigFile::default();
    for (key, value) in document.get_ref() {
        match key.get_ref().as_ref() {
            "defaults" => file.defaults = reader.client("[defaults]", reader.table(key, value)?)?,
            "host" => file.hosts = reader.hosts(reader.table(key, value)?)?,
            "serve" => file.serve = reader.serve(reader.table(key, value)?)?,
            _ => return Err(reader.unknown(key, "the file", SECTIONS.to_vec())),
        }
    }
    Ok(file)
}

struct Reader<'a> {
    name: &'a str,
    /// Where each line begins.
    lines: Vec<usize>,
}

type Key<'i> = Spanned<toml::de::DeString<'i>>;

impl<'a> Reader<'a> {
    fn new(name: &'a str, text: &str) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let lines = std::iter::once(0).chain(ends.map(|(at, _)| at + 1)).collect();
        Self { name, lines }
    }

    fn place(&self, span: &Range<usize>) -> Place {
        let line = self.lines.partition_point(|start| *start <= span.start).max(1);
        Place { file: self.name.to_owned(), line }
    }

    fn error(&self, span: Range<usize>, problem: Problem) -> ConfigError {
        ConfigError { place: self.place(&span), problem }
    }

    fn unknown(&self, key: &Key<'_>, section: &str, known: Vec<&'static str>) -> ConfigError {
        let problem = Problem::Unknown {
            key: escape_bounded(key.get_ref().as_bytes(), 80),
            section: section.to_owned(),
            meant: meant(key.get_ref(), &known),
            known,
        };
        self.error(key.span(), problem)
    }

    fn wrong(&self, key: &Key<'_>, value: &Value<'_>, wanted: &str) -> ConfigError {
        let key = escape_bounded(key.get_ref().as_bytes(), 80);
        self.error(value.span(), Problem::Value { key, wanted: wanted.to_owned() })
    }

    // Sections.

    fn hosts(&self, table: &DeTable<'_>) -> Result<Vec<HostSection>, ConfigError> {
        let mut sections = Vec::new();
        for (patterns, value) in table {
            let shown = escape_bounded(patterns.get_ref().as_bytes(), 80);
            if patterns
                .get_ref()
                .split(',')
                .any(|pattern| pattern.trim_start_matches('!').is_empty())
            {
                let wanted = "[host.\"PATTERN\"], several by comma".to_owned();
                return Err(self.error(patterns.span(), Problem::Value { key: shown, wanted }));
            }
            let section = format!("[host.\"{shown}\"]");
            let settings = self.client(&section, self.table(patterns, value)?)?;
            let patterns_text = patterns.get_ref().to_string();
            sections
                .push((patterns.span().start, HostSection { patterns: patterns_text, settings }));
        }
        // The parser sorts by name; the first section that fits is to count.
        sections.sort_by_key(|(start, _)| *start);
        Ok(sections.into_iter().map(|(_, section)| section).collect())
    }

    fn client(&self, section: &str, table: &DeTable<'_>) -> Result<ClientSettings, ConfigError> {
        let mut settings = ClientSettings::default();
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "port" => settings.port = Some(self.port(key, value)?),
                "user" => settings.user = Some(self.text(key, value)?),
                "identities" => settings.identities = Some(self.paths(key, value)?),
                "known_hosts" => settings.known_hosts = Some(self.path(key, value)?),
                "accept_new" => settings.accept_new = Some(self.flag(key, value)?),
                "connect_timeout" => settings.connect_timeout = Some(self.time(key, value)?),
                "ssh_config" => {
                    let none = value.get_ref().as_str() == Some("none");
                    let read = if none { Self::text } else { Self::path };
                    settings.ssh_config = Some(read(self, key, value)?);
                }
                "ssh" => settings.ssh = Some(self.text(key, value)?),
                "remote_afar" => settings.remote_afar = Some(self.text(key, value)?),
                "env" => settings.env = self.variables(self.table(key, value)?)?,
                _ => return Err(self.unknown(key, section, names(CLIENT_KEYS))),
            }
        }
        Ok(settings)
    }

    fn serve(&self, table: &DeTable<'_>) -> Result<ServeSettings, ConfigError> {
        let mut settings = ServeSettings::default();
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "listen" => settings.listen = Some(self.texts(key, value)?),
                "host_keys" => settings.host_keys = Some(self.paths(key, value)?),
                "authorized_keys" => settings.authorized_keys = Some(self.texts(key, value)?),
                "trusted_user_ca_keys" => {
                    settings.trusted_user_ca_keys = Some(self.path(key, value)?);
                }
                "revoked_keys" => settings.revoked_keys = Some(self.path(key, value)?),
                "penalty_exempt" => settings.penalty_exempt = Some(self.sources(key, value)?),
                "max_unauthenticated" => {
                    settings.max_unauthenticated = Some(self.connections(key, value)?);
                }
                "max_unauthenticated_per_address" => {
                    settings.max_unauthenticated_per_address = Some(self.connections(key, value)?);
                }
                "classic" => settings.classic = Some(self.texts(key, value)?),
                "classic_user" => settings.classic_user = Some(self.text(key, value)?),
                "dangerously_classic_anywhere" => {
                    settings.dangerously_classic_anywhere = Some(self.flag(key, value)?);
                }
                "allow_users" => settings.allow_users = Some(self.users(key, value)?),
                "deny_users" => settings.deny_users = Some(self.users(key, value)?),
                "allow_groups" => settings.allow_groups = Some(self.texts(key, value)?),
                "deny_groups" => settings.deny_groups = Some(self.texts(key, value)?),
                "permit_root_login" => {
                    settings.permit_root_login = Some(self.permit_root(key, value)?);
                }
                _ => return Err(self.unknown(key, "[serve]", names(SERVE_KEYS))),
            }
        }
        Ok(settings)
    }

    // Values.

    fn placed<T>(&self, value: &Value<'_>, read: T) -> Placed<T> {
        Placed { value: read, place: self.place(&value.span()) }
    }

    fn table<'v, 'i>(
        &self,
        key: &Key<'_>,
        value: &'v Value<'i>,
    ) -> Result<&'v DeTable<'i>, ConfigError> {
        value.get_ref().as_table().ok_or_else(|| self.wrong(key, value, "a table"))
    }

    fn text(&self, key: &Key<'_>, value: &Value<'_>) -> Result<Placed<String>, ConfigError> {
        let text = as_text(value).ok_or_else(|| self.wrong(key, value, TEXT))?;
        Ok(self.placed(value, text.to_owned()))
    }

    fn texts(&self, key: &Key<'_>, value: &Value<'_>) -> Result<Placed<Vec<String>>, ConfigError> {
        self.list(key, value, "a list of strings, and not empty", |_| true)
    }

    fn path(&self, key: &Key<'_>, value: &Value<'_>) -> Result<Placed<String>, ConfigError> {
        let text = as_text(value).filter(|text| is_path(text));
        let text = text.ok_or_else(|| self.wrong(key, value, PATH))?;
        Ok(self.placed(value, text.to_owned()))
    }

    fn paths(&self, key: &Key<'_>, value: &Value<'_>) -> Result<Placed<Vec<String>>, ConfigError> {
        let wanted = "a list of paths, each absolute or with ~/ at its front";
        self.list(key, value, wanted, is_path)
    }

    fn list(
        &self,
        key: &Key<'_>,
        value: &Value<'_>,
        wanted: &str,
        good: impl Fn(&str) -> bool,
    ) -> Result<Placed<Vec<String>>, ConfigError> {
        let items = value.get_ref().as_array().filter(|items| !items.is_empty());
        let items = items.ok_or_else(|| self.wrong(key, value, wanted))?;
        let mut texts = Vec::new();
        for item in items.iter() {
            let text = as_text(item).filter(|text| good(text));
            texts.push(text.ok_or_else(|| self.wrong(key, item, wanted))?.to_owned());
        }
        Ok(self.placed(value, texts))
    }

    fn connections(&self, key: &Key<'_>, value: &Value<'_>) -> Result<Placed<usize>, ConfigError> {
        let number = value.get_ref().as_integer();
        let number =
            number.and_then(|number| usize::from_str_radix(number.as_str(), number.radix()).ok());
        let number = number.filter(|number| (1..=UNAUTHENTICATED_MAX).contains(number));
        let wanted = || format!("a number from 1 to {UNAUTHENTICATED_MAX}");
        Ok(self.placed(value, number.ok_or_else(|| self.wrong(key, value, &wanted()))?))
    }

    fn port(&self, key: &Key<'_>, value: &Value<'_>) -> Result<Placed<u16>, ConfigError> {
        let number = value.get_ref().as_integer();
        let port =
            number.and_then(|number| u16::from_str_radix(number.as_str(), number.radix()).ok());
        let port = port.filter(|port| *port > 0);
        let port = port.ok_or_else(|| self.wrong(key, value, "a number from 1 to 65535"))?;
        Ok(self.placed(value, port))
    }

    fn flag(&self, key: &Key<'_>, value: &Value<'_>) -> Result<Placed<bool>, ConfigError> {
        let flag = value.get_ref().as_bool();
        let flag = flag.ok_or_else(|| self.wrong(key, value, "true or false"))?;
        Ok(self.placed(value, flag))
    }

    fn time(
        &self,
        key: &Key<'_>,
        value: &Value<'_>,
    ) -> Result<Placed<std::time::Duration>, ConfigError> {
        let wanted = "a string with a number and a unit, such as \"30s\" or \"5m\"";
        let with_unit = |text: &&str| text.ends_with(|c: char| c.is_ascii_alphabetic());
        let text = value.get_ref().as_str().filter(with_unit);
        let time = text.and_then(|text| duration::parse(text).ok());
        Ok(self.placed(value, time.ok_or_else(|| self.wrong(key, value, wanted))?))
    }

    fn sources(
        &self,
        key: &Key<'_>,
        value: &Value<'_>,
    ) -> Result<Placed<Vec<String>>, ConfigError> {
        let wanted = "a list of addresses, networks (\"10.0.0.0/8\") and patterns (\"10.1.*\")";
        self.list(key, value, wanted, |text| SourceList::parse(text.as_bytes()).is_ok())
    }

    fn users(&self, key: &Key<'_>, value: &Value<'_>) -> Result<Placed<Vec<String>>, ConfigError> {
        let wanted = "a list of users (\"ann\", \"dev*\"), with an address or network if they are to \
                      come from there (\"ann@10.0.0.0/8\")";
        self.list(key, value, wanted, |text| parse_users(text).is_ok())
    }

    fn permit_root(
        &self,
        key: &Key<'_>,
        value: &Value<'_>,
    ) -> Result<Placed<PermitRoot>, ConfigError> {
        let wanted = "\"yes\", \"prohibit-password\", \"forced-commands-only\" or \"no\"";
        let word = value.get_ref().as_str().and_then(|word| word.parse().ok());
        Ok(self.placed(value, word.ok_or_else(|| self.wrong(key, value, wanted))?))
    }

    fn variables(&self, table: &DeTable<'_>) -> Result<Vec<(String, Placed<String>)>, ConfigError> {
        let mut variables = Vec::new();
        for (name, value) in table {
            let text = value.get_ref().as_str().filter(|text| !text.contains('\0'));
            let text = text.ok_or_else(|| self.wrong(name, value, "a string without a NUL"))?;
            let plain = |byte: u8| byte != b'=' && byte != 0;
            if name.get_ref().is_empty() || !name.get_ref().bytes().all(plain) {
                return Err(self.wrong(name, value, "no name of a variable"));
            }
            variables.push((name.get_ref().to_string(), self.placed(value, text.to_owned())));
        }
        Ok(variables)
    }
}

fn names(keys: &[KeyInfo]) -> Vec<&'static str> {
    keys.iter().map(|key| key.name).collect()
}

fn as_text<'v>(value: &'v Value<'_>) -> Option<&'v str> {
    let text = value.get_ref().as_str()?;
    (!text.is_empty() && !text.chars().any(char::is_control)).then_some(text)
}

/// A relative path would mean another file in each directory that afar is started in.
fn is_path(text: &str) -> bool {
    text.starts_with('/') || text.starts_with("~/")
}
