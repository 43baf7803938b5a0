//! The subcommands, a file each.

pub(crate) mod as_user;
pub(crate) mod classic;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod demo;
pub(crate) mod keys;
pub(crate) mod man;
pub(crate) mod repl;
pub(crate) mod run;
pub(crate) mod serve;
pub(crate) mod stdio;
pub(crate) mod supervisor;
pub(crate) mod trust;

use std::ffi::OsStr;
use std::io;
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use afar_client::{Account, Error, Target};

use crate::args::ConnectArgs;
use crate::console;
use crate::exit::Exit;
use crate::settings::ConnectSettings;

/// The local user, from the user database: the environment may be another user's (sudo, su).
pub(crate) fn account() -> Option<Account> {
    let user = afar_sys::users::current_user().ok().flatten()?;
    Some(Account { name: user.name, home: user.home })
}

/// Afar's own program.
pub(crate) fn executable() -> io::Result<PathBuf> {
    std::env::current_exe()
}

/// Reaches this user's supervisor, for the target `local`.
pub(crate) fn launch_supervisor() -> Result<UnixStream, String> {
    let executable = executable().map_err(|error| error.to_string())?;
    let launched = afar_server::launch::connect(&executable).map_err(|error| error.to_string())?;
    Ok(launched.stream)
}

/// Reads a target as it stands on the command line.
pub(crate) fn parse_target(text: &OsStr) -> Result<Target, Error> {
    Target::parse_bytes(text.as_bytes()).map_err(Error::from)
}

/// The one host that a command is about, and what is in effect for it.
pub(crate) fn settle(
    target: &OsStr,
    connect: &ConnectArgs,
) -> Result<(Target, ConnectSettings), Error> {
    let target = parse_target(target)?;
    let settings = ConnectSettings::settle(connect, Some(&target))?;
    Ok((target, settings))
}

/// Runs a command's async part. One thread is enough for a client, and quicker to start.
pub(crate) fn block_on<F: Future<Output = Exit>>(future: F) -> Exit {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => {
            let exit = runtime.block_on(future);
            // A thread that waits for a person or for a file must not keep the program.
            runtime.shutdown_background();
            exit
        }
        Err(error) => {
            console::say(&format!("cannot start the runtime: {error}"));
            Exit::Failed
        }
    }
}

/// An address without a port gets this one.
pub(crate) fn with_port(address: &str, port: u16) -> String {
    match address.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) => format!("[{ip}]:{port}"),
        Ok(IpAddr::V4(ip)) => format!("{ip}:{port}"),
        Err(_) if address.ends_with(']') || !address.contains(':') => format!("{address}:{port}"),
        Err(_) => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_port_gets_the_default() {
        let cases = [
            ("127.0.0.1", "127.0.0.1:2327"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("::1", "[::1]:2327"),
            ("[::1]", "[::1]:2327"),
            ("[::1]:5", "[::1]:5"),
            ("localhost", "localhost:2327"),
            ("localhost:1", "localhost:1"),
        ];
        for (given, expected) in cases {
            assert_eq!(with_port(given, 2327), expected);
        }
    }
}
