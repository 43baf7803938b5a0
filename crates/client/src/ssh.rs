//! Targets `ssh://HOST`: how ssh is called for them, and what its failures mean.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use afar_core::escape::escape_bounded;
use afar_core::target::Destination;
use afar_net::clock::Clock;
use afar_net::driver::Driver;
use afar_net::ssh::{SshCommand, SshError, SshLink, reach};
use afar_net::transport::AnyTransport;
use afar_proto::message::OpenSpec;
use afar_proto::outcome::{Phase, Started};
use afar_proto::{Config, Connection, Role};

use crate::client::Options;
use crate::connect::open;
use crate::error::{Error, SshFailure};
use crate::prompt::Notice;
use crate::session::Pipelined;
use crate::ssh_config_files::SshConfig;

/// How long ssh may take where it can ask a person: sshd allows as much for a login
/// (`LoginGraceTime`).
const PERSON_TIMEOUT: Duration = Duration::from_secs(120);

/// Options of ours that no configuration changes: no terminal, no forwarding, nothing else executed
/// at either end. A connection that another ssh shares is used, but none is made to be shared: it
/// would end with us, under those who came to share it.
const FIXED: [&str; 8] = [
    "-T",
    "-x",
    "-a",
    "-oClearAllForwardings=yes",
    "-oPermitLocalCommand=no",
    "-oRemoteCommand=none",
    "-oControlMaster=no",
    "-oEscapeChar=none",
];

/// Starts ssh, and opens the channel of a command once afar answers at the other end.
pub(crate) async fn connect(
    options: &Options,
    destination: &Destination,
    spec: Option<OpenSpec>,
) -> Result<(Driver<AnyTransport>, Option<Pipelined>), Error> {
    let host = &destination.host;
    let command = command(options, destination);
    let prompt = Arc::clone(&options.prompt);
    let on_line = move |line: &str| prompt.notice(&Notice::Ssh(line.to_owned()));
    let after = timeout(options, !options.unattended && can_ask());
    let reached = tokio::time::timeout(after, reach(&command, Box::new(on_line))).await;
    let SshLink { transport, rest, printed } = match reached {
        Ok(Ok(link)) => link,
        Ok(Err(error)) => return Err(Error::Ssh(Box::new(failure(host, &command, error)))),
        Err(_) => {
            let (phase, started) = (Phase::Connect, Started::No);
            return Err(Error::ConnectTimeout { host: host.clone(), after, phase, started });
        }
    };
    if !printed.is_empty() {
        let text = format!("the login shell on {host} prints before afar does: {printed}");
        options.prompt.notice(&Notice::PassedOver(text));
    }
    let clock = Clock::new();
    let mut connection = Connection::new(Role::Client, Config::default(), clock.now());
    let pipelined = spec.map(|spec| open(&mut connection, spec)).transpose()?;
    let mut driver = Driver::new(AnyTransport::Child(Box::new(transport)), connection, clock);
    driver.feed(&rest);
    Ok((driver, pipelined))
}

fn command(options: &Options, destination: &Destination) -> SshCommand {
    let mut words: Vec<OsString> = FIXED.map(OsString::from).into();
    // The user's limit is for a host that does not answer; ssh alone knows when it did.
    let seconds = options.connect_timeout.as_millis().div_ceil(1000).max(1);
    words.push(format!("-oConnectTimeout={seconds}").into());
    if options.unattended {
        words.push("-oBatchMode=yes".into());
    }
    let mut option = |name: &str, value: OsString| words.extend([name.into(), value]);
    match &options.ssh_config {
        SshConfig::User => {}
        SshConfig::File(path) => option("-F", path.into()),
        SshConfig::None => option("-F", "none".into()),
    }
    for path in &options.identities {
        option("-i", path.into());
    }
    if let Some(port) = destination.port.or(options.port) {
        option("-p", port.to_string().into());
    }
    if let Some(user) = destination.user.as_ref().or(options.user.as_ref()) {
        option("-l", user.into());
    }
    if let Some(path) = &options.known_hosts {
        let mut file = OsString::from("UserKnownHostsFile=");
        file.push(ssh_word(path));
        option("-o", file);
        option("-o", "GlobalKnownHostsFile=none".into());
    }
    if options.accept_new {
        option("-o", "StrictHostKeyChecking=accept-new".into());
    }
    SshCommand {
        program: options.ssh.clone(),
        options: words,
        host: destination.host.clone(),
        remote_afar: options.remote_afar.clone(),
    }
}

/// A path as one word of ssh's configuration, which splits at blanks and expands `%` (ssh_config(5)).
fn ssh_word(path: &Path) -> OsString {
    let mut word = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'%' => word.extend(b"%%"),
            b'"' | b'\\' => word.extend([b'\\', *byte]),
            _ => word.push(*byte),
        }
    }
    if word.iter().any(u8::is_ascii_whitespace) {
        word.insert(0, b'"');
        word.push(b'"');
    }
    OsString::from_vec(word)
}

/// Whether ssh has somebody to ask for a password.
fn can_ask() -> bool {
    File::open("/dev/tty").is_ok() || std::env::var_os("SSH_ASKPASS").is_some()
}

fn timeout(options: &Options, can_ask: bool) -> Duration {
    let limit = options.connect_timeout;
    if can_ask { limit.max(PERSON_TIMEOUT) } else { limit }
}

fn failure(host: &str, command: &SshCommand, error: SshError) -> SshFailure {
    let failed =
        |message: String, reason, hint| SshFailure { message, phase: Phase::Connect, reason, hint };
    match error {
        SshError::Ended { code: Some(255), said, .. } => {
            let said = said.unwrap_or_else(|| "it ended without a word".to_owned());
            let (phase, reason) = classify(&said);
            let message = format!("ssh to {host} failed: {}", said.trim_end_matches('.'));
            let hint = match reason {
                "host_key" => Some(
                    "ssh to the host by hand shows its key; --accept-new takes that of a new one",
                ),
                "login_refused" => {
                    Some("ssh to the host by hand has to work first, with this user and key")
                }
                _ => None,
            };
            SshFailure { message, phase, reason, hint }
        }
        SshError::Ended { code, said, printed } => {
            let said = said.or_else(|| Some(printed).filter(|printed| !printed.is_empty()));
            if is_missing(code, said.as_deref()) {
                let program = escape_bounded(command.remote_afar.as_bytes(), 80);
                let said = said.map(|said| format!(" ({said})")).unwrap_or_default();
                let message =
                    format!("{program} is not installed on {host}, or not in PATH there{said}");
                let hint = "--remote-afar PATH says where it is";
                return failed(message, "no_supervisor", Some(hint));
            }
            let how = code.map_or("without a status".to_owned(), |code| format!("with {code}"));
            let said = said.map(|said| format!(": {said}")).unwrap_or_default();
            let message = format!("ssh to {host} ended {how} before afar answered there{said}");
            let hint = "does the login shell there, or the key's command= in authorized_keys, \
                        run something else?";
            failed(message, "no_supervisor", Some(hint))
        }
        SshError::NotAfar { printed } => {
            let message = format!("what answers on {host} is not afar: {printed}");
            let hint = "does a startup file of the login shell there print without end?";
            failed(message, "no_supervisor", Some(hint))
        }
        SshError::Program(problem) => {
            let hint = "install OpenSSH's client, or name it with --ssh";
            failed(problem.to_string(), "unreachable", Some(hint))
        }
        SshError::Start(_) | SshError::Io(_) => failed(error.to_string(), "unreachable", None),
    }
}

/// Whether a shell could not find or execute the program: 127 and 126 (POSIX), or 1 in a csh.
fn is_missing(code: Option<u8>, said: Option<&str>) -> bool {
    let says_so = |said: &str| said.to_ascii_lowercase().contains("not found");
    match code {
        Some(126 | 127) => true,
        Some(1) => said.is_some_and(says_so),
        _ => false,
    }
}

/// The step that failed and the outcome's word for it, by ssh's last line: a status of 255 is all
/// else that it tells.
fn classify(said: &str) -> (Phase, &'static str) {
    let says = |words: &[&str]| words.iter().any(|word| said.contains(word));
    if says(&["Could not resolve hostname"]) {
        (Phase::Resolve, "unresolved")
    } else if says(&["Host key verification failed", "host key is known", "HOST IDENTIFICATION"]) {
        (Phase::Authenticate, "host_key")
    } else if says(&["Permission denied", "Too many authentication failures"]) {
        (Phase::Authenticate, "login_refused")
    } else {
        (Phase::Connect, "unreachable")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Client;

    fn words(command: &SshCommand) -> Vec<&str> {
        let words = command.options.iter().map(|word| word.to_str().unwrap());
        words.filter(|word| !FIXED.contains(word)).collect()
    }

    fn destination(user: Option<&str>, port: Option<u16>) -> Destination {
        Destination { user: user.map(Into::into), host: "web".into(), port }
    }

    #[test]
    fn a_path_is_one_word_for_ssh() {
        let word = |path: &str| ssh_word(Path::new(path)).into_string().unwrap();
        assert_eq!(word("/kh"), "/kh");
        assert_eq!(word("/a b/k%h"), "\"/a b/k%%h\"");
        assert_eq!(word("/a\"b"), "/a\\\"b");
    }

    #[test]
    fn options_are_passed_on_as_ssh_has_them() {
        let plain = Client::builder().options;
        let command = command(&plain, &destination(None, None));
        assert_eq!(words(&command), ["-oConnectTimeout=10"]);
        assert_eq!((command.host.as_str(), command.remote_afar.as_str()), ("web", "afar"));
        let builder = Client::builder()
            .user("ann")
            .port(2222)
            .identity("/keys/a b")
            .ssh_config(SshConfig::None)
            .known_hosts("/kh")
            .accept_new(true)
            .connect_timeout(Duration::from_millis(1500));
        let command = super::command(&builder.options, &destination(None, None));
        assert_eq!(
            words(&command),
            [
                "-oConnectTimeout=2",
                "-F",
                "none",
                "-i",
                "/keys/a b",
                "-p",
                "2222",
                "-l",
                "ann",
                "-o",
                "UserKnownHostsFile=/kh",
                "-o",
                "GlobalKnownHostsFile=none",
                "-o",
                "StrictHostKeyChecking=accept-new",
            ]
        );
        // What the target says goes first.
        let command = super::command(&builder.options, &destination(Some("bob"), Some(22)));
        let words = words(&command);
        assert!(words.windows(2).any(|pair| pair == ["-l", "bob"]), "{words:?}");
        assert!(words.windows(2).any(|pair| pair == ["-p", "22"]), "{words:?}");
    }

    #[test]
    fn nobody_is_asked_by_ssh_where_nobody_is_there() {
        let client = Client::builder().build().unattended();
        let command = command(&client.options, &destination(None, None));
        assert_eq!(words(&command), ["-oConnectTimeout=10", "-oBatchMode=yes"]);
    }

    #[test]
    fn a_person_gets_the_time_that_sshd_gives_and_a_script_what_it_asked_for() {
        let options = Client::builder().connect_timeout(Duration::from_secs(3)).options;
        assert_eq!(timeout(&options, false), Duration::from_secs(3));
        assert_eq!(timeout(&options, true), PERSON_TIMEOUT);
        let options = Client::builder().connect_timeout(Duration::from_secs(300)).options;
        assert_eq!(timeout(&options, true), Duration::from_secs(300));
    }

    #[test]
    fn a_failure_has_the_phase_that_ssh_reached() {
        let of = |code: u8, said: &str| {
            let said = Some(said.to_owned());
            let command = command(&Client::builder().options, &destination(None, None));
            let error = SshError::Ended { code: Some(code), said, printed: String::new() };
            failure("web", &command, error)
        };
        let cases = [
            (255, "ssh: Could not resolve hostname web: x", Phase::Resolve, "unresolved"),
            (255, "ssh: connect to host web port 22: refused", Phase::Connect, "unreachable"),
            (255, "a@web: Permission denied (publickey).", Phase::Authenticate, "login_refused"),
            (255, "Host key verification failed.", Phase::Authenticate, "host_key"),
            (127, "bash: line 1: afar: command not found", Phase::Connect, "no_supervisor"),
            (1, "afar: Command not found.", Phase::Connect, "no_supervisor"),
            (1, "This account is not available.", Phase::Connect, "no_supervisor"),
        ];
        for (code, said, phase, reason) in cases {
            let failure = of(code, said);
            assert_eq!((failure.phase, failure.reason), (phase, reason), "{said}");
            let told = said.trim_end_matches('.');
            assert!(failure.message.contains(told), "{}", failure.message);
        }
        assert!(of(127, "x").hint.unwrap().contains("--remote-afar"));
        assert!(of(1, "Command not found").hint.unwrap().contains("--remote-afar"));
        assert!(!of(1, "not available").hint.unwrap().contains("--remote-afar"));
    }
}
