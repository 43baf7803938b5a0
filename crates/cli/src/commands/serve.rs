//! `afar serve`: the listener.

use afar_client::DEFAULT_PORT;
use afar_server::listener::{Ready, ServeConfig, check_pattern, serve};
use afar_server::log::{Level, Log};

use crate::args::ServeArgs;
use crate::commands::{executable, with_port};
use crate::console::{Verbosity, say};
use crate::exit::Exit;

/// Serves until SIGTERM or SIGINT.
pub(crate) fn cmd_serve(args: ServeArgs) -> Exit {
    for pattern in &args.authorized_keys {
        if let Err(token) = check_pattern(pattern) {
            say(&format!("serve: --authorized-keys {pattern:?}: {token} stands for nothing here"));
            return Exit::Failed;
        }
    }
    let executable = match executable() {
        Ok(executable) => executable,
        Err(error) => {
            say(&format!("serve: cannot tell where afar's own program is: {error}"));
            return Exit::Failed;
        }
    };
    let verbosity = args.verbosity.level();
    let config = ServeConfig {
        listen: args.listen.iter().map(|address| with_port(address, DEFAULT_PORT)).collect(),
        ready_file: args.ready_file,
        host_keys: args.host_key,
        authorized_keys: args.authorized_keys,
        trusted_user_ca_keys: args.trusted_user_ca_keys,
        revoked_keys: args.revoked_keys,
        penalty_exempt: args.penalty_exempt,
        executable,
        log: Log::new(match verbosity {
            Verbosity::Quiet => Level::Error,
            Verbosity::Normal => Level::Info,
            Verbosity::Verbose => Level::Debug,
        }),
    };
    let result = serve(config, |ready| {
        if verbosity > Verbosity::Quiet {
            announcement(ready).iter().for_each(|line| say(line));
        }
    });
    match result {
        Ok(()) => Exit::Status(0),
        Err(error) => {
            say(&format!("serve: {error}"));
            Exit::Failed
        }
    }
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
        let lines = announcement(&Ready { addresses, host_keys: Vec::new(), created: None });
        assert!(lines.iter().any(|line| line.contains("127.0.0.1:2327 (this machine only")));
        assert!(lines.iter().any(|line| line == "listening on 0.0.0.0:1"));
    }
}
