//! The facts of the machine and the programs that a table means nothing without.

use std::process::{Command, Stdio};

use crate::workspace::{Workspace, find_program};

/// Names and values, in the order they are told.
pub(super) fn facts(workspace: &Workspace) -> Vec<(&'static str, String)> {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    vec![
        ("date", said("date", &["-u", "+%F"])),
        ("commit", commit(workspace)),
        ("kernel", read("/proc/sys/kernel/osrelease")),
        ("cpu", format!("{} × {}", cores, cpu_model())),
        ("load average before", read("/proc/loadavg")),
        ("congestion control", read("/proc/sys/net/ipv4/tcp_congestion_control")),
        ("OpenSSH", said("ssh", &["-V"])),
        ("dropbear", said("dropbear", &["-V"])),
        ("rustc", said("rustc", &["-V"])),
    ]
}

/// The first line that a program says, on whichever stream.
fn said(name: &str, arguments: &[&str]) -> String {
    let Some(program) = find_program(name) else { return "not installed".to_owned() };
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let Ok(output) = output else { return "unknown".to_owned() };
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    String::from_utf8_lossy(&text).lines().next().unwrap_or("unknown").trim().to_owned()
}

fn commit(workspace: &Workspace) -> String {
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command.args(["-c", "safe.directory=*"]).args(arguments).current_dir(workspace.root());
        let output = command.stdin(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(hash) = git(&["rev-parse", "--short", "HEAD"]) else {
        return "unknown".to_owned();
    };
    let clean =
        git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|s| s.is_empty());
    if clean { hash } else { format!("{hash} with changes") }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).map_or_else(|_| "unknown".to_owned(), |s| s.trim().to_owned())
}

fn cpu_model() -> String {
    let text = read("/proc/cpuinfo");
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, model)| model.trim().to_owned())
}
