//! `afar serve`: the listener.

use std::path::PathBuf;

use afar_client::{CLASSIC_PORT, DEFAULT_PORT};
use afar_core::doorkeeper::DoorRules;
use afar_core::escape::escape_for_terminal;
use afar_server::classic::ClassicConfig;
use afar_server::launch::running::{Told, UpgradeNews, tell_to_upgrade};
use afar_server::listener::{Ready, ServeConfig, check, serve};
use afar_server::log::{Level, Log};
use afar_server::monitor::check_pattern;

use crate::args::ServeArgs;
use crate::commands::{executable, with_port};
use crate::console::{Verbosity, say};
use crate::exit::Exit;
use crate::settings::{AUTHORIZED_KEYS, LISTEN, ServerSettings, Settled};

/// Serves until SIGTERM or SIGINT, or only checks whether it could.
pub(crate) fn cmd_serve(args: ServeArgs) -> Exit {
    if args.upgrade {
        return upgrade(&args);
    }
    let verbosity = args.verbosity.level();
    let check_only = args.check;
    let config = match configure(&args) {
        Ok(config) => config,
        Err(problem) => {
            say(&format!("serve: {problem}"));
            return Exit::Failed;
        }
    };
    let result = if check_only {
        check(&config)
    } else {
        // Options stay as they were given; the files are read anew.
        serve(
            config,
            move || configure(&args),
            |ready| {
                if verbosity > Verbosity::Quiet {
                    announcement(ready).iter().for_each(|line| say(line));
                }
            },
        )
    };
    match result {
        Ok(()) => Exit::Status(0),
        Err(error) => {
            say(&format!("serve: {error}"));
            Exit::Failed
        }
    }
}

/// Tells the supervisors, and says what has come of it. Fails unless all of them go on as the new program.
fn upgrade(args: &ServeArgs) -> Exit {
    let quiet = args.verbosity.level() == Verbosity::Quiet;
    let (mut count, mut all) = (0, true);
    let told = tell_to_upgrade(&args.accounts.socket_dir, |told| {
        let is_done = matches!(told.news, Ok(UpgradeNews::Done { .. }));
        count += 1;
        all &= is_done;
        if !quiet || !is_done {
            say(&news_of(&told));
        }
    });
    if let Err(error) = told {
        say(&format!("serve: {error}"));
        return Exit::Failed;
    }
    if count == 0 && !quiet {
        say("no supervisor runs: the next one is started as the new program");
    }
    if all { Exit::Status(0) } else { Exit::Failed }
}

fn news_of(told: &Told) -> String {
    let Told { uid, pid, news } = told;
    let what = match news {
        Ok(UpgradeNews::Done { version }) => format!("goes on as afar {}", escaped(version)),
        Ok(UpgradeNews::Waits { message }) => {
            format!("is not upgraded yet, and will be: {}", escaped(message))
        }
        Ok(UpgradeNews::Failed { message }) => {
            format!("is not upgraded, everything goes on as it was: {}", escaped(message))
        }
        Err(error) => format!("does not say whether it was upgraded ({error}); its log may"),
    };
    format!("the supervisor of uid {uid} (process {pid}) {what}")
}

/// What another user's process says is shown, and not obeyed.
fn escaped(text: &str) -> String {
    escape_for_terminal(text.as_bytes())
}

/// What counts of the options and the configuration.
fn configure(args: &ServeArgs) -> Result<ServeConfig, String> {
    let settings = ServerSettings::settle(args)?;
    let door = door_rules(&settings);
    let value = |settled: Settled<PathBuf>| settled.map(|(path, _)| path);
    let authorized_keys = or_default(settings.authorized_keys, AUTHORIZED_KEYS);
    for pattern in &authorized_keys {
        check_pattern(pattern).map_err(|token| {
            format!("authorized_keys {pattern:?}: {token} stands for nothing here")
        })?;
    }
    let listen = or_default(settings.listen, LISTEN);
    let classic = settings.classic.as_ref().map(|(list, _)| list.clone()).unwrap_or_default();
    let about_classic = args.classic_user.is_some() || args.dangerously_classic_anywhere;
    if about_classic && classic.is_empty() {
        return Err(
            "--classic-user and --dangerously-classic-anywhere are about --classic, which \
                    names no address"
                .to_owned(),
        );
    }
    Ok(ServeConfig {
        listen: listen.iter().map(|address| with_port(address, DEFAULT_PORT)).collect(),
        ready_file: args.ready_file.clone(),
        host_keys: settings.host_keys.map(|(keys, _)| keys).unwrap_or_default(),
        authorized_keys,
        trusted_user_ca_keys: value(settings.trusted_user_ca_keys),
        revoked_keys: value(settings.revoked_keys),
        accounts: settings.accounts.rules()?,
        socket_dir: args.accounts.socket_dir.clone(),
        door,
        classic: ClassicConfig {
            listen: classic.iter().map(|address| with_port(address, CLASSIC_PORT)).collect(),
            user: settings.classic_user.map(|(user, _)| user),
            dangerously_anywhere: settings
                .dangerously_classic_anywhere
                .is_some_and(|(anywhere, _)| anywhere),
        },
        executable: executable()
            .map_err(|error| format!("cannot tell where afar's own program is: {error}"))?,
        log: Log::new(match args.verbosity.level() {
            Verbosity::Quiet => Level::Error,
            Verbosity::Normal => Level::Info,
            Verbosity::Verbose => Level::Debug,
        }),
    })
}

fn door_rules(settings: &ServerSettings) -> DoorRules {
    let default = DoorRules::default();
    let number = |settled: &Settled<usize>| settled.as_ref().map(|(number, _)| *number);
    DoorRules {
        exempt: settings.penalty_exempt.as_ref().map(|(list, _)| list.clone()),
        unauthenticated_max: number(&settings.max_unauthenticated)
            .unwrap_or(default.unauthenticated_max),
        share_max: number(&settings.max_unauthenticated_per_address).unwrap_or(default.share_max),
    }
}

fn or_default(settled: Settled<Vec<String>>, default: &str) -> Vec<String> {
    settled.map_or_else(|| vec![default.to_owned()], |(value, _)| value)
}

/// What a person who has started a server wants to know.
fn announcement(ready: &Ready) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for address in &ready.addresses {
        let reach = if address.ip().is_loopback() {
            " (this machine only; --listen 0.0.0.0:2327 opens it to others)"
        } else {
            ""
        };
        lines.push(format!("listening on {address}{reach}"));
    }
    for address in &ready.classic {
        let reach = if address.ip().to_canonical().is_loopback() {
            "this machine only; nothing is encrypted"
        } else {
            "DANGER: everybody who reaches it runs commands here"
        };
        lines.push(format!("classic protocol on {address} ({reach})"));
    }
    for key in &ready.host_keys {
        lines.push(format!("host key {} {}", key.kind().ssh_name(), key.fingerprint()));
    }
    if let Some(path) = &ready.created {
        lines.push(format!("made a host key of its own: {}", path.display()));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_that_only_this_machine_can_reach_it() {
        let addresses = vec!["127.0.0.1:2327".parse().unwrap(), "0.0.0.0:1".parse().unwrap()];
        let classic = vec!["127.0.0.1:8080".parse().unwrap(), "0.0.0.0:8080".parse().unwrap()];
        let ready = Ready { addresses, classic, host_keys: Vec::new(), created: None };
        let lines = announcement(&ready);
        assert!(lines.iter().any(|line| line.contains("127.0.0.1:2327 (this machine only")));
        assert!(lines.iter().any(|line| line == "listening on 0.0.0.0:1"));
        assert!(lines.iter().any(|line| line.contains("127.0.0.1:8080 (this machine only;")));
        assert!(lines.iter().any(|line| line.contains("0.0.0.0:8080 (DANGER")));
    }
}
