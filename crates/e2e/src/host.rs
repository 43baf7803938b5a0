//! A machine that serves: a listener, its supervisor and jobs, and a client that may log in there.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write as _;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;

use crate::account::Account;
use crate::binary;
use crate::client::Run;
use crate::deadline::{DEADLINE, Deadline};
use crate::fail;
use crate::home::Home;
use crate::process::{Entry, Process};
use crate::reaper::{Mailbox, Prepared, Reaper};

/// What jobs may take to be gone after their client is: the grace from TERM to KILL is five seconds.
const CLEANED_UP_WITHIN: Duration = Duration::from_secs(15);

/// A running `afar serve` with its own [`Home`], whose methods it has too. One home serves both as
/// the server's and as the client's.
///
/// When it is dropped, everything that it started is ended; whatever else than listener and
/// supervisor was still there fails the test.
#[derive(Debug)]
pub struct Host {
    home: Home,
    /// The words before `afar`, and those from `serve` on.
    prefix: Vec<OsString>,
    serve: Vec<OsString>,
    address: SocketAddr,
    /// Where the classic protocol is spoken, if that was asked for.
    classic: Option<SocketAddr>,
    /// One for each listener there was; the last one is that of the present listener.
    reapers: Vec<Reaper>,
    /// Where the present listener tells its state (sd_notify(3)).
    notices: Option<Mailbox>,
}

/// How a [`Host`] is to be started.
#[derive(Debug)]
pub struct HostBuilder {
    home: Home,
    options: String,
    keys: Option<String>,
    prefix: Vec<OsString>,
    serve: Vec<OsString>,
    configuration: Option<PathBuf>,
    environment: Vec<(OsString, OsString)>,
}

impl HostBuilder {
    /// Options before the user's key in `authorized_keys`, such as `command="date"`.
    #[must_use]
    pub fn key_options(mut self, options: &str) -> Self {
        options.clone_into(&mut self.options);
        self
    }

    /// The whole of `authorized_keys` instead of the user's key.
    #[must_use]
    pub fn authorized_keys(mut self, text: &str) -> Self {
        self.keys = Some(text.to_owned());
        self
    }

    /// One more argument of `afar serve`.
    #[must_use]
    pub fn serve_arg(mut self, word: impl AsRef<OsStr>) -> Self {
        self.serve.push(word.as_ref().to_owned());
        self
    }

    /// A configuration that names host keys and `authorized_keys`, in place of options that do; it is
    /// written here as they are.
    #[must_use]
    pub fn configured(mut self, file: &Path) -> Self {
        self.configuration = Some(file.to_owned());
        self
    }

    /// Serves the classic protocol too.
    #[must_use]
    pub fn classic(self) -> Self {
        self.classic_at("127.0.0.1:0")
    }

    /// The same at this address.
    #[must_use]
    pub fn classic_at(self, address: &str) -> Self {
        let user = self.home.user().to_owned();
        let words = ["--classic", address, "--classic-user", &user];
        words.into_iter().fold(self, Self::serve_arg)
    }

    /// Lets other accounts in too, each by its own `authorized_keys`.
    #[must_use]
    pub fn serve_accounts(self) -> Self {
        self.serve_arg("--authorized-keys").serve_arg("%h/.ssh/authorized_keys")
    }

    /// A program that executes `afar serve` in its own place, with its arguments: `prlimit`, say.
    #[must_use]
    pub fn serve_through(mut self, words: &[&str]) -> Self {
        self.prefix = words.iter().map(Into::into).collect();
        self
    }

    /// One more variable of `afar serve`, which its supervisor inherits.
    #[must_use]
    pub fn serve_env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Starts it and waits until it accepts connections.
    ///
    /// # Panics
    /// It does not.
    #[track_caller]
    #[must_use]
    pub fn start(self) -> Host {
        let home = self.home;
        home.make_key("host_key");
        let line = format!("{} {}", self.options, Home::public_line(&home.key()));
        let keys = self.keys.unwrap_or_else(|| line.trim_start().to_owned());
        home.write("authorized_keys", keys);
        let mut serve: Vec<OsString> = ["serve", "--listen", "127.0.0.1:0"].map(Into::into).into();
        serve.extend(["--ready-file".into(), home.file("ready").into()]);
        let files = [("--host-key", "host_key"), ("--authorized-keys", "authorized_keys")];
        if let Some(path) = &self.configuration {
            let [(_, host_key), (_, authorized)] = files.map(|(to, name)| (to, home.file(name)));
            let text = format!(
                "[serve]\nhost_keys = [{host_key:?}]\nauthorized_keys = [{authorized:?}]\n"
            );
            fs::write(path, text).expect("the test's directory can be written");
            serve.extend(["--config".into(), path.into()]);
        } else {
            for (option, file) in files {
                serve.extend([option.into(), home.file(file).into()]);
            }
        }
        serve.extend(self.serve);
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let prefix = self.prefix;
        let mut host = Host {
            home,
            prefix,
            serve,
            address: nowhere,
            classic: None,
            reapers: Vec::new(),
            notices: None,
        };
        host.start_listener(&self.environment);
        host
    }
}

impl Host {
    /// One that lets its own user's key in, without restrictions.
    ///
    /// # Panics
    /// It does not start.
    #[track_caller]
    #[must_use]
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// One to be set up first.
    #[must_use]
    pub fn builder() -> HostBuilder {
        Self::builder_in(Home::new())
    }

    /// The same, of this home.
    #[must_use]
    pub fn builder_in(home: Home) -> HostBuilder {
        HostBuilder {
            home,
            options: String::new(),
            keys: None,
            prefix: Vec::new(),
            serve: Vec::new(),
            configuration: None,
            environment: Vec::new(),
        }
    }

    /// Where the listener accepts connections.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the classic protocol is spoken.
    ///
    /// # Panics
    /// Nowhere.
    #[must_use]
    pub fn classic_address(&self) -> SocketAddr {
        self.classic.expect("the host was built with `classic`")
    }

    /// `USER@HOST:PORT`.
    #[must_use]
    pub fn target(&self) -> String {
        self.target_via(self.address)
    }

    /// The same for another account, of a listener that root runs.
    #[must_use]
    pub fn target_of(&self, account: &Account) -> String {
        format!("{}@{}", account.name(), self.address)
    }

    /// The same through a proxy, or whatever else passes bytes on.
    #[must_use]
    pub fn target_via(&self, address: SocketAddr) -> String {
        format!("{}@{address}", self.home.user())
    }

    /// The private key file that the listener proves.
    #[must_use]
    pub fn host_key(&self) -> PathBuf {
        self.home.file("host_key")
    }

    /// The options that every command that connects needs here: no configuration, the test's key,
    /// the test's trusted hosts.
    #[must_use]
    pub fn client_options(&self) -> Vec<OsString> {
        let words: [OsString; 6] = [
            "-F".into(),
            "/dev/null".into(),
            "-i".into(),
            self.home.key().into(),
            "--known-hosts".into(),
            self.home.known_hosts().into(),
        ];
        words.into()
    }

    /// `afar run OPTIONS TARGET ARGUMENTS…`; the arguments begin with options of `run` or with the
    /// command.
    pub fn run<I>(&self, arguments: I) -> Run
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        self.run_at(&self.target(), arguments)
    }

    /// The same at another target, such as [`Host::target_via`] a proxy, or `local`.
    pub fn run_at<I>(&self, target: &str, arguments: I) -> Run
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let run = self.home.afar(["run"]);
        let run = self.client_options().into_iter().fold(run, Run::arg).arg(target);
        arguments.into_iter().fold(run, Run::arg)
    }

    /// `afar run … -c SCRIPT`.
    pub fn script(&self, script: &str) -> Run {
        self.run(["-c", script])
    }

    /// The present listener.
    ///
    /// # Panics
    /// Never: there is always one, running or ended.
    #[must_use]
    pub fn listener(&self) -> &Process {
        self.reapers.last().expect("a host starts with a listener").program()
    }

    /// The supervisor, if one runs.
    #[must_use]
    pub fn supervisor(&self) -> Option<Process> {
        let stream = afar_sys::socket::connect_unix(&self.supervisor_socket()).ok()?;
        let peer = afar_sys::socket::peer_credentials(&stream).ok()?;
        Process::open(u32::try_from(peer.pid?).ok()?)
    }

    /// The supervisor's socket.
    #[must_use]
    pub fn supervisor_socket(&self) -> PathBuf {
        self.home.file("run/afar/supervisor.sock")
    }

    /// Every process of this host that has not ended, but for its listener, its supervisors and the
    /// shells of their sessions: its jobs, and what they left behind.
    #[must_use]
    pub fn jobs(&self) -> Vec<Entry> {
        let listener = self.listener().pid();
        let is_ours = |entry: &Entry| {
            entry.pid == listener || is_supervisor(entry) || is_session_shell(entry)
        };
        let living = self.reapers.iter().flat_map(Reaper::living);
        living.filter(|entry| !is_ours(entry)).collect()
    }

    /// Waits until no job is left, nor anything that one has left behind.
    ///
    /// # Panics
    /// Something stays.
    #[track_caller]
    pub fn wait_until_idle(&self) {
        let left = self.left_after(Deadline::after(CLEANED_UP_WITHIN));
        assert!(left.is_empty(), "these processes were left behind: {left:#?}");
    }

    /// Kills what the jobs of lost clients have left; returns how many processes were there.
    ///
    /// # Panics
    /// One outlives it.
    #[track_caller]
    pub fn end_jobs(&self) -> usize {
        let jobs = self.jobs();
        let mut left = jobs.clone();
        while !left.is_empty() {
            let living = left.iter().filter_map(|entry| Process::open(entry.pid));
            living.for_each(|job| {
                job.kill();
                job.wait();
            });
            left = self.jobs();
        }
        jobs.len()
    }

    /// The jobs that stay beyond the deadline.
    fn left_after(&self, deadline: Deadline) -> Vec<Entry> {
        loop {
            let jobs = self.jobs();
            let Some(first) = jobs.first() else { return jobs };
            // What has gone since it was listed is waited for at once.
            let ended = Process::open(first.pid).is_none_or(|job| job.wait_until(deadline));
            if !ended {
                return self.jobs();
            }
        }
    }

    /// Starts another listener, at another port, after the present one has ended.
    ///
    /// # Panics
    /// It does not accept connections.
    #[track_caller]
    pub fn restart_listener(&mut self) {
        self.start_listener(&[]);
    }

    /// Sends the listener SIGHUP, and waits until it has read its configuration anew, or has found
    /// that it can't.
    ///
    /// # Panics
    /// It does not say so to its service manager.
    #[track_caller]
    pub fn reload(&self) {
        let notices = self.notices.as_ref().expect("it was started");
        self.listener().signal(Signal::HUP);
        for expected in ["RELOADING=1\nMONOTONIC_USEC=", "READY=1"] {
            let said = notices.receive(self.listener());
            if said.as_deref().is_none_or(|said| !said.starts_with(expected)) {
                fail(&format!("it says {said:?}, not {expected:?}:\n{}", self.log()));
            }
        }
    }

    #[track_caller]
    fn start_listener(&mut self, environment: &[(OsString, OsString)]) {
        let prepared = Prepared::new();
        let ready = Mailbox::new();
        let mut words = self.prefix.clone();
        words.push(binary::afar().into());
        let (program, rest) = words.split_first().expect("afar is one of the words");
        let mut command = prepared.command(program);
        command.args(rest).args(&self.serve).env_clear().envs(self.home.environment());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()));
        command.env("NOTIFY_SOCKET", format!("@{}", ready.name()));
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        let log = File::options().append(true).create(true).open(self.log_path());
        let log = log.expect("the test's directory can be written");
        let second = log.try_clone().expect("a descriptor can be had");
        command.stdin(Stdio::null()).stdout(log).stderr(second);
        self.reapers.push(Reaper::start(&prepared, &mut command));
        // The service manager's notification is the event that says that it accepts.
        let said = ready.receive(self.listener());
        if said.as_deref().is_none_or(|said| !said.contains("READY=1")) {
            fail(&format!("`afar serve` does not get ready ({said:?}):\n{}", self.log()));
        }
        self.notices = Some(ready);
        let addresses = fs::read_to_string(self.home.file("ready")).expect("it is ready");
        let mut addresses = addresses.lines().map(|line| line.parse().expect("an address"));
        self.address = addresses.next().expect("one address was asked for");
        self.classic = addresses.next();
        self.home.trust(self.address, &self.host_key());
    }

    fn log_path(&self) -> PathBuf {
        self.home.file("serve.log")
    }

    /// What the listeners and supervisors have said.
    #[must_use]
    pub fn log(&self) -> String {
        let read = |path: &Path| {
            let text = fs::read(path).unwrap_or_default();
            String::from_utf8_lossy(&text).into_owned()
        };
        let supervisor = self.home.file("home/state/afar/supervisor.log");
        format!("{}{}", read(&self.log_path()), read(&supervisor))
    }

    /// Ends listener and supervisor, in this order; returns the jobs that were there before.
    fn stop(&mut self) -> Vec<Entry> {
        let left = self.left_after(Deadline::after(CLEANED_UP_WITHIN));
        let listener = self.listener();
        listener.signal(Signal::TERM);
        let _ = listener.wait_until(Deadline::after(DEADLINE));
        // Those of other accounts, too, which have their sockets elsewhere.
        let below = self.reapers.iter().flat_map(Reaper::living).filter(is_supervisor);
        let below = below.filter_map(|entry| Process::open(entry.pid));
        for supervisor in self.supervisor().into_iter().chain(below) {
            supervisor.signal(Signal::TERM);
            let _ = supervisor.wait_until(Deadline::after(DEADLINE));
        }
        left
    }

    fn kill_everything(&mut self) {
        // One that a local client has started hangs below no reaper.
        if let Some(supervisor) = self.supervisor() {
            supervisor.signal(Signal::KILL);
        }
        for reaper in &mut self.reapers {
            reaper.end();
        }
    }
}

impl Deref for Host {
    type Target = Home;

    fn deref(&self) -> &Home {
        &self.home
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.reapers.is_empty() {
            return;
        }
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "--- log of the host ---\n{}---", self.log());
            self.kill_everything();
            return;
        }
        let left = self.stop();
        // A guardian ends behind its supervisor; on its way out it has no command line any more.
        let deadline = Deadline::after(CLEANED_UP_WITHIN);
        let ends = |entry: &Entry| {
            Process::open(entry.pid).is_none_or(|process| process.wait_until(deadline))
        };
        let living = self.reapers.iter().flat_map(Reaper::living);
        let stuck: Vec<Entry> = living.filter(|entry| !ends(entry)).collect();
        let log = self.log();
        self.kill_everything();
        assert!(left.is_empty(), "the test left processes behind: {left:#?}\n{log}");
        assert!(stuck.is_empty(), "these processes ignore SIGTERM: {stuck:#?}\n{log}");
    }
}

/// Whether this is a supervisor (or its guardian), going by its command line.
fn is_supervisor(entry: &Entry) -> bool {
    let mut words = entry.command.split(' ');
    let program = words.next().and_then(|program| program.rsplit('/').next());
    program == Some("afar") && matches!(words.next(), Some("supervisor" | "guardian" | "as-user"))
}

/// Whether this is the shell of a session, which stays until its supervisor ends: its script is its
/// stdin.
fn is_session_shell(entry: &Entry) -> bool {
    let mut words = entry.command.split(' ');
    words.next().is_some_and(|shell| shell.ends_with("sh")) && words.eq(["-s"])
}
