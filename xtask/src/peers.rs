//! The other programs that tests and benchmarks compare with: present, installed, or named.

use std::os::unix::fs::DirBuilderExt as _;
use std::process::{Command, Stdio};

use crate::failure::{Failure, Result};
use crate::say;
use crate::workspace::{find_program, run_step};

/// A program and the Debian package that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer {
    program: &'static str,
    package: &'static str,
}

const fn peer(program: &'static str, package: &'static str) -> Peer {
    Peer { program, package }
}

/// What the tests run: the real ssh as the oracle, terminals, and small tools.
pub(crate) const FOR_TESTS: &[Peer] = &[
    peer("sshd", "openssh-server"),
    peer("ssh", "openssh-client"),
    peer("ssh-keygen", "openssh-client"),
    peer("ssh-agent", "openssh-client"),
    peer("ssh-add", "openssh-client"),
    peer("dropbear", "dropbear-bin"),
    peer("dbclient", "dropbear-bin"),
    peer("dropbearkey", "dropbear-bin"),
    peer("tmux", "tmux"),
    peer("vi", "vim-tiny"),
    peer("less", "less"),
    peer("top", "procps"),
    peer("htop", "htop"),
    peer("nano", "nano"),
    peer("python3", "python3"),
    peer("ps", "procps"),
    peer("bash", "bash"),
    peer("dash", "dash"),
    peer("zsh", "zsh"),
    peer("sha256sum", "coreutils"),
    peer("setsid", "util-linux"),
    peer("openssl", "openssl"),
    peer("setpriv", "util-linux"),
    peer("useradd", "passwd"),
];

/// What the benchmarks run.
pub(crate) const FOR_BENCH: &[Peer] = &[
    peer("sshd", "openssh-server"),
    peer("ssh", "openssh-client"),
    peer("ssh-keygen", "openssh-client"),
    peer("dropbear", "dropbear-bin"),
    peer("dbclient", "dropbear-bin"),
    peer("dropbearkey", "dropbear-bin"),
    peer("xargs", "findutils"),
    peer("python3", "python3"),
    peer("cc", "gcc"),
];

/// Makes sure that every one of `peers` is here. As root on a Debian-like machine what is missing
/// is installed, with apt's own output; everywhere else the error names the packages. Nothing is
/// ever left out silently.
pub(crate) fn ensure(peers: &[Peer]) -> Result<()> {
    install(peers)?;
    prepare_sshd()
}

/// sshd that runs as root refuses to start without a directory that only its service unit makes.
fn prepare_sshd() -> Result<()> {
    let path = std::path::Path::new("/run/sshd");
    if !rustix::process::geteuid().is_root() || path.is_dir() {
        return Ok(());
    }
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o755).create(path).map_err(Failure::io("create /run/sshd"))
}

fn install(peers: &[Peer]) -> Result<()> {
    let packages = packages_of(&missing(peers));
    if packages.is_empty() {
        return Ok(());
    }
    let names = packages.join(" ");
    let is_root = rustix::process::geteuid().is_root();
    if !is_root || find_program("apt-get").is_none() {
        return Err(Failure::Environment(format!(
            "these packages are missing: {names}\n  on Debian or Ubuntu: sudo apt-get install {names}"
        )));
    }
    say::note(format_args!("missing: {names}; installing with apt-get"));
    run_step(&mut apt(&["update"]))?;
    let mut install = vec!["install", "--yes", "--no-install-recommends"];
    install.extend(&packages);
    run_step(&mut apt(&install))?;
    let still = packages_of(&missing(peers));
    if still.is_empty() {
        Ok(())
    } else {
        Err(Failure::Environment(format!(
            "apt-get succeeded, yet these packages did not bring their programs: {}",
            still.join(" ")
        )))
    }
}

fn missing(peers: &[Peer]) -> Vec<Peer> {
    peers.iter().filter(|peer| find_program(peer.program).is_none()).copied().collect()
}

/// The packages of `peers`, each once, in the order of the table.
fn packages_of(peers: &[Peer]) -> Vec<&'static str> {
    let mut packages = Vec::new();
    for peer in peers {
        if !packages.contains(&peer.package) {
            packages.push(peer.package);
        }
    }
    packages
}

fn apt(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    // Without a terminal, debconf would fall back noisily, and some packages would ask.
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_names_its_package_once() {
        let table = [
            peer("sh", "dash"),
            peer("afar-no-such-program", "one"),
            peer("afar-no-such-program-either", "one"),
            peer("afar-nor-this", "two"),
        ];
        assert_eq!(packages_of(&missing(&table)), ["one", "two"]);
    }

    #[test]
    fn everything_present_installs_nothing() {
        assert!(install(&[peer("sh", "dash")]).is_ok());
    }
}
