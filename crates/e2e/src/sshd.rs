//! A real sshd of OpenSSH with the same user, as the oracle of what a command does.

use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::client::{Output, Run};
use crate::home::Home;
use crate::process::kill_descendants;

/// An sshd on a loopback port, with its own configuration and throwaway keys. It is started for
/// each connection as inetd would, on a socket that this process has accepted, so that there is no
/// port to guess and nothing to wait for.
#[derive(Debug)]
pub struct Sshd {
    home: Home,
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stopping: AtomicBool,
    /// An sshd for each connection there was.
    children: Mutex<Vec<Child>>,
}

impl Sshd {
    /// Starts it.
    ///
    /// # Panics
    /// OpenSSH is not installed, or does not run.
    #[track_caller]
    #[must_use]
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// One whose sessions use the runtime and state directories of this home, so that what `afar
    /// stdio` starts there is this home's; with more lines of sshd_config(5).
    ///
    /// # Panics
    /// As [`Sshd::start`].
    #[track_caller]
    #[must_use]
    pub fn serving(home: &Home, configuration: &str) -> Self {
        let (run, state) = (home.file("run"), home.file("home/state"));
        // Of several SetEnv lines the first one counts.
        let set = format!(
            "SetEnv SHLVL=2 XDG_RUNTIME_DIR={} XDG_STATE_HOME={}",
            run.display(),
            state.display()
        );
        Self::start_with(&format!("{set}\n{configuration}\n"))
    }

    /// One that lets every account in by its own `authorized_keys`. Only root can run it.
    ///
    /// # Panics
    /// As [`Sshd::start`].
    #[track_caller]
    #[must_use]
    pub fn serving_accounts() -> Self {
        Self::start_with("AuthorizedKeysFile .ssh/authorized_keys\n")
    }

    /// One with these lines of sshd_config(5), each with its end, before its own: of several values
    /// the first one counts.
    ///
    /// # Panics
    /// As [`Sshd::start`].
    #[track_caller]
    #[must_use]
    pub fn start_with(first: &str) -> Self {
        let home = Home::new();
        let host_key = home.make_key("host_key");
        let authorized = home.write("authorized_keys", Home::public_line(&home.key()));
        // SHLVL: a bash that was built with SSH_SOURCE_BASHRC reads the person's .bashrc when it
        // seems to be started by sshd, unless it is a shell within a shell.
        let configuration = format!(
            "{first}HostKey {}\nAuthorizedKeysFile {}\nPidFile none\nUsePAM no\nPermitRootLogin yes\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPrintMotd no\n\
             PrintLastLog no\nUseDNS no\nLogLevel ERROR\nMaxSessions 100\nSetEnv SHLVL=2\n\
             AcceptEnv E2E_*\n",
            host_key.display(),
            authorized.display()
        );
        let configuration = home.write("sshd_config", configuration);
        ensure_privilege_separation_directory();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        home.trust(address, &host_key);
        let shared: Arc<Shared> = Arc::default();
        let ours = Arc::clone(&shared);
        let log = home.file("sshd.log");
        let acceptor = std::thread::spawn(move || accept(&listener, &configuration, &log, &ours));
        Self { home, address, shared, acceptor: Some(acceptor) }
    }

    /// Where it accepts connections.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its home, which has the key that it lets in.
    #[must_use]
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// `ssh -T OPTIONS HOST COMMAND`: the words are joined with spaces and given to the user's shell,
    /// as ssh does.
    #[must_use]
    pub fn ssh(&self, options: &[&str], command: &str) -> Run {
        self.ssh_as(self.home.user(), options, command)
    }

    /// The same as another account.
    #[must_use]
    pub fn ssh_as(&self, user: &str, options: &[&str], command: &str) -> Run {
        let mut words: Vec<OsString> = vec!["-T".into()];
        words.extend(self.options());
        words.extend(options.iter().map(Into::into));
        words.push(format!("{user}@127.0.0.1").into());
        words.push(command.into());
        self.home.program("ssh", words)
    }

    fn options(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = vec!["-F".into(), "/dev/null".into(), "-i".into()];
        words.push(self.home.key().into());
        words.extend(["-p".into(), self.address.port().to_string().into()]);
        for option in [
            "BatchMode=yes".to_owned(),
            "IdentitiesOnly=yes".to_owned(),
            "IdentityAgent=none".to_owned(),
            "GlobalKnownHostsFile=/dev/null".to_owned(),
            format!("UserKnownHostsFile={}", self.home.known_hosts().display()),
            "LogLevel=ERROR".to_owned(),
            "KexAlgorithms=curve25519-sha256".to_owned(),
        ] {
            words.extend(["-o".into(), option.into()]);
        }
        words
    }

    /// What sshd has said.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.home.file("sshd.log")).unwrap_or_default()
    }

    /// Runs `ssh` to its end.
    #[track_caller]
    #[must_use]
    pub fn run(&self, command: &str) -> Output {
        self.ssh(&[], command).output()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        let mut children = self.shared.children.lock().unwrap_or_else(PoisonError::into_inner);
        for mut child in children.drain(..) {
            kill_descendants(child.id());
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn accept(listener: &TcpListener, configuration: &Path, log: &Path, shared: &Shared) {
    while let Ok((socket, _)) = listener.accept() {
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        let copy = socket.try_clone().expect("a descriptor can be had");
        let log = File::options().append(true).create(true).open(log);
        // sshd executes itself anew, and insists on its absolute path.
        let mut command = Command::new(sshd_path());
        command.args(["-i", "-e", "-f"]).arg(configuration);
        command.stdin(OwnedFd::from(socket)).stdout(OwnedFd::from(copy));
        command.stderr(log.expect("the test's directory can be written"));
        let child = command.spawn().expect("sshd (openssh-server) is installed");
        shared.children.lock().unwrap_or_else(PoisonError::into_inner).push(child);
    }
}

fn sshd_path() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from);
    let found = std::env::split_paths(&path).chain(system).map(|directory| directory.join("sshd"));
    found.into_iter().find(|path| path.is_file()).expect("sshd (openssh-server) is installed")
}

/// sshd that runs as root refuses to start without a directory that only its service unit makes.
fn ensure_privilege_separation_directory() {
    if rustix::process::geteuid().is_root() {
        let mut builder = DirBuilder::new();
        let made = builder.recursive(true).mode(0o755).create("/run/sshd");
        made.expect("root can write to /run");
    }
}
